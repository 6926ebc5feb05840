"""The sections of a report: pictures, tables and what is said of them."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment import pl
from spatialdata_segment._evidence import crosses, seam_profiles
from spatialdata_segment._report import art, facts, page
from spatialdata_segment._report.crops import crop_side, random_crops, worst_crops
from spatialdata_segment._report.whole import SIDE, Whole
from spatialdata_segment.pl._dropped import reason_color
from spatialdata_segment.pl._numbers import masks_of
from spatialdata_segment.pl._shards import cuts_along_z, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata_segment._evidence import SeamProfile
    from spatialdata_segment._report.crops import Crop
    from spatialdata_segment._results import Picture, Result

_SMALL = 1050
"""Pixels of the longer side of pictures of the whole image beside a chart."""
_WINDOWS = 64


class Draft:
    """A result on its way to a page.

    Parameters
    ----------
    result, picture
        What to show; None for no image.
    channels
        Those shown, as given.
    rng
        For the crops and the windows along the seams.
    """

    def __init__(self, result: Result, picture: Picture | None, channels: Any, rng: np.random.Generator) -> None:
        self.result, self.picture, self.rng = result, picture, rng
        self.masks = masks_of(result)
        self.channels = () if picture is None else picture.indices(channels, result)
        self.whole = Whole(result, picture, self.channels)
        self.facts = facts.mask_facts(result)
        self.deep = len(result.shape) == 3
        self.plan = result.record["plan"].get(result.main) if result.record is not None else None
        self.seams = self._seams()

    def subtitle(self) -> str:
        """Return the line below the title."""
        shape = " × ".join(f"{n:,}" for n in self.result.shape)
        size = self.result.pixel_size
        parts = [f"{shape} {'voxels' if self.deep else 'px'}"]
        if size is not None:
            parts.append(f"{' × '.join(f'{s:g}' for s in size)} µm a {'voxel' if self.deep else 'pixel'}")
        if self.picture is not None:
            parts.append(f"channels shown: {', '.join(self.picture.names[i] for i in self.channels)}")
        if self.result.record is not None:
            parts.append(f"segmented {self.result.record['started']}")
        return " · ".join(parts)

    def sections(self, n_crops: int, side: int | None) -> list[tuple[str, str, str]]:
        """Return id, heading and HTML of every section."""
        side = side or crop_side(self.result)
        chosen = random_crops(self.result, n_crops, side, self.rng)
        worst = worst_crops(self.result, max(1, n_crops // 3), side)
        return [
            ("summary", "Summary", self._summary()),
            ("overview", "The whole image", self._overview()),
            ("crops", "Crops", self._crops(chosen, worst)),
            ("dropped", "What was dropped, and why", self._dropped()),
            ("distributions", "Sizes and intensities", self._distributions()),
            ("matching", "Matching of nuclei and cells", self._matching()),
            ("shards", "Shards and seams", self._shards()),
            ("parameters", "Parameters", self._parameters()),
            ("run", "Versions, time and memory", self._run()),
        ]

    def _summary(self) -> str:
        numbers = []
        for mask, of in self.facts.items():
            numbers += [(f"{of.kept:,}", f"{facts.PLURAL[mask]} kept of {of.candidates:,} found")]
        of = self.facts[self.masks[-1]]
        if of.kept:
            numbers += [(f"{of.areas[2]:,.4g} {of.unit}", f"median {'volume' if self.deep else 'area'}")]
        numbers += [(f"{of.covered:.1%}", f"of the image in {facts.PLURAL[self.masks[-1]]}")]
        record = self.result.record
        if record is not None:
            numbers += [(_duration(record["seconds"]), "to segment")]
            if "memory_bytes" in record:
                numbers += [(f"{record['memory_bytes'] / 1e9:.2f} GB", "of memory at most")]
        remarks = facts.remarks(self.facts, self.result, self.seams)
        look = page.paragraph("Look here first:") + page.bullets(remarks, "remarks") if remarks else ""
        return page.tiles(numbers) + look

    def _overview(self) -> str:
        told = ", ".join(f"{of.kept:,} {facts.PLURAL[m]}" for m, of in self.facts.items())
        outlined = self.whole.is_outlined
        lines = " with the outlines of what was kept" if outlined else ", without outlines, which would hide it"
        text = f"The whole image{lines}: {told}"
        image = art.figure_jpeg(partial(self.whole.draw, outlined=outlined), text, self.whole.shape, SIDE)
        plane = f" Plane {self.whole.z} of {self.result.shape[0]}." if self.deep else ""
        density = partial(pl.density, self.result.sdata, key=self.result.key)
        chart = art.chart_svg(density, "Map of the density of the kept cells", "density", (6, 5))
        return (
            '<div class="pair">'
            + page.figure(image, text, f"{text}.{plane} Yellow: nuclei. Magenta: cells.")
            + page.figure(chart, "density", "Density of the kept objects.", zooms=False)
            + "</div>"
        )

    def _crops(self, chosen: Sequence[Crop], worst: Sequence[Crop]) -> str:
        read = {c: art.read_crop(c, self.result, self.picture, self.channels) for c in (*chosen, *worst)}
        ends = art.contrast([read[c] for c in chosen])
        html = [page.switches(self.result.labels)]
        for heading, of, empty in (
            ("At random", chosen, "No object was kept, so there is nothing to draw from."),
            ("The worst", worst, "No criterion tells any place from the others."),
        ):
            html.append(f"<h3>{heading}</h3>")
            if not of:
                html.append(page.paragraph(empty))
                continue
            shown = []
            for crop in of:
                where = f"x {crop.box.start[1]}, y {crop.box.start[0]}" + (f", z {crop.z}" if self.deep else "")
                text = f"{crop.why}; {crop.what}; at {where}, {crop.box.shape[1]} × {crop.box.shape[0]} px"
                svg = art.crop_svg(read[crop], self.result, ends, text)
                shown.append(page.figure(svg, text, f"{crop.why[0].upper()}{crop.why[1:]}: {crop.what}. At {where}."))
            html.append(f'<div class="grid">{"".join(shown)}</div>')
        colors = "Yellow: nuclei. Magenta: cells. Dashed boxes: candidates that were dropped, coloured by the reason."
        point = "Click to enlarge, then wheel or + and − to zoom; point at an outline to see its id."
        return page.paragraph(f"{colors} {point}", "soft") + "".join(html)

    def _dropped(self) -> str:
        reasons = dict.fromkeys(r for of in self.facts.values() for r in of.dropped)
        counts = [("found", *(of.candidates for of in self.facts.values()))]
        counts += [("kept", *(of.kept for of in self.facts.values()))]
        html = page.table(["", *(facts.PLURAL[m] for m in self.facts)], counts, "Candidates")
        if not reasons:
            return html + page.paragraph("Nothing was dropped.")
        rows = [
            (facts.spoken(r), *(of.dropped.get(r, 0) for of in self.facts.values()), facts.WHY.get(r, "of the method"))
            for r in reasons
        ]
        head = ["reason", *(facts.PLURAL[m] for m in self.facts), "meaning"]
        html += page.table(head, rows, "Dropped, by reason", swatches=[reason_color(r) for r in reasons])
        chart = art.chart_svg(
            self._chart(pl.fates), "Shares of candidates kept and dropped by reason", "fates", (6.5, 2.6)
        )
        total = sum(of.candidates - of.kept for of in self.facts.values())
        text = f"Where the {total:,} dropped candidates lie, coloured by the reason"
        image = art.figure_jpeg(self.whole.draw_dropped, text, self.whole.shape, _SMALL)
        pictures = page.figure(image, text, f"{text}.")
        pictures += page.figure(chart, "", "What became of the candidates.", zooms=False)
        return f'{html}<div class="pair">{pictures}</div>'

    def _distributions(self) -> str:
        rows = [(facts.PLURAL[m], of.kept, *of.areas) for m, of in self.facts.items()]
        unit = next(iter(self.facts.values())).unit
        what = "Volumes" if self.deep else "Areas"
        head = ["", "kept", "least", "5 %", "median", "95 %", "greatest"]
        html = page.table(head, rows, f"{what} of kept objects ({unit})")
        chart = art.chart_svg(self._chart(pl.sizes), f"Histogram of {what.lower()}", "sizes")
        caption = f"{what} of the candidates, kept and dropped. Dotted: bounds of the size filter."
        charts = [page.figure(chart, "", caption, zooms=False)]
        measured = facts.intensity_facts(self.result)
        if not measured or not self.result.table.n_obs:
            return f'{html}<div class="pair">{"".join(charts)}</div>'
        head = ["channel", "1 %", "25 %", "median", "75 %", "99 %"]
        html += page.table(head, [(c, *v) for c, v in measured.items()], "Mean intensities of the cells")
        size = (6, max(2.4, 0.8 + 0.3 * len(measured)))
        chart = art.chart_svg(self._chart(pl.intensities), "Mean intensities by channel", "intensities", size)
        caption = "Mean intensities: boxes 25 to 75 %, whiskers 1 to 99 %."
        charts.append(page.figure(chart, "intensities", caption, zooms=False))
        return f'{html}<div class="pair">{"".join(charts)}</div>'

    def _matching(self) -> str:
        found = facts.matching_facts(self.result)
        if not found:
            return page.paragraph(f"The result has {facts.PLURAL[self.masks[0]]} alone: there is nothing to match.")
        numbers = page.table(["", "value"], found.items(), "Nuclei and cells")
        chart = art.chart_svg(self._chart(pl.matching), "Histogram of the shares of nuclei in their cells", "matching")
        caption = "Share of each nucleus in its cell, on a logarithmic axis."
        return f'<div class="pair">{numbers}{page.figure(chart, "matching", caption, zooms=False)}</div>'

    def _shards(self) -> str:
        record = self.result.record
        if record is None:
            return page.paragraph(
                "The record of the run is not known: it lies in the store of the run, not in the tables."
            )
        masks = [m for m in facts.PLURAL if m in record["plan"]]
        html = page.table(_PLAN, [self._plan_row(m, record["plan"][m]) for m in masks], "Shard plan")
        evidence: Mapping[str, Mapping[str, int]] = record["evidence"]
        told = [
            (text, *(evidence[m][name] for m in masks))
            for name, text in _EVIDENCE.items()
            if name in evidence[masks[0]]
        ]
        over = [self._across(m, record["plan"][m]["chunks"]) for m in masks]
        told.append(("kept objects across a border of cores, each in one piece", *over))
        html += page.table(["", *(facts.PLURAL[m] for m in masks)], told, "What happened at the seams")
        pictures = []
        if self.plan is not None and int(np.prod(self.plan["grid"])) > 1:
            text = "The shard plan over the image, and the objects that cross borders of cores"
            image = art.figure_jpeg(self.whole.draw_shards, text, self.whole.shape, _SMALL)
            caption = (
                f"{text}. White: borders of cores. Dashed: what one core reads. Orange: cores that looked again, "
                "farther. Red: cores with objects on which neighbours disagreed. Points: kept objects over a border."
            )
            if along := cuts_along_z(self.plan):
                caption += f" The volume is seen from above: {along}."
            pictures.append(page.figure(image, text, caption))
        if self.seams:
            draw = partial(pl.seams, self.result.sdata, key=self.result.key, n_windows=_WINDOWS, rng=self._seam_seed)
            text = "Share of pairs of pixels that differ, by their distance from the seams"
            caption = (
                "Where labels differ across lines along the seams and beside them. A seam that cut objects would stand "
                "out at 0. "
            ) + " ".join(
                f"Seams along {name}: {seam.at_seam:.2%} there and {seam.beside:.2%} beside, "
                f"{abs(seam.deviation):.1f} standard deviations apart, in {seam.n_windows:,} of {seam.n_possible:,} "
                "windows."
                for name, seam in self.seams.items()
            )
            pictures.append(page.figure(art.chart_svg(draw, text, "seams"), text, caption, zooms=False))
        return html + (f'<div class="pair">{"".join(pictures)}</div>' if pictures else "")

    def _plan_row(self, mask: str, plan: Mapping[str, Any]) -> tuple[str | int, ...]:
        core = " × ".join(f"{max(c):,}" for c in plan["chunks"])
        grid, halo = (" × ".join(map(str, plan[n])) for n in ("grid", "halo"))
        return facts.PLURAL[mask], int(np.prod(plan["grid"])), grid, core, halo

    def _across(self, mask: str, chunks: Sequence[Sequence[int]]) -> int:
        """Return how many kept objects have pixels in more than one core."""
        rows = self.result.candidates_of(mask)
        return int((crosses(rows, chunks) & rows["is_kept"].to_numpy(bool)).sum())

    def _parameters(self) -> str:
        metadata = self.result.metadata
        shown = {n: v for n, v in metadata.items() if n not in ("versions", "counts", "statistics", "updates")}
        rows = [row for row in facts.flat(shown) if row[1] != "none"]
        html = page.table(["name", "value"], rows, "What decided the result; what is not set is in the JSON below")
        if statistics := [row for row in facts.flat(metadata.get("statistics", {})) if row[1] != "none"]:
            html += page.table(["name", "value"], statistics, "Statistics of the whole image that the methods used")
        if again := facts.update_rows(metadata):
            told = "Regions that were segmented again, by runs; their workflows are in the JSON below"
            html += page.table(["run", "", "went", "came", "new ids after"], again, told)
        whole = json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False)
        return html + page.details("All of it as JSON", whole)

    def _run(self) -> str:
        record = self.result.record
        versions = dict(self.result.metadata.get("versions", {})) | (record.get("versions", {}) if record else {})
        html = page.table(["package", "version"], sorted(versions.items()), "Versions")
        if record is None:
            return html
        rows = [(s["stage"], int(s["tasks"]), float(s["seconds"])) for s in record.get("stages", [])]
        html += page.table(["stage", "tasks", "seconds"], rows, "Time by stage")
        memory = record.get("memory_bytes")
        told = {
            "started": record["started"],
            "whole run": f"{record['seconds']:.1f} s",
            "memory of the driving process, at most": "unknown" if memory is None else f"{memory / 1e6:,.0f} MB",
            "host": record["host"],
            "platform": record.get("platform", "unknown"),
            "executor": record["executor"],
            "jobs": ", ".join(f"{k} {v}" for k, v in record["n_jobs"].items()),
            "devices": ", ".join(record["devices"]),
        }
        return html + page.table(["", ""], told.items(), "The run")

    def _seams(self) -> dict[str, SeamProfile]:
        """Return how labels differ at the seams and beside them, where there are seams."""
        self._seam_seed = int(self.rng.integers(1 << 31))
        if self.plan is None:
            return {}
        mask, plan, _ = plan_of(self.result, None)
        draw = np.random.default_rng(self._seam_seed)
        return seam_profiles(self.result.labels[mask].arrays[0], plan["chunks"], _WINDOWS, draw)

    def _chart(self, draw: Any) -> Any:
        return partial(draw, self.result.sdata, key=self.result.key)


_PLAN = "", "shards", "grid", "core (px)", "halo (px)"
_EVIDENCE = {
    "shards": "shards",
    "computed": "computed by this run (the others were resumed)",
    "again": "looked again, farther, for an object that the halo did not show in full",
    "twins": "objects owned twice, of which one was dropped",
    "adopted": "objects that no shard owned, adopted by the lowest that saw them",
    "contested_px": "pixels that two objects claimed",
    "covered": "objects that lost all pixels to others",
    "objects_of_planes": "objects of planes, before they were joined",
}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86_400 else f"{seconds / 3600:.1f} h"

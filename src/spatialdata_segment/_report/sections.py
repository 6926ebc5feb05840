"""The sections of a report: pictures, tables and what is said of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment import pl
from spatialdata_segment._evidence import crosses, seam_profiles
from spatialdata_segment._report import art, facts, page, runs
from spatialdata_segment._report.crops import crop_side, random_crops, worst_crops
from spatialdata_segment._report.doubts import doubts
from spatialdata_segment._report.whole import SIDE, Whole
from spatialdata_segment.pl._dropped import reason_color
from spatialdata_segment.pl._numbers import bounds, masks_of
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
        self.doubts = doubts(result, self.whole.ground())

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
            again = len(facts.updates_of(self.result))
            told = f", and {again} region{'s' if again > 1 else ''} of it again later" if again else ""
            parts.append(f"segmented {self.result.record['started']}{told}")
        return " · ".join(parts)

    def sections(self, n_crops: int, side: int | None) -> list[tuple[str, str, str]]:
        """Return id, heading and HTML of every section."""
        side = side or crop_side(self.result)
        chosen = random_crops(self.result, n_crops, side, self.rng)
        worst = worst_crops(self.result, max(1, n_crops // 3), side, self.doubts)
        return [
            ("summary", "Summary", self._summary()),
            ("overview", "The whole image", self._overview()),
            ("crops", "Crops", self._crops(chosen, worst)),
            ("dropped", "What was dropped, and why", self._dropped()),
            ("distributions", "Sizes and intensities", self._distributions()),
            ("matching", "Matching of nuclei and cells", self._matching()),
            ("shards", "Shards and seams", self._shards()),
            ("parameters", "Parameters", runs.parameters(self.result)),
            ("run", "Versions, time and memory", runs.run(self.result)),
        ]

    def _summary(self) -> str:
        numbers = []
        for mask, of in self.facts.items():
            numbers += [(f"{of.kept:,}", f"{facts.PLURAL[mask]} kept of {of.candidates:,} found")]
        of = self.facts[self.masks[-1]]
        if of.kept:
            numbers += [(f"{of.areas[2]:,.4g} {of.unit}", f"median {'volume' if self.deep else 'area'}")]
        numbers += [
            (f"{of.covered:.1%}", f"of the {'volume' if self.deep else 'image'} in {facts.PLURAL[self.masks[-1]]}")
        ]
        record = self.result.record
        if record is not None:
            first = ", the first run" if facts.updates_of(self.result) else ""
            numbers += [(runs.duration(record["seconds"]), f"to segment{first}")]
            if "memory_bytes" in record:
                numbers += [(f"{record['memory_bytes'] / 1e9:.2f} GB", "of memory at most")]
        remarks = facts.remarks(self.facts, self.result, self.seams, self.doubts)
        look = page.paragraph("Look here first:") + page.bullets(remarks, "remarks") if remarks else ""
        again = facts.update_text(self.result)
        return page.tiles(numbers) + (page.paragraph(again) if again else "") + look

    def _overview(self) -> str:
        told = ", ".join(f"{of.kept:,} {facts.PLURAL[m]}" for m, of in self.facts.items())
        outlined, found = self.whole.is_outlined, any(of.kept for of in self.facts.values())
        lines = " with the outlines of what was kept" if outlined else ", without outlines, which would hide it"
        text = f"The whole image{lines if found else ''}: {told}"
        image = art.figure_jpeg(partial(self.whole.draw, outlined=outlined), text, self.whole.shape, SIDE)
        plane = f" Plane {self.whole.z} of {self.result.shape[0]}; the numbers are of all." if self.deep else ""
        caption = f"{text}.{plane}" + (f" {self._colors()}" if outlined else "")
        pictures = page.figure(image, text, caption)
        if found:
            density = partial(pl.density, self.result.sdata, key=self.result.key)
            text = f"Density of the kept {facts.PLURAL[self.result.main]}"
            pictures += page.figure(art.chart_svg(density, text, "density", (6, 5)), text, f"{text}.", zooms=False)
        return f'<div class="pair">{pictures}</div>'

    def _colors(self) -> str:
        """Return which colour the outlines of which mask have."""
        named = {"nucleus": "Yellow: nuclei.", "cell": "Magenta: cells."}
        return " ".join(named[m] for m in self.result.labels)

    def _crops(self, chosen: Sequence[Crop], worst: Sequence[Crop]) -> str:
        read = {c: art.read_crop(c, self.result, self.picture, self.channels) for c in (*chosen, *worst)}
        ends = art.contrast([read[c] for c in chosen])
        drawn = {m: facts.PLURAL[m] for m in self.result.labels}
        about = self._colors()
        if len(facts.dropped_rows(self.result)):
            drawn["dropped"] = "dropped"
            about += " Dashed boxes: candidates that were dropped, coloured by the reason."
        if worst:
            about += " White: the object in question."
        about += " Click to enlarge, then wheel or + and − to zoom; point at an outline to see its id."
        html = [page.paragraph(about, "soft"), page.switches(drawn)] if read else []
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
                svg = art.crop_svg(read[crop], self.result, ends, crop.text)
                shown.append(page.figure(svg, crop.text, crop.text))
            html.append(f'<div class="grid">{"".join(shown)}</div>')
        return "".join(html)

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
            self._chart(pl.fates), "Shares of candidates kept and dropped by reason", "fates", (4.2, 2.2)
        )
        total = sum(of.candidates - of.kept for of in self.facts.values())
        planes = ", of all planes" if self.deep else ""
        text = f"Where the {total:,} dropped candidates lie{planes}, coloured by the reason"
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
        if not any(of.candidates for of in self.facts.values()):
            return html
        chart = art.chart_svg(self._chart(pl.sizes), f"Histogram of {what.lower()}", "sizes")
        caption = f"{what} of the candidates, kept and dropped."
        if any(bounds(self.result, m) for m in self.masks):
            caption += " Dotted: bounds of the size filter."
        charts = [page.figure(chart, "", caption, zooms=False)]
        measured = facts.intensity_facts(self.result)
        if not measured or not self.result.table.n_obs:
            return f'{html}<div class="pair">{"".join(charts)}</div>'
        head = ["channel", "1 %", "25 %", "median", "75 %", "99 %"]
        html += page.table(
            head, [(c, *v) for c, v in measured.items()], f"Mean intensities of the {facts.PLURAL[self.result.main]}"
        )
        size = (6, max(2.4, 0.8 + 0.3 * len(measured)))
        chart = art.chart_svg(self._chart(pl.intensities), "Mean intensities by channel", "intensities", size)
        caption = "Mean intensities: boxes 25 to 75 %, whiskers 1 to 99 %."
        charts.append(page.figure(chart, "intensities", caption, zooms=False))
        return f'{html}<div class="pair">{"".join(charts)}</div>'

    def _matching(self) -> str:
        if not any(of.candidates for of in self.facts.values()):
            return page.paragraph("Nothing was found, so there is nothing to match.")
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
            text = "Share of pairs of pixels whose labels differ, by their distance from the seams"
            caption = (
                "How often labels differ across lines along the seams and beside them: the share of the pairs of "
                "neighbouring pixels of which at least one is in an object. A seam that cut objects would stand out at "
                "0. "
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

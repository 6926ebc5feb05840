"""The numbers of a report, from the tables alone: what the page says is what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.pl._numbers import area_unit, fate_counts, intensity_quantiles, judged, masks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from spatialdata_segment._evidence import SeamProfile
    from spatialdata_segment._report.doubts import Doubt
    from spatialdata_segment._results import Result

PLURAL = {"nucleus": "nuclei", "cell": "cells"}

WHY = {
    "too_small": "smaller than the least size of the filter, or of the method",
    "too_large": "larger than the greatest size of the filter, or of the method",
    "unmatched": "no partner: a nucleus that no cell holds to the matching threshold, or a cell without a nucleus",
    "multinucleated": "a cell with several nuclei, or one of these",
    "partner_dropped": "its nucleus, or its cell, was dropped for another reason",
    "outside_region": "its anchor lies outside of the region",
    "covered": "other objects lie over all of its pixels",
    "replaced": "it lay in a region that was segmented again",
    "low_contact": "too little of its border is shared with others, or too much (the contact filter)",
    "flow_error": "the flows of the network do not fit its shape",
}
"""What the reasons of the candidates table mean."""

_MANY_DROPPED = 0.1
_MANY_NUCLEI = 0.05
_TOO_LARGE = 10
_SEAM = 5.0


@dataclass(frozen=True)
class MaskFacts:
    """The numbers of one mask.

    Attributes
    ----------
    candidates, kept
        How many.
    dropped
        Reason -> how many.
    areas
        Least, 5th percentile, median, 95th, greatest area (volume) of those kept, in ``unit``.
    unit
        "px", "voxels", "µm²" or "µm³".
    covered
        Share of the image's pixels in kept objects.
    """

    candidates: int
    kept: int
    dropped: dict[str, int]
    areas: tuple[float, ...]
    unit: str
    covered: float


def mask_facts(result: Result) -> dict[str, MaskFacts]:
    """Return the numbers of each mask, of the result as it is now."""
    factor, unit = sizes_in(result)
    pixels = float(np.prod(result.shape, dtype=float))
    found = {}
    for mask in masks_of(result):
        rows = judged(result.candidates)
        rows = rows[rows["kind"] == mask]
        counts = fate_counts(rows)
        areas = rows["area"].to_numpy(np.float64)[rows["is_kept"].to_numpy(bool)]
        ends = np.quantile(areas, (0, 0.05, 0.5, 0.95, 1)) if len(areas) else np.full(5, np.nan)
        found[mask] = MaskFacts(
            candidates=len(rows),
            kept=counts.pop("kept"),
            dropped=counts,
            areas=tuple((ends * factor).tolist()),
            unit=unit,
            covered=float(areas.sum() / pixels),
        )
    return found


def matching_facts(result: Result) -> dict[str, float]:
    """Return the numbers of the matching of nuclei and cells; empty where there is one mask."""
    if len(masks_of(result)) < 2:
        return {}
    nuclei, cells = result.candidates_of("nucleus"), result.candidates_of("cell")
    kept = nuclei[nuclei["is_kept"].to_numpy(bool)]
    share = kept["overlap_fraction"].to_numpy(np.float64)
    table = result.table.obs
    per_cell = table["n_nuclei"].to_numpy() if "n_nuclei" in table else np.zeros(0)
    return {
        "nuclei kept": len(kept),
        "cells kept": int(cells["is_kept"].sum()),
        "cells with one nucleus": int((per_cell == 1).sum()),
        "cells with several nuclei": int((per_cell > 1).sum()),
        "cells without a nucleus": int((per_cell == 0).sum()),
        "least share of a kept nucleus in its cell": float(share.min()) if len(share) else float("nan"),
        "median share of a kept nucleus in its cell": float(np.median(share)) if len(share) else float("nan"),
    }


def intensity_facts(result: Result) -> dict[str, list[float]]:
    """Return, of each channel, percentiles 1, 25, 50, 75 and 99 of the cells' mean intensities."""
    return {str(c): intensity_quantiles(result, str(c)) for c in result.table.var_names}


def remarks(
    facts: Mapping[str, MaskFacts], result: Result, seams: Mapping[str, SeamProfile], questioned: Sequence[Doubt]
) -> list[str]:
    """Return what somebody should look at first, by plain rules; empty where none holds."""
    said = []
    for mask, of in facts.items():
        if not of.candidates:
            said.append(f"No {PLURAL[mask]} were found.")
            continue
        lost = of.candidates - of.kept
        if lost > _MANY_DROPPED * of.candidates:
            reason, n = max(of.dropped.items(), key=lambda item: item[1])
            said.append(
                f"{lost / of.candidates:.0%} of the candidate {PLURAL[mask]} were dropped, most of them ({n:,}) as "
                f"{spoken(reason)}: {WHY.get(reason, 'a reason of the method')}."
            )
        ratio = of.areas[4] / of.areas[2] if of.kept else 0.0
        if ratio > _TOO_LARGE:
            said.append(
                f"The largest of the {PLURAL[mask]} is {ratio:.0f} times as large as the median one. Objects "
                "may be merged: see the crops of the largest, and max_size."
            )
        if of.dropped.get("multinucleated", 0) > _MANY_NUCLEI * of.candidates:
            said.append(
                f"{of.dropped['multinucleated'] / of.candidates:.0%} of the candidate {PLURAL[mask]} are of cells with "
                "several nuclei: nuclei may be split, or cells merged."
            )
    said += [doubt.remark for doubt in questioned]
    for name, seam in seams.items():
        if seam.deviation <= _SEAM:
            continue
        said.append(
            f"Borders between labels are more frequent at the seams along {name} ({seam.at_seam:.2%}) than beside them "
            f"({seam.beside:.2%}): the method does not keep its contract there, or the image has borders of its own at "
            "these places, as a mosaic of tiles has."
        )
    if result.record is None:
        said.append("The record of the run is not known, so times, shards and seams are missing here.")
    return said


def spoken(reason: str) -> str:
    """Return a reason as words."""
    return reason.replace("_", " ")


def updates_of(result: Result) -> list[dict[str, Any]]:
    """Return what is on record of the runs that segmented a region of the result again."""
    found: list[dict[str, Any]] = result.metadata.get("updates", [])
    return found


def update_text(result: Result) -> str:
    """Return in a line how much of the result was segmented again; empty where nothing was."""
    runs = updates_of(result)
    if not runs:
        return ""
    mask = result.main
    went, came = (sum(run["counts"].get(mask, {}).get(n, 0) for run in runs) for n in ("replaced", "kept"))
    told = (
        f"Segmented again: {len(runs)} region{'s' if len(runs) > 1 else ''}, in which {went:,} {PLURAL[mask]} went and "
        f"{came:,} came. What went is not counted here."
    )
    return told if result.record is None else f"{told} Times, memory and shards are those of the first run."


def update_rows(metadata: Mapping[str, Any]) -> list[tuple[int, str, int, int, int]]:
    """Return, for each run on a region and each mask, what went and came, and the last id before."""
    return [
        (k, PLURAL[mask], of["replaced"], of["kept"], run["ids_after"])
        for k, run in enumerate(metadata.get("updates", []), 1)
        for mask in PLURAL
        if (of := run["counts"].get(mask))
    ]


def update_changes(metadata: Mapping[str, Any]) -> list[tuple[int, str, str, str]]:
    """Return, for each run on a region, the parameters unlike those of the first run: name, then, and first."""
    first, rows = _decisive(metadata), []
    for k, run in enumerate(metadata.get("updates", []), 1):
        then = _decisive(run)
        for name in sorted(first.keys() | then.keys()):
            values = then.get(name, "none"), first.get(name, "none")
            if values[0] != values[1]:
                rows.append((k, name, *values))
    return rows


def _decisive(metadata: Mapping[str, Any]) -> dict[str, str]:
    parts = ("image", "scale", "channels", "pixel_size", "device", "workflow", "versions")
    return dict(flat({n: metadata[n] for n in parts if n in metadata}))


def flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested parameters as names with dots, and their values as text."""
    rows: list[tuple[str, str]] = []
    for name, value in content.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            rows += flat(value, f"{full}.")
        else:
            rows.append((full, _text(value)))
    return rows


def dropped_rows(result: Result) -> pd.DataFrame:
    """Return the candidates that were dropped, for another reason than that the region was segmented again."""
    rows = judged(result.candidates)
    return rows[~rows["is_kept"].to_numpy(bool)]


def sizes_in(result: Result) -> tuple[float, str]:
    """Return what a pixel counts, and the unit of all sizes in the page."""
    factor, unit = area_unit(result)
    return factor, "voxels" if unit == "px" and len(result.shape) == 3 else unit


def size_text(result: Result, area: float) -> str:
    """Return an area (volume) of so many pixels with its unit."""
    factor, unit = sizes_in(result)
    return f"{area:,.0f} {unit}" if factor == 1 else f"{area * factor:,.4g} {unit}"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or "none"
    return str(value) if value != {} else "none"

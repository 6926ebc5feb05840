"""Which parts of an image a report shows: some at random, and the worst by plain criteria."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment._report.facts import dropped_rows, spoken
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.pl._numbers import masks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd

    from spatialdata_segment._results import Result

_DIAMETERS = 7.0
"""Sides of a crop in diameters of the median kept object."""
_SIDES = 96, 512
"""Pixels of a crop's side, least and greatest."""
_AHEAD = 40
"""Objects of a criterion that are tried before it gives up finding a place of its own."""


@dataclass(frozen=True)
class Crop:
    """A part of the image to show.

    Attributes
    ----------
    box
        ``(y, x)`` px of the result's grid.
    z
        The plane, of a volume.
    why
        The criterion.
    what
        The object, or the numbers, by which it was chosen.
    target
        Mask and id of that object; None where there is none.
    """

    box: Box
    z: int | None
    why: str
    what: str
    target: tuple[str, int] | None = None


def crop_side(result: Result) -> int:
    """Return the side of the crops in px: nine diameters of the median kept object of the main mask."""
    rows = _kept(result.candidates_of(result.main))
    if not len(rows):
        return 256
    across = (rows["bbox_x_max"] - rows["bbox_x_min"]).to_numpy(float)
    return int(np.clip(round(_DIAMETERS * float(np.median(across))), *_SIDES))


def random_crops(result: Result, n: int, side: int, rng: np.random.Generator) -> list[Crop]:
    """Return crops around kept objects drawn at random, that do not lie over each other."""
    rows = _kept(result.candidates_of(result.main))
    order = rng.permutation(len(rows))[: 20 * n]
    at_random = "drawn at random"
    found = ((rows.iloc[i], at_random, f"around {result.main} {int(rows['cell_id'].iloc[i])}") for i in order)
    return [replace(crop, target=None) for crop in _apart(result, found, n, side, [])]


def worst_crops(result: Result, n: int, side: int) -> list[Crop]:
    """Return the worst places: of each criterion at most ``n``, of which but the first lie apart from all others.

    Where most candidates were dropped; the kept nuclei with the least share in their cells; the largest and the
    smallest kept objects. A criterion by which all are alike is left out. Ties fall to the first in the table.
    """
    found: list[Crop] = []
    for places in (
        _most_dropped(result, side),
        _least_overlap(result),
        _extreme(result, True),
        _extreme(result, False),
    ):
        found += _apart(result, places, n, side, found)
    return found


def _most_dropped(result: Result, side: int) -> Iterator[tuple[pd.Series, str, str]]:
    rows = dropped_rows(result)
    rows = rows[rows["area"].to_numpy() > 0]
    if not len(rows):
        return
    tile = (rows[["centroid_y", "centroid_x"]].to_numpy() // side).astype(np.int64)
    _, where, count = np.unique(tile, axis=0, return_inverse=True, return_counts=True)
    where = where.ravel()
    for at in np.argsort(-count, kind="stable"):
        of = rows[where == at]
        reasons = of["drop_reason"].astype(str).value_counts()
        told = ", ".join(f"{k} {spoken(str(r))}" for r, k in reasons.items() if k)
        middle = of[[c for c in of if str(c).startswith("centroid_")]].mean()
        if "centroid_z" in of:
            middle["centroid_z"] = of["centroid_z"].iloc[0]
        yield middle, "most dropped nearby", f"{count[at]} candidates dropped here: {told}"


def _least_overlap(result: Result) -> Iterator[tuple[pd.Series, str, str]]:
    if len(masks_of(result)) < 2:
        return
    rows = _kept(result.candidates_of("nucleus"))
    rows = rows[(rows["overlap_fraction"] < 1) & (rows["match"] > 0)]
    for _, row in rows.sort_values("overlap_fraction", kind="stable").iterrows():
        told = f"nucleus {int(row['cell_id'])}: {row['overlap_fraction']:.1%} of it lie in its cell"
        yield row, "least overlap", told


def _extreme(result: Result, largest: bool) -> Iterator[tuple[pd.Series, str, str]]:
    rows = _kept(result.candidates_of(result.main))
    if not len(rows) or rows["area"].min() == rows["area"].max():
        return
    what = "largest" if largest else "smallest"
    unit = "voxels" if len(result.shape) == 3 else "px"
    for _, row in rows.sort_values("area", ascending=not largest, kind="stable").iterrows():
        yield row, f"{what} {result.main}", f"{result.main} {int(row['cell_id'])}: {int(row['area']):,} {unit}"


def _apart(
    result: Result, places: Iterable[tuple[pd.Series, str, str]], n: int, side: int, taken: Sequence[Crop]
) -> list[Crop]:
    """Return the first crops around places that share less than half of their pixels with others; one in any case."""
    found: list[Crop] = []
    first: list[Crop] = []
    for tried, (row, why, what) in enumerate(places):
        if len(found) == n or tried == _AHEAD * n:
            break
        box, z = _around(result, row, side)
        crop = Crop(box, z, why, what, (str(row["kind"]), int(row["cell_id"])) if "kind" in row else None)
        first = first or [crop]
        if all(other.z != z or other.box.intersect(box).size * 2 < box.size for other in (*taken, *found)):
            found.append(crop)
    return found or first


def _around(result: Result, row: pd.Series, side: int) -> tuple[Box, int | None]:
    """Return a box of ``side`` px around a centroid, moved into the image, and the plane of the centroid."""
    start, stop = [], []
    for axis, length in zip("yx", result.shape[-2:], strict=True):
        low = int(np.clip(round(float(row[f"centroid_{axis}"]) - side / 2), 0, max(length - side, 0)))
        start.append(low)
        stop.append(min(low + side, length))
    z = None if len(result.shape) == 2 else int(np.clip(int(row["centroid_z"]), 0, result.shape[0] - 1))
    return Box(tuple(start), tuple(stop)), z


def _kept(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["is_kept"].to_numpy(bool)]

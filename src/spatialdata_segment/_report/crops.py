"""Which parts of an image a report shows: some at random, and the worst by plain criteria."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment._report.facts import dropped_rows, size_text, spoken
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.pl._dropped import among
from spatialdata_segment.pl._numbers import masks_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from spatialdata_segment._report.doubts import Doubt
    from spatialdata_segment._results import Result

_DIAMETERS = 7.0
"""Sides of a crop in diameters of the median kept object."""
_SIDES = 96, 512
"""Pixels of a crop's side, least and greatest."""
_SPARE = 4
"""Objects of a criterion that are tried beyond those wanted, for places apart from the others."""


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
        The criterion, or several of one object.
    what
        The numbers by which it was chosen.
    at
        ``(x, y)`` px of the object, or the middle of several.
    target
        Mask and id of that object; None where there is none.
    """

    box: Box
    z: int | None
    why: str
    what: str
    at: tuple[int, int]
    target: tuple[str, int] | None = None

    @property
    def text(self) -> str:
        """What it shows, and where in the image that lies."""
        named = "" if self.target is None else f"{self.target[0]} {self.target[1]}: "
        where = f"x {self.at[0]}, y {self.at[1]}" + ("" if self.z is None else f", z {self.z}")
        return f"{self.why[0].upper()}{self.why[1:]}: {named}{self.what}. At {where}."


def crop_side(result: Result) -> int:
    """Return the side of the crops in px: seven diameters of the median kept object of the main mask."""
    rows = _kept(result.candidates_of(result.main))
    if not len(rows):
        return 256
    across = (rows["bbox_x_max"] - rows["bbox_x_min"]).to_numpy(float)
    return int(np.clip(round(_DIAMETERS * float(np.median(across))), *_SIDES))


def random_crops(result: Result, n: int, side: int, rng: np.random.Generator) -> list[Crop]:
    """Return crops around kept objects drawn at random, that do not lie over each other."""
    rows = _kept(result.candidates_of(result.main))
    found: list[Crop] = []
    for i in rng.permutation(len(rows))[: 20 * n]:
        row = rows.iloc[i]
        crop = _crop(result, side, row, "drawn at random", f"around {result.main} {int(row['cell_id'])}")
        if len(found) < n and _is_apart(crop, found):
            found.append(replace(crop, target=None))
    return found


def worst_crops(result: Result, n: int, side: int, questioned: Sequence[Doubt] = ()) -> list[Crop]:
    """Return the worst places: of each criterion the first, and up to ``n`` that lie apart from all others.

    Where most candidates were dropped; the kept nuclei with the least share in their cells; cells that are called into
    question; the largest kept objects, and the smallest that the image's edge does not cut. Each says its rank. A
    criterion by which all are alike is left out. Ties fall to the first in the table. Of one object there is one crop,
    that names all criteria.
    """
    found: list[Crop] = []
    for places in (
        _most_dropped(result, side, n + _SPARE),
        _least_overlap(result, side),
        *(_questioned(result, side, doubt) for doubt in questioned),
        _extreme(result, side, largest=True),
        _extreme(result, side, largest=False),
    ):
        shown = 0
        for k, crop in enumerate(islice(places, n + _SPARE)):
            same = [i for i, other in enumerate(found) if crop.target is not None and other.target == crop.target]
            if same:
                other = found[same[0]]
                found[same[0]] = replace(other, why=f"{other.why}, {crop.why}", what=f"{other.what}; {crop.what}")
            elif k == 0 or _is_apart(crop, found):
                found.append(crop)
            else:
                continue
            shown += 1
            if shown == n:
                break
    return found


def _most_dropped(result: Result, side: int, n: int) -> list[Crop]:
    """Return crops where tiles of their size have most candidates that were dropped, by what the crops show."""
    rows = dropped_rows(result)
    rows = rows[rows["area"].to_numpy() > 0]
    if not len(rows):
        return []
    tile = (rows[["centroid_y", "centroid_x"]].to_numpy() // side).astype(np.int64)
    _, where, count = np.unique(tile, axis=0, return_inverse=True, return_counts=True)
    found = []
    for at in np.argsort(-count, kind="stable")[:n]:
        of = rows[where.ravel() == at]
        if "centroid_z" in of:  # the plane that meets most of them
            planes, times = np.unique(of["centroid_z"].to_numpy().astype(np.int64), return_counts=True)
            of = of[of["centroid_z"].to_numpy().astype(np.int64) == planes[times.argmax()]]
        crop = _crop(result, side, of[[c for c in of if str(c).startswith("centroid_")]].mean(), "", "")
        (top, left), (bottom, right) = crop.box.start, crop.box.stop
        shown = among(rows, (left, right, top, bottom), crop.z)
        reasons = shown["drop_reason"].astype(str).value_counts()
        told = ", ".join(f"{k} {spoken(str(r))}" for r, k in reasons.items() if k)
        some = "candidate" if len(shown) == 1 else "candidates"
        found.append((len(shown), replace(crop, what=f"{len(shown)} dropped {some}: {told}")))
    found.sort(key=lambda one: -one[0])
    return [replace(crop, why=f"{_nth(k)}most dropped nearby") for k, (_, crop) in enumerate(found, 1)]


def _least_overlap(result: Result, side: int) -> Iterator[Crop]:
    if len(masks_of(result)) < 2:
        return
    rows = _kept(result.candidates_of("nucleus"))
    rows = rows[(rows["overlap_fraction"] < 1) & (rows["match"] > 0)]
    for k, (_, row) in enumerate(rows.sort_values("overlap_fraction", kind="stable").iterrows(), 1):
        told = f"{row['overlap_fraction']:.1%} of it lie in its cell"
        yield _crop(result, side, row, f"{_nth(k)}least overlap", told)


def _questioned(result: Result, side: int, doubt: Doubt) -> Iterator[Crop]:
    rows = _kept(result.candidates_of(result.main))
    ids = rows["cell_id"].to_numpy()
    for i, what in zip(doubt.ids, doubt.what, strict=True):
        for at in np.flatnonzero(ids == i)[:1]:
            yield _crop(result, side, rows.iloc[at], doubt.why, what)


def _extreme(result: Result, side: int, *, largest: bool) -> Iterator[Crop]:
    rows = _kept(result.candidates_of(result.main))
    what = f"largest {result.main}"
    if not largest:
        what = f"smallest {result.main} off the image's edge"  # at the edge any is a part
        rows = rows[~_is_cut(result, rows)]
    if not len(rows) or rows["area"].min() == rows["area"].max():
        return
    for k, (_, row) in enumerate(rows.sort_values("area", ascending=not largest, kind="stable").iterrows(), 1):
        yield _crop(result, side, row, f"{_nth(k)}{what}", size_text(result, float(row["area"])))


def _crop(result: Result, side: int, row: pd.Series, why: str, what: str) -> Crop:
    """Return the crop around a candidate, or around a place."""
    box, z = _around(result, row, side)
    at = int(row["centroid_x"]), int(row["centroid_y"])
    return Crop(box, z, why, what, at, (str(row["kind"]), int(row["cell_id"])) if "kind" in row else None)


def _is_cut(result: Result, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Tell which objects touch the edge of the image."""
    cut = np.zeros(len(rows), np.bool_)
    for axis, length in zip("zyx"[-len(result.shape) :], result.shape, strict=True):
        if length > 1:
            cut |= (rows[f"bbox_{axis}_min"].to_numpy() <= 0) | (rows[f"bbox_{axis}_max"].to_numpy() >= length)
    return cut


def _is_apart(crop: Crop, others: Sequence[Crop]) -> bool:
    """Tell whether a crop shares less than half of its pixels with each of the others."""
    return all(other.z != crop.z or other.box.intersect(crop.box).size * 2 < crop.box.size for other in others)


def _nth(k: int) -> str:
    """Return a rank as it stands before a superlative; nothing for the first."""
    if k == 1:
        return ""
    return f"{k}{'th' if k % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(k % 10, 'th')} "


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

"""Which cells go and which come when a region is segmented again. Pure: objects and counts in, decisions out.

A cell is in the region when the pixel at its centroid is, whichever method found it: a rule that old and new cells
share, so that none is lost between two methods' anchors. A new cell from beyond the region's edge also comes where
most of its pixels belonged to cells that go: it stands for one of them. What stays keeps its pixels. A new cell that
would lose most of its pixels to what stays is another version of that, and is refused as covered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.measure import locate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Moments, Pairs
    from spatialdata_segment.core.objects import Objects

    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]
    Holds = Callable[[Ints], Flags]


def pixels_of(centroid: NDArray[np.float64]) -> Ints:
    """Return the pixels ``(n, ndim)`` that hold the centroids; the centre of pixel 0 is 0.0."""
    return np.floor(centroid + 0.5).astype(np.int64)


def replaced(old: Mapping[str, Moments], holds: Holds, *, linked: bool) -> dict[str, Ints]:
    """Return the ids that go, ascending, of each mask.

    Parameters
    ----------
    old
        What was measured of the masks ("nucleus", "cell") as they are.
    holds
        Tells which pixels ``(n, ndim)`` lie in the region.
    linked
        Whether equal ids of both masks are one cell: its nucleus then goes with it.
    """
    gone = {mask: holds(pixels_of(found.centroid)) for mask, found in old.items()}
    if linked:
        at, is_paired = locate(old["cell"].ids, old["nucleus"].ids)
        if is_paired.any():
            gone["nucleus"] = np.where(is_paired, gone["cell"][at], gone["nucleus"])
    return {mask: found.ids[gone[mask]] for mask, found in old.items()}


def arrivals(
    new: Mapping[str, Objects],
    shared: Mapping[str, Pairs],
    gone: Mapping[str, Ints],
    holds: Holds,
    partners: Pairs | None,
) -> tuple[dict[str, Flags], dict[str, Flags]]:
    """Return which new objects come, and which of them are covered by what stays.

    Parameters
    ----------
    new
        All candidates of each mask, as they were found.
    shared
        Pixels that candidates (``a``) share with the old objects (``b``) of the same mask.
    gone
        The old ids that go.
    holds
        Tells which pixels ``(n, ndim)`` lie in the region.
    partners
        Pixels that nuclei (``a``) and cells (``b``) share, where a nucleus comes with the cell that holds most of it.
    """
    come: dict[str, Flags] = {}
    covered: dict[str, Flags] = {}
    for mask, objects in new.items():
        pairs = shared[mask]
        at, _ = locate(objects.ids, pairs.a)
        is_gone = np.isin(pairs.b, gone[mask])
        freed, kept = np.zeros(len(objects), np.int64), np.zeros(len(objects), np.int64)
        np.add.at(freed, at[is_gone], pairs.count[is_gone])
        np.add.at(kept, at[~is_gone], pairs.count[~is_gone])
        come[mask] = holds(pixels_of(objects.centroid)) | (2 * freed > objects.area)
        covered[mask] = 2 * kept > objects.area
    if partners is not None and len(partners):
        nuclei, cells = new["nucleus"], new["cell"]
        n, n_found = locate(nuclei.ids, partners.a)
        c, c_found = locate(cells.ids, partners.b)
        most = n_found & c_found & (2 * partners.count > nuclei.area[n])
        come["nucleus"][n[most]] = come["cell"][c[most]]
    return come, covered


def clipped(objects: Objects, is_covered: Flags, left: Moments) -> Objects:
    """Return the objects as they are without the pixels that they lost.

    Parameters
    ----------
    objects
        As they were found.
    is_covered
        Those that are refused: they stay as they were found, with the reason.
    left
        What is left of the objects, measured; one that is not in it lost every pixel, and has an area of 0.
    """
    at, found = locate(left.ids, objects.ids)
    take = found & ~is_covered
    values: dict[str, NDArray[Any]] = {
        name: np.array(getattr(objects, name)) for name in ("area", "centroid", "bbox", "reason")
    }
    for name in ("area", "centroid", "bbox"):
        values[name][take] = getattr(left, name)[at[take]]
    values["area"][~found & ~is_covered] = 0
    values["reason"][is_covered & (objects.reason == 0)] = Reason.COVERED
    return replace(objects, **values)


def among(pairs: Pairs, nuclei: Ints, cells: Ints) -> Pairs:
    """Return the pairs of the nuclei and cells that are given, by their ids."""
    both = np.isin(pairs.a, nuclei) & np.isin(pairs.b, cells)
    return type(pairs)(pairs.a[both], pairs.b[both], pairs.count[both])

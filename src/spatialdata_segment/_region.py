"""Where cells are wanted: a region of interest on an image's grid."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import shapely
from dask.delayed import delayed
from scipy.ndimage import maximum_filter

from spatialdata_segment import _elements
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment.core.plan import Plan

BLOCK = {2: 1024, 3: 128}
"""Pixels along each axis of the blocks by which a region's mask is hashed, and kept."""


@dataclass(frozen=True)
class Region:
    """Where cells are wanted, on the image's grid: polygons in pixels (x, y), or a mask.

    Attributes
    ----------
    polygons
        Of a volume they go through all planes, or those of ``depth``.
    mask
        Lazy, boolean, ``([z], y, x)``.
    depth
        Lowest and highest z, in pixels.
    """

    polygons: shapely.Geometry | None
    mask: da.Array | None
    depth: tuple[float, float] | None = None

    def shards(self, plan: Plan) -> list[int]:
        """Return the shards whose cores share a pixel with the region."""
        every = range(len(plan))
        if self.polygons is not None:
            cores = [plan.core(i) for i in every]
            boxes = shapely.box(
                [c.start[-1] for c in cores], [c.start[-2] for c in cores],
                [c.stop[-1] for c in cores], [c.stop[-2] for c in cores],
            )  # fmt: skip
            near = shapely.intersects(self.polygons, boxes)
            if self.depth is not None:
                near &= [c.start[0] <= self.depth[1] and self.depth[0] <= c.stop[0] for c in cores]
            return [int(i) for i in np.flatnonzero(near)]
        assert self.mask is not None
        any_inside = da.compute(*(self.mask[plan.core(i).slices].any() for i in every))
        return [i for i, inside in zip(every, any_inside, strict=True) if inside]

    def widened(self, halo: tuple[int, ...]) -> Region:
        """Return the region with so many pixels more on each side, or somewhat more than that."""
        if self.polygons is not None:
            depth = None if self.depth is None else (self.depth[0] - halo[0], self.depth[1] + halo[0])
            return Region(_prepared(shapely.buffer(self.polygons, max(halo[-2:]), join_style="mitre")), None, depth)
        assert self.mask is not None
        wide = da.overlap.map_overlap(
            partial(_dilated, halo=halo), self.mask, depth=halo, boundary="none", dtype=bool, meta=self.mask._meta
        )
        return Region(None, wide)

    def holds(self, anchors: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which anchor pixels ``(n, ndim)`` lie inside."""
        if self.polygons is not None:
            inside: NDArray[np.bool_] = shapely.intersects_xy(self.polygons, anchors[:, -1] + 0.5, anchors[:, -2] + 0.5)
            if self.depth is not None:
                inside &= (self.depth[0] <= anchors[:, 0] + 0.5) & (anchors[:, 0] + 0.5 <= self.depth[1])
            return inside
        assert self.mask is not None
        if not len(anchors):
            return np.zeros(0, bool)
        return np.asarray(self.mask.vindex[tuple(anchors.T)].compute(), bool)

    def fingerprint(self) -> str:
        """Return a text that differs when the region does."""
        if self.polygons is not None:
            depth = b"" if self.depth is None else repr(self.depth).encode()
            return hashlib.sha256(shapely.to_wkb(self.polygons) + depth).hexdigest()
        assert self.mask is not None
        blocks = self.mask.rechunk(BLOCK[self.mask.ndim]).to_delayed().ravel()
        sums = da.compute(*(delayed(_crc)(b) for b in blocks))
        return hashlib.sha256(repr(sums).encode()).hexdigest()


def _crc(block: NDArray[np.bool_]) -> int:
    return zlib.crc32(np.ascontiguousarray(block).data)


def _dilated(mask: NDArray[np.bool_], halo: tuple[int, ...]) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = maximum_filter(mask, tuple(2 * h + 1 for h in halo), mode="constant")
    return out


def region_of(
    sdata: SpatialData,
    ref: _elements.ImageRef,
    roi_key: str | None,
    bounding_box: Sequence[float] | None,
    matrix: NDArray[np.float64],
    system: str,
) -> Region | None:
    """Return the region that is asked for, on the image's grid; None where none is.

    ``matrix`` leads from pixels (x, y[, z]) to the coordinate system ``system``, in which the region is given.
    """
    if roi_key is not None and bounding_box is not None:
        raise InputError("roi_key and bounding_box are both given: pass one of them")
    if roi_key is not None:
        found = _elements.roi_geometry(sdata, roi_key, ref, system)
        if isinstance(found, da.Array):
            return Region(None, found)
        _check_upright(matrix, f"roi_key={roi_key!r}, shapes,", system)
        return Region(_prepared(shapely.union_all(found)), None)
    return None if bounding_box is None else _box(bounding_box, matrix, system)


def _box(bounding_box: Sequence[float], matrix: NDArray[np.float64], system: str) -> Region:
    ndim = len(matrix) - 1
    try:
        values = np.ravel(np.asarray(bounding_box, float))
    except (TypeError, ValueError):
        values = np.zeros(0)
    deep = len(values) == 6 and ndim == 3
    low, high = values[: len(values) // 2], values[len(values) // 2 :]
    if not (deep or len(values) == 4) or not np.isfinite(values).all() or (low >= high).any():
        volume = ", or (x_min, y_min, z_min, x_max, y_max, z_max)," if ndim == 3 else ""
        raise InputError(
            f"bounding_box={bounding_box}, expected (x_min, y_min, x_max, y_max){volume} in the coordinate system "
            f"{system!r}"
        )
    _check_upright(matrix, f"bounding_box={bounding_box}", system)
    inverse = np.linalg.inv(matrix)
    flat = inverse[np.ix_([0, 1, -1], [0, 1, -1])]
    corners = shapely.get_coordinates(shapely.box(*low[:2].tolist(), *high[:2].tolist()))
    moved = corners @ flat[:2, :2].T + flat[:2, 2]
    depth = None
    if deep:
        ends = sorted(inverse[2, 2] * z + inverse[2, 3] for z in (float(low[2]), float(high[2])))
        depth = (ends[0], ends[1])
    return Region(_prepared(shapely.polygons(moved)), None, depth)


def _check_upright(matrix: NDArray[np.float64], what: str, system: str) -> None:
    """Raise where z of a volume and x, y of the coordinate system depend on each other."""
    if len(matrix) < 4:
        return
    mixed = np.r_[matrix[:2, 2], matrix[2, :2]]
    if not np.allclose(mixed, 0, atol=1e-9 * float(np.abs(matrix[:3, :3]).max())):
        raise InputError(
            f"{what} in the coordinate system {system!r}, in which the planes of the image are tilted: expected one "
            "that keeps z apart from x and y; pass another to_coordinate_system, or labels on the image's grid as "
            "roi_key"
        )


def _prepared(geometry: shapely.Geometry) -> shapely.Geometry:
    shapely.prepare(geometry)
    return geometry

"""Synthetic two-channel tissue of any size, with ground truth: made lazily, block by block, without state.

A crop computed alone holds the same bits as the same crop of the whole. The pixels are made in
:mod:`._tissue_kernel`; here are the parameters, dask and SpatialData.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    Kind = Literal["image", "nuclei", "cells"]

_FRACTIONS = "density", "touching", "multinucleated", "anucleate", "debris", "uneven_light"


class TissueBlock(NamedTuple):
    """One box of a tissue: ``image`` (c, [z], y, x) uint16, ``nuclei`` and ``cells`` ([z], y, x) labels."""

    image: NDArray[np.uint16]
    nuclei: NDArray[np.unsignedinteger[Any]]
    cells: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Tissue:
    """A tissue of cells that touch, as a nuclear and a membrane stain, with ground truth.

    Cells are the regions of an additively weighted Voronoi diagram of a jittered grid, cut at a radius, with
    borders bent by smooth noise; nuclei are ellipses inside. Every random number is a hash of the seed and a
    position, so the pixels do not depend on chunks; nor on ``shape``, which only cuts (ids do depend on it).

    Parameters
    ----------
    shape
        Pixels of the image, ``(y, x)`` or ``(z, y, x)``.
    seed
        Any integer.
    cell_diameter
        Mean diameter (px of the y and x axes) of the cells where they fill the space; at least 6. A cell that
        has no neighbours is up to a quarter wider.
    density
        Fraction of the sites of the grid that hold a cell. Half of the empty ones are single, half lie
        together in holes.
    touching
        Fraction of the cells that share borders with their neighbours. The others keep some 2 px or a tenth
        of the diameter away, and twice that from each other.
    multinucleated
        Fraction of the cells that have two or three nuclei.
    anucleate
        Fraction of the cells that have none.
    debris
        Bright specks per site of the grid (about one cell's area). They are not in the truth.
    uneven_light
        Fraction of the light that is lost where it is darkest; it varies over some 40 diameters.
    noise
        Shot and read noise; 1 is that of a common camera, 0 is none.
    blur
        Half width (px) of the edges.
    anisotropy
        Distance of two planes over that of two pixels; acts in 3D.
    channels
        Names: the nuclear stain, then the membrane stain. One name gives the nuclear stain alone.

    Raises
    ------
    InputError
        A parameter out of its range.

    Notes
    -----
    The ids are positions: the cell of site ``s`` (raster order of the grid) has the id ``3 s + 1``, its
    nuclei ``3 s + 1``, ``3 s + 2`` and ``3 s + 3``; :meth:`cell_of` leads from one to the other.

    Examples
    --------
    >>> tissue = Tissue((16384, 16384), seed=7)
    >>> tissue.image(chunks=1024).shape
    (2, 16384, 16384)
    """

    shape: tuple[int, ...] = (1024, 1024)
    seed: int = 0
    cell_diameter: float = 24.0
    density: float = 0.92
    touching: float = 0.9
    multinucleated: float = 0.03
    anucleate: float = 0.0
    debris: float = 0.02
    uneven_light: float = 0.3
    noise: float = 1.0
    blur: float = 1.5
    anisotropy: float = 1.0
    channels: tuple[str, ...] = ("DAPI", "WGA")

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.shape) not in (2, 3) or min(self.shape) < 1:
            raise InputError(f"shape {self.shape}: expected (y, x) or (z, y, x), each at least 1.")
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: expected a fraction between 0 and 1.")
        for name, low in (("cell_diameter", 6), ("noise", 0), ("blur", 0.5), ("anisotropy", 0.1)):
            if not low <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: expected a number of at least {low}.")
        if not 1 <= len(set(self.channels)) == len(self.channels) <= 2:
            raise InputError(f"channels {self.channels}: expected one or two different names.")

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def label_dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Type of the labels: uint32, or uint64 where the ids ask for it."""
        from spatialdata_segment.testing._tissue_kernel import MAX_NUCLEI

        most = MAX_NUCLEI * (math.prod(self._grid[1]) + 1)
        return np.dtype(np.uint32 if most <= np.iinfo(np.uint32).max else np.uint64)

    @cached_property
    def _pitch(self) -> float:
        """Distance (px) of two sites: that at which cells of the diameter fill the space."""
        return self.cell_diameter * (math.sqrt(math.pi / 4) if self.ndim == 2 else math.cbrt(math.pi / 6))

    @cached_property
    def _grid(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First site and number of sites (z, y, x); some lie outside the image and reach into it."""
        from spatialdata_segment.testing._tissue_kernel import reach_of

        rim = math.ceil(reach_of(self.cell_diameter, self.blur) / self._pitch) + 4
        low, sites = [-rim] * self.ndim, [math.ceil(n / self._pitch) + 2 * rim for n in self.shape]
        if self.ndim == 2:
            return (0, *low), (1, *sites)
        sites[0] = math.ceil(self.shape[0] * self.anisotropy / self._pitch) + 2 * rim
        return tuple(low), tuple(sites)

    def block(self, box: Box) -> TissueBlock:
        """Return the pixels and the truth of one box, the same bits as in the whole.

        Parameters
        ----------
        box
            Half-open, in pixels of the whole image, axes ``([z], y, x)``.
        """
        image, nuclei, cells = self._render(box, {"image", "nuclei", "cells"})
        return TissueBlock(image, nuclei, cells)

    def image(self, chunks: Any = 1024) -> da.Array:
        """Return the image as a lazy ``(c, [z], y, x)`` uint16 array.

        Parameters
        ----------
        chunks
            Of the axes ``([z], y, x)``, in any form that dask takes; all channels lie in one chunk.
        """
        return self._lazy("image", chunks)

    def nuclei(self, chunks: Any = 1024) -> da.Array:
        """Return the true nuclei as lazy ``([z], y, x)`` labels; ``chunks`` as in :meth:`image`."""
        return self._lazy("nuclei", chunks)

    def cells(self, chunks: Any = 1024) -> da.Array:
        """Return the true cells as lazy ``([z], y, x)`` labels; ``chunks`` as in :meth:`image`."""
        return self._lazy("cells", chunks)

    @staticmethod
    def cell_of(ids: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the ids of the cells that hold the nuclei ``ids``; 0 stays 0."""
        from spatialdata_segment.testing._tissue_kernel import MAX_NUCLEI

        site = (np.maximum(ids, 1) - 1) // MAX_NUCLEI
        return np.where(ids == 0, 0, site * MAX_NUCLEI + 1).astype(ids.dtype)

    def to_spatialdata(
        self, chunks: Any = 1024, scale_factors: Sequence[int] | None = None, *, truth: bool = False
    ) -> SpatialData:
        """Return a lazy SpatialData object with the image ``image``.

        Parameters
        ----------
        chunks
            As in :meth:`image`.
        scale_factors
            Of the image's pyramid, each relative to the scale before; None gives one scale.
        truth
            Add the labels elements ``truth_nuclei`` and ``truth_cells`` (one scale).
        """
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, Labels3DModel

        axes = ("y", "x") if self.ndim == 2 else ("z", "y", "x")
        image, labels = (Image2DModel, Labels2DModel) if self.ndim == 2 else (Image3DModel, Labels3DModel)
        parsed = image.parse(
            self.image(chunks), dims=("c", *axes), c_coords=list(self.channels), scale_factors=scale_factors
        )
        masks = {"truth_nuclei": self.nuclei, "truth_cells": self.cells} if truth else {}
        return SpatialData(
            images={"image": parsed},
            labels={key: labels.parse(make(chunks), dims=axes) for key, make in masks.items()},
        )

    def _lazy(self, kind: Kind, chunks: Any) -> da.Array:
        import dask.array as da

        split = da.core.normalize_chunks(chunks, self.shape, dtype=np.uint16)
        dtype = np.dtype(np.uint16) if kind == "image" else self.label_dtype
        if kind == "image":
            split = ((len(self.channels),), *split)
        lazy: da.Array = da.map_blocks(
            _chunk, chunks=split, dtype=dtype, meta=np.empty((0,) * len(split), dtype), tissue=self, kind=kind
        )
        return lazy

    def _render(self, box: Box, kinds: set[Kind]) -> tuple[Any, Any, Any]:
        from spatialdata_segment.testing import _tissue_kernel as kernel

        if box.ndim != self.ndim or box.intersect(Box.whole(self.shape)) != box:
            raise InputError(f"Box {box}: expected one inside the image of shape {self.shape}.")
        planar = self.ndim == 2
        full = (1, *box.shape) if planar else box.shape
        none = (1, 0, 0)
        image = np.empty((len(self.channels), *full) if "image" in kinds else (0, *none), np.uint16)
        nuclei = np.empty(full if "nuclei" in kinds else none, self.label_dtype)
        cells = np.empty(full if "cells" in kinds else none, self.label_dtype)
        if box.size:
            start = (0, *box.start) if planar else box.start
            kernel.render(
                np.uint64(self.seed % 2**64),
                np.array(self._grid[0], np.int64),
                np.array(self._grid[1], np.int64),
                np.array(start, np.int64),
                self._pitch,
                float(self.cell_diameter),
                float(self.density),
                float(self.touching),
                float(self.multinucleated),
                float(self.anucleate),
                float(self.debris),
                float(self.uneven_light),
                float(self.noise),
                np.float32(self.blur),
                float(self.anisotropy),
                planar,
                image,
                nuclei,
                cells,
            )
        if planar:
            return image[:, 0], nuclei[0], cells[0]
        return image, nuclei, cells


def _chunk(tissue: Tissue, kind: Kind, block_info: dict[Any, Any] | None = None) -> NDArray[Any]:
    """Return one chunk of a lazy array."""
    assert block_info is not None
    where = block_info[None]["array-location"][-tissue.ndim :]
    box = Box(tuple(int(a) for a, _ in where), tuple(int(b) for _, b in where))
    made = tissue._render(box, {kind})
    result: NDArray[Any] = made[("image", "nuclei", "cells").index(kind)]
    return result

"""`poly2mask`: the polygons of a folder drawn as a label image on disk."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr

from spatialdata_segment._raster import Drawing
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.errors import InputError, MissingError, SegmentationWarning
from spatialdata_segment.formats._files import replacing
from spatialdata_segment.formats._folders import METADATA, POLYGONS, folder_at, image_shape, output_at
from spatialdata_segment.formats._plan import OutputPlan

if TYPE_CHECKING:
    import os

_CHUNK = 1024
MASK = "mask.zarr"
LARGEST = 1_000_000
"""px a side of an image whose shape nobody tells."""
_COPIES, _PER_BLOCK = 4, 4_000
"""Copies of a block on its way to the disk, compressed ones included, and bytes of a block that waits."""


def poly2mask(
    folder: str | os.PathLike[str], *, output_dir: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Path:
    """Draw the polygons of a folder as a label image, block by block.

    Of a folder that ``infer`` wrote this gives back the labels exactly. Where polygons overlap, the first of the file
    wins (see `polygons_to_labels`). In memory are the coordinates (8 B a vertex where they are whole) and a block a
    thread.

    Parameters
    ----------
    folder
        Holds ``polygons.parquet``, and ``metadata.json`` with the ``image-shape`` ``[y, x]`` (``[z, y, x]`` for
        polygons with a column ``z_index``). Without metadata the shape is the least that holds the polygons.
    output_dir
        Where to write; None: into the folder itself. It is made if need be.
    overwrite
        Whether to replace a ``mask.zarr``.

    Returns
    -------
    The path of ``mask.zarr``: a zarr array (format 2) of the labels ``(y, x)`` or ``(z, y, x)``, uint32 (uint64 where
    an id needs it), 0 = background; the ids are those of the polygons.

    Raises
    ------
    MissingError
        No such folder, or no polygons in it.
    ExistsError
        The output is there.
    InputError
        Metadata without a shape, polygons that cannot be drawn.
    """
    return ready_mask(folder, output_dir=output_dir, overwrite=overwrite).write()


@dataclass(frozen=True)
class ReadyMask:
    """Polygons that are read and checked, and where they are drawn.

    Attributes
    ----------
    drawing
        The polygons.
    shape
        ``([z], y, x)`` of the labels, px.
    target
        The path of ``mask.zarr``.
    """

    drawing: Drawing
    shape: tuple[int, ...]
    target: Path

    @property
    def chunks(self) -> tuple[int, ...]:
        """Pixels of a block."""
        return (1,) * (len(self.shape) - 2) + tuple(max(1, min(_CHUNK, n)) for n in self.shape[-2:])

    def plan(self) -> OutputPlan:
        """Return what `write` would do."""
        kind = self.drawing.dtype
        n_blocks = prod(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))
        blocks = _COPIES * cores() * prod(self.chunks) * kind.itemsize + _PER_BLOCK * n_blocks
        planes = self.shape[0] if len(self.shape) == 3 else None
        memory = self.drawing.nbytes + blocks
        return OutputPlan(self.shape, str(kind), len(self.drawing), planes, memory, 0, {str(self.target): "labels"})

    def write(self) -> Path:
        """Draw them, and return the path."""
        labels = self.drawing.draw(self.shape, self.chunks)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.target) as new:
            array: Any = zarr.create_array(
                new,
                shape=self.shape,
                chunks=self.chunks,
                dtype=labels.dtype,
                fill_value=0,
                zarr_format=2,
                attributes={"_ARRAY_DIMENSIONS": list("zyx"[-len(self.shape) :])},
            )
            da.store([labels], [array], lock=False)
        return self.target


def ready_mask(
    folder: str | os.PathLike[str], *, output_dir: str | os.PathLike[str] | None, overwrite: bool
) -> ReadyMask:
    """Read and check all that `poly2mask` needs, and write nothing; it raises what that does."""
    source = folder_at(folder)
    target = output_at(MASK, source, output_dir, overwrite)
    if not (source / POLYGONS).exists():
        raise MissingError(
            f"{source} holds no {POLYGONS}: expected a folder that infer wrote, or polygons of that name"
        )
    shape = image_shape(source)
    drawing = Drawing.of_file(source / POLYGONS)
    planes = 0 if drawing.z is None else len(np.unique(drawing.z))
    if shape is not None and not (planes > 0 if len(shape) == 3 else planes < 2):
        said = f"{planes} planes" if planes else "no column z_index"
        raise InputError(
            f"{source / POLYGONS} has {said}, and the image-shape in {source / METADATA} is {list(shape)}: expected "
            "[y, x] for a plane, [z, y, x] for polygons with z_index"
        )
    if shape is None:
        shape = drawing.shape()
        if max(shape[-2:]) > LARGEST:
            raise InputError(
                f"the polygons of {source / POLYGONS} reach to {list(shape)} px, expected at most {LARGEST:,} a side: "
                f"give the image-shape in {METADATA}, or check that the coordinates are px"
            )
    elif outside := drawing.outside(shape):
        warnings.warn(
            f"{outside} of {len(drawing)} polygons of {source / POLYGONS} lie outside of the {list(shape)} px: "
            "left out",
            SegmentationWarning,
            stacklevel=3,
        )
    return ReadyMask(drawing, tuple(shape), target)

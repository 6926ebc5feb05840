"""``_seg.npy``, the file of Cellpose's GUI."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._images import SUFFIXES
from spatialdata_segment._polygons import as_planes, check_positive, ndim_of
from spatialdata_segment.core.measure import map_labels
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

_BAND = 1 << 20
"""Pixels that are worked on at once."""


def write_seg_npy(
    path: str | os.PathLike[str],
    labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree,
    *,
    image_path: str | os.PathLike[str] | None = None,
    channels: Sequence[int] = (0, 0),
    diameter: float | None = None,
) -> None:
    """Write a label image as a ``_seg.npy`` that the GUI of Cellpose opens; all of it is in memory.

    Fields: ``masks`` and ``outlines`` (the pixels of objects beside other pixels), uint16, or uint32 above 65,534
    objects, with the ids 1..n in the order of the ids, which is what the GUI makes of others; ``cell_id``, the ids
    before, which the GUI ignores; ``filename``, ``chan_choose``, ``ismanual``, ``diameter`` and ``est_diam``; and
    ``flows``, empty as the GUI has them before a network has run. It shows the masks and lets one edit them; views of
    flows and probability are blank, and masks are not computed again with other thresholds, which wants the network's
    maps.

    A file of the GUI is one pickle, which is read as a whole, so that it is written as a whole as well: 8 bytes a pixel
    in memory while it is, up to 14 for labels of 64 bits, and 16 where there are more objects than 16 bits count; and
    a row of blocks. Labels are read once.

    Parameters
    ----------
    path
        The file, which the GUI wants named ``IMAGE_seg.npy`` beside the image; one that is there is replaced.
    labels
        ``(y, x)`` or ``(z, y, x)``, integer, 0 = background; of several scales the finest.
    image_path
        The image, which the GUI opens along, and without which it opens no file; one of the same name beside the file
        does as well. None: the image beside the file that this is named after, if it is there; else its name without
        a suffix, and the GUI has to be given the image first.
    channels
        The two channels by Cellpose's codes (0 grey, 1 red, 2 green, 3 blue).
    diameter
        px. None: that of the circle with the median area of the objects.

    Raises
    ------
    InputError
        Other axes or types, negative ids, channels that are no two codes.

    Notes
    -----
    What is needed is what ``_load_seg`` of ``cellpose/gui/io.py`` reads, of Cellpose 3 and 4.
    """
    if len(channels) != 2 or not all(c in (0, 1, 2, 3) for c in channels):
        raise InputError(f"channels={channels!r}: expected two of the codes 0, 1, 2, 3, such as (2, 3)")
    masks, ids = _numbered(as_planes(labels))
    size = _diameter(masks, len(ids)) if diameter is None else float(diameter)
    file = Path(path)
    fields: dict[str, Any] = {
        "masks": masks,
        "outlines": _outlines(masks),
        "cell_id": ids,
        "filename": str(_image_beside(file) if image_path is None else image_path),
        "chan_choose": list(channels),
        "ismanual": np.zeros(len(ids), bool),
        "flows": [[], [], [], [], [[]]],
        "diameter": size,
        "est_diam": size,
    }
    if ndim_of(labels) == 2:
        fields |= {name: fields[name][0] for name in ("masks", "outlines")}
    with replacing(path) as new, new.open("wb") as target:
        np.save(target, np.array(fields, dtype=object), allow_pickle=True)


def _image_beside(file: Path) -> Path:
    """Return the image that a file is named after, if it is there, else its name without a suffix."""
    bare = file.with_name(file.name.removesuffix("_seg.npy"))
    there = (bare.with_name(bare.name + end) for ends in SUFFIXES.values() for end in ends)
    return next((image for image in there if image.is_file()), bare)


def _numbered(planes: da.Array) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Return the labels as 1..n in order of their ids, and the ids; they are read once."""
    pixels = np.empty(planes.shape, planes.dtype)
    z_spans, y_spans = (pairwise(np.cumsum((0, *sizes)).tolist()) for sizes in planes.chunks[:2])
    for (z0, z1), (y0, y1) in product(z_spans, y_spans):  # a row of blocks, wherever it is computed
        rows = planes[z0:z1, y0:y1].compute()
        _check(rows)
        pixels[z0:z1, y0:y1] = rows
    ids = np.unique(np.concatenate([_ids(pixels[at]) for at in _bands(planes.shape)] or [np.zeros(0, np.int64)]))
    kind = np.dtype(np.uint16 if len(ids) < 2**16 - 1 else np.uint32)
    masks = np.empty(planes.shape, kind)
    new = np.arange(1, len(ids) + 1)
    for at in _bands(planes.shape):
        masks[at] = map_labels(pixels[at], ids, new, kind)
    return masks, ids


def _check(pixels: NDArray[np.integer]) -> None:
    check_positive(pixels)
    if pixels.dtype == np.uint64 and pixels.max(initial=0) >= 2**63:
        raise InputError(f"labels hold the id {pixels.max()}; expected ids below 2**63: relabel them.")


def _ids(pixels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the ids in some rows."""
    flat = pixels.ravel()
    first = flat[np.flatnonzero(np.diff(flat, prepend=flat.dtype.type(0)))]  # of runs: there are fewer of them
    return np.unique(first[first != 0]).astype(np.int64)


def _bands(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Give planes and rows of them, about a million pixels."""
    rows = max(1, _BAND // max(1, shape[2]))
    for z in range(shape[0]):
        for y in range(0, shape[1], rows):
            yield z, slice(y, y + rows)


def _outlines(masks: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Return the pixels of objects that have one of another label, or the image's edge, on one of four sides."""
    found = np.empty_like(masks)
    for z, rows in _bands(masks.shape):
        first = max(0, rows.start - 1)
        part = masks[z, first : rows.stop + 1]
        found[z, rows] = (part * _is_outline(part[None])[0])[rows.start - first :][: rows.stop - rows.start]
    return found


def _is_outline(masks: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell which pixels of objects have one of another label, or the image's edge, on one of four sides."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    inner = padded[:, 1:-1, 1:-1]
    sides = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    found: NDArray[np.bool_] = np.logical_or.reduce([inner != side for side in sides]) & (inner > 0)
    return found


def _diameter(masks: NDArray[np.integer], n: int) -> float:
    if not n:
        return 30.0
    areas = [np.zeros(n + 1, np.int64) for _ in masks]
    for z, rows in _bands(masks.shape):
        areas[z] += np.bincount(masks[z, rows].ravel(), minlength=n + 1)
    seen = np.concatenate([area[1:][area[1:] > 0] for area in areas])
    return float(2 * np.sqrt(np.median(seen) / np.pi))

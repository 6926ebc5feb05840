"""Label images from files, lazily: TIFF, zarr and OME-Zarr, NumPy, ``_seg.npy`` of Cellpose, PNG."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import zarr

from spatialdata_segment._images.series import lazy_series
from spatialdata_segment.errors import InputError, SegmentationError
from spatialdata_segment.formats._files import existing, unreadable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

_BLOCK = 2048
_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar", "_frombuffer")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What a pickle may call that holds arrays, numbers and text."""


def read_labels(path: str | os.PathLike[str]) -> da.Array:
    """Open a label image of any program, lazily where the file allows it.

    Parameters
    ----------
    path
        ``.tif`` or ``.tiff`` (read tile by tile), a folder of zarr (an array, or OME-Zarr, of which the finest level is
        taken), ``.npy``, ``_seg.npy`` of Cellpose (no code in it is run), or a picture (``.png``).

    Returns
    -------
    ``(y, x)`` or ``(z, y, x)``, integer, 0 = background; axes of length 1 in front are left out. Numbers with a point,
    as ImageJ writes labels, must be whole, and become uint32.

    Raises
    ------
    MissingError
        No such file.
    InputError
        Another format, a broken file, other axes, no whole numbers.
    """
    file = existing(path, "label image")
    try:
        pixels = _reader(file)(file)
        while pixels.ndim > 2 and pixels.shape[0] == 1:
            pixels = pixels[0]
        if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "iuf":
            raise InputError(f"it is of type {pixels.dtype} and shape {pixels.shape}: expected integers ([z], y, x)")
    except SegmentationError as error:
        raise InputError(f"{file}: {error}") from error
    except Exception as error:
        raise unreadable(file, error, _SAID) from error
    lazy = pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=_chunks(pixels.ndim), name=False)
    if not lazy.dtype.isnative:
        lazy = lazy.astype(lazy.dtype.newbyteorder("="))
    if lazy.dtype.kind == "f":
        lazy = da.map_blocks(_whole, lazy, file, dtype=np.uint32, meta=np.zeros((0,) * lazy.ndim, np.uint32))
    return cast("da.Array", lazy)


_SAID = "TIFF, zarr, .npy, _seg.npy of Cellpose or PNG"


def _chunks(ndim: int) -> tuple[int, ...]:
    return (*(1,) * (ndim - 2), _BLOCK, _BLOCK)


def _reader(file: Path) -> Callable[[Path], Any]:
    suffix = file.suffix.lower()
    if file.is_dir():
        return _zarr
    if suffix in (".tif", ".tiff", ".btf"):
        return _tiff
    if suffix == ".npy":
        return _seg_npy if file.name.endswith("_seg.npy") else _npy
    if suffix in (".png", ".bmp", ".gif"):
        return _picture
    raise InputError(f"labels are read from {_SAID}; the suffix {suffix!r} is none of them")


def _tiff(file: Path) -> Any:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        letters = (
            series.axes if {"Y", "X"} <= set(series.axes) else ("Q" * len(series.shape) + "YX")[-len(series.shape) :]
        )
        return lazy_series(file, 0, series, letters)[0]


def _zarr(folder: Path) -> Any:
    node = zarr.open(folder, mode="r")
    if isinstance(node, zarr.Array):
        return da.from_zarr(node)
    said: Any = node.attrs.asdict()
    scales = said.get("ome", said).get("multiscales")
    if not scales:
        raise InputError(
            f"it is a group of {sorted(node.keys())} and no OME-Zarr: name an array or a labels group in it"
        )
    return da.from_zarr(node[scales[0]["datasets"][0]["path"]])


def _npy(file: Path) -> Any:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _seg_npy(file: Path) -> Any:
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(opened)
        content = _Unpickler(opened).load()
    fields = content.item() if isinstance(content, np.ndarray) else content
    if not isinstance(fields, dict) or "masks" not in fields:
        raise InputError("it has no 'masks': expected what the GUI of Cellpose saves")
    masks = np.asarray(fields["masks"])
    return masks + 1 if masks.dtype.kind == "i" and masks.min(initial=0) == -1 else masks  # as old versions counted


def _picture(file: Path) -> Any:
    from skimage.io import imread

    return imread(file)


class _Unpickler(pickle.Unpickler):
    """Reads arrays, numbers and text, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"it asks for {module}.{name}, and no code in a file is run")
        return super().find_class(module, name)


def _whole(block: np.ndarray[Any, Any], file: Path) -> np.ndarray[Any, Any]:
    if not ((block >= 0) & (block == np.floor(block)) & (block < 2**32)).all():
        raise InputError(f"{file} holds numbers that are no labels: expected whole ones, 0 and more")
    return block.astype(np.uint32)

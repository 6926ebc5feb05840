"""Arrays in files as dask arrays, whose errors name the file."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KEPT_BYTES = 128_000_000
"""Of decoded blocks of a file that is not tiled."""


class Pixels:
    """An array in a file, as dask reads it.

    Parameters
    ----------
    array
        Of zarr.
    path
        What errors name.
    """

    def __init__(self, array: Any, path: Path) -> None:
        self._array, self._path = array, path
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array[key])
        except Exception as error:  # codecs raise many kinds for what is spoilt
            said = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self._path} cannot be decoded ({said}): it is damaged, or compressed by what is not known here; "
                "copy it again, or save it as a tiled TIFF with deflate or LZW"
            ) from error


class Kept:
    """An array whose blocks are decoded once, while there is room: those that windows side by side ask for again.

    The blocks used last are kept, at least one. Threads that ask for the same one wait for the first.

    Parameters
    ----------
    pixels
        The array.
    blocks
        Pixels of a block along each axis.
    room
        Bytes of the blocks that are kept.
    """

    def __init__(self, pixels: Pixels, blocks: Sequence[int], room: int = KEPT_BYTES) -> None:
        self._pixels, self._blocks, self._room = pixels, tuple(blocks), room
        self.shape, self.dtype, self.ndim = pixels.shape, pixels.dtype, pixels.ndim
        self._known: OrderedDict[tuple[int, ...], Future[NDArray[Any]]] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, key: Any) -> NDArray[Any]:
        index = key if isinstance(key, tuple) else (key,)
        if len(index) != self.ndim or not all(map(_is_plain, index)):
            return self._pixels[key]
        sides = zip(index, self.shape, strict=True)
        spans = [range(n)[k : k + 1 or n] if is_whole(k) else range(n)[k] for k, n in sides]
        out = self._window([(s.start, s.stop) for s in spans])
        return out[tuple(0 if is_whole(k) else slice(None) for k in index)]

    def _window(self, spans: Sequence[tuple[int, int]]) -> NDArray[Any]:
        """Return the pixels of a box, put together from blocks."""
        out = np.empty([max(0, stop - start) for start, stop in spans], self.dtype)
        if not out.size:
            return out
        sides = zip(spans, self._blocks, strict=True)
        for at in product(*(range(start // b, -(-stop // b)) for (start, stop), b in sides)):
            first = [i * b for i, b in zip(at, self._blocks, strict=True)]
            low = [max(f, start) for f, (start, _) in zip(first, spans, strict=True)]
            high = [min(f + b, stop) for f, b, (_, stop) in zip(first, self._blocks, spans, strict=True)]
            to = tuple(slice(a - start, e - start) for a, e, (start, _) in zip(low, high, spans, strict=True))
            out[to] = self._block(at)[tuple(slice(a - f, e - f) for a, e, f in zip(low, high, first, strict=True))]
        return out

    def _block(self, at: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            is_mine = at not in self._known
            future = self._known.setdefault(at, Future())
            self._known.move_to_end(at)
        if not is_mine:
            return future.result()
        try:
            found = self._pixels[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, self._blocks, strict=True))]
        except BaseException as error:
            with self._lock:
                del self._known[at]
            future.set_exception(error)
            raise
        future.set_result(found)
        self._drop()
        return found

    def _drop(self) -> None:
        with self._lock:
            done = {at: f.result().nbytes for at, f in self._known.items() if f.done()}
            total = sum(done.values())
            for at, nbytes in list(done.items())[:-1]:
                if total <= self._room:
                    break
                total -= nbytes
                del self._known[at]


def _is_plain(key: Any) -> bool:
    """Tell a number, and a slice without steps."""
    return is_whole(key) or (isinstance(key, slice) and key.step in (None, 1))


def lazy_array(array: Any, blocks: Sequence[int], path: Path, *, keeps: bool = False) -> da.Array:
    """Return an array in a file that is read block by block; where it ``keeps`` them, those used last are kept."""
    pixels = Pixels(array, path)
    lazy: da.Array = da.from_array(Kept(pixels, blocks) if keeps else pixels, chunks=tuple(blocks), name=False)
    return lazy

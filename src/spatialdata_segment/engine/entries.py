"""Entries of the scratch store: one file each, written whole or not at all, with checksums inside.

An entry is a JSON header and named arrays, each cut into tiles that are compressed alone, so that a part of
it is read without the rest. A file appears under its name only when it is complete; a file that was damaged
later is told by its checksums.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import zlib
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_MAGIC = b"sdseg-1\n"
_TILE = {1: 1 << 20, 2: 256, 3: 48}


class DamagedError(Exception):
    """An entry whose bytes are not those that were written."""


def write_entry(path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None) -> int:
    """Write an entry atomically.

    Returns
    -------
    The bytes of the file.

    Raises
    ------
    ScratchError
        If the disk is full or the folder cannot be written.
    """
    header: dict[str, Any] = {"meta": dict(meta or {}), "arrays": {}}
    body: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        tiles = []
        for _, box in _tiles(data.shape):
            raw = np.ascontiguousarray(data[box.slices])
            packed = blosc.compress(raw, b"lz4", 1, blosc.SHUFFLE) if raw.any() else b""
            tiles.append((offset, len(packed), zlib.crc32(packed)))
            body.append(packed)
            offset += len(packed)
        header["arrays"][name] = {"dtype": data.dtype.str, "shape": data.shape, "tiles": tiles}
    text = json.dumps(header).encode()
    lead = _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(lead)
            file.write(text)
            file.writelines(body)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise scratch_error(path, error, offset + len(text)) from error
    return offset + len(text) + len(lead)


def scratch_error(path: Path, error: OSError, needed: int = 0) -> ScratchError:
    """Say what went wrong with a file of the scratch, and what to do."""
    if error.errno == errno.ENOSPC:
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        return ScratchError(
            f"no space left for {path}: {needed:,} bytes needed, {free:,} free. Make room, or pass scratch= on "
            "another disk; finished shards are kept and the same call goes on from them"
        )
    return ScratchError(f"cannot write {path}: {error.strerror or error}. Pass scratch= with a folder that is writable")


class Entry:
    """An entry on disk. Opening it reads and checks the header; arrays are read on demand, checked too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                lead = file.read(len(_MAGIC) + 12)
                if len(lead) < len(_MAGIC) + 12 or not lead.startswith(_MAGIC):
                    raise DamagedError(f"{path}: no header")
                size = int.from_bytes(lead[8:16], "little")
                if size > path.stat().st_size:
                    raise DamagedError(f"{path}: header damaged")
                text = file.read(size)
        except FileNotFoundError as error:
            raise DamagedError(f"{path}: missing") from error
        if len(text) != size or zlib.crc32(text) != int.from_bytes(lead[16:20], "little"):
            raise DamagedError(f"{path}: header damaged")
        header = json.loads(text)
        self.meta: dict[str, Any] = header["meta"]
        self._arrays: dict[str, Any] = header["arrays"]
        self._start = len(lead) + size

    @property
    def crc(self) -> int:
        """Checksum over the content."""
        return zlib.crc32(json.dumps(self._arrays).encode())

    def names(self, prefix: str) -> list[str]:
        """Return the arrays whose names begin so."""
        return [name for name in self._arrays if name.startswith(prefix)]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def read(self, name: str, box: Box | None = None) -> NDArray[Any]:
        """Return an array, or the ``box`` of it (in its own indices)."""
        spec = self._arrays[name]
        shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
        wanted = Box.whole(shape) if box is None else box
        out = np.zeros(wanted.shape, dtype)
        with self.path.open("rb") as file:
            for at, tile in _tiles(shape, wanted):
                offset, size, crc = spec["tiles"][at]
                if size == 0:
                    continue
                common = tile.intersect(wanted)
                file.seek(self._start + offset)
                packed = file.read(size)
                if len(packed) != size or zlib.crc32(packed) != crc:
                    raise DamagedError(f"{self.path}: array {name} damaged")
                target = out[common.within(wanted)]
                if common == tile and out.ndim and target.flags.c_contiguous:
                    blosc.decompress(packed, target)
                    continue
                raw = np.frombuffer(blosc.decompress(packed), dtype).reshape(tile.shape)
                out[common.within(wanted)] = raw[common.within(tile)]
        return out

    def check(self) -> None:
        """Read every byte, and raise `DamagedError` where one is not as written."""
        with self.path.open("rb") as file:
            for name, spec in self._arrays.items():
                for offset, size, crc in spec["tiles"]:
                    file.seek(self._start + offset)
                    packed = file.read(size)
                    if len(packed) != size or zlib.crc32(packed) != crc:
                        raise DamagedError(f"{self.path}: array {name} damaged")


def sound(path: Path) -> Entry | None:
    """Return an entry whose every byte is as written, or None; a damaged one is removed, and that is logged."""
    if not path.exists():
        return None
    try:
        entry = Entry(path)
        entry.check()
    except DamagedError as error:
        logger.warning("scratch entry damaged, computed again: %s", error)
        path.unlink(missing_ok=True)
        return None
    return entry


def _tiles(shape: tuple[int, ...], wanted: Box | None = None) -> Iterator[tuple[int, Box]]:
    """Yield the tiles that meet a box (or all), each with its position in the entry."""
    box = Box.whole(shape) if wanted is None else wanted
    if 0 in shape or (shape and box.size == 0):
        return
    edges = [_TILE.get(len(shape), 1 << 20)] * len(shape)
    if len(shape) == 4:
        edges = [shape[0], 48, 48, 48] if shape[1] > 1 else [shape[0], 1, 256, 256]
    counts = [-(-n // e) for n, e in zip(shape, edges, strict=True)]
    ranges = [range(a // e, -(-b // e)) for a, b, e in zip(box.start, box.stop, edges, strict=True)]
    for at in product(*ranges):
        position = 0
        for i, n in zip(at, counts, strict=True):
            position = position * n + i
        start = tuple(i * e for i, e in zip(at, edges, strict=True))
        yield position, Box(start, tuple(min(a + e, n) for a, e, n in zip(start, edges, shape, strict=True)))

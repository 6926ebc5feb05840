"""Dense maps of a whole image, in a zarr group: written block by block, read by any box."""

from __future__ import annotations

import errno
import logging
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.array_spec import ArrayConfig

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.engine.entries import scratch_error
from spatialdata_segment.engine.points import (
    packed_dtype,
    read_points,
    sound_points,
    unpacked_dtype,
    write_index,
    write_points,
)
from spatialdata_segment.engine.shard import Failure, Job, checksum, dense_maps, read_pixels, shard_error
from spatialdata_segment.errors import ScratchError
from spatialdata_segment.methods.plane_points import in_plane
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.executor import Executor

logger = logging.getLogger(__name__)

CHUNK = {2: 512, 3: 64}
"""Pixels along every axis of a chunk on disk, at most."""


FAR = 4
"""Halos around the shards of a region in which maps are predicted: objects at its edge look again, farther away."""


@dataclass(frozen=True)
class Maps:
    """The maps of one mask; small, it travels with the tasks.

    Attributes
    ----------
    folder
        Of a zarr group: ``maps`` (k, [z], y, x), and ``done``, a number a block, which is 0 until it is written.
    blocks
        The grid's shape, and the boxes that are written by one task each.
    token
        Names the content, so that what a process has open is not taken for another.
    lacking
        Blocks that are not written.
    plane
        Of a volume: the plane whose maps ``(k, y, x)``, or points ``(y, x)``, are read, of boxes ``(y, x)``. None: all
        of them.
    sparse
        The maps are points: see `Method.sparse`.
    held
        A box, and what `read` returns of it, where that is at hand.
    """

    folder: Path
    blocks: Plan
    token: str
    lacking: frozenset[int] = frozenset()
    plane: int | None = None
    sparse: bool = False
    held: tuple[Box, NDArray[Any]] | None = field(default=None, compare=False, repr=False)

    def at(self, block: int) -> tuple[int, ...]:
        """Place of a block in ``done``."""
        return tuple(int(i) for i in np.unravel_index(block, self.blocks.grid))

    def holds(self, box: Box) -> bool:
        """Tell whether all maps of a box are written."""
        if self.plane is not None:
            box = box.in_plane(self.plane)
        return not self.lacking or self.lacking.isdisjoint(self.blocks.touched(box))

    def read(self, box: Box) -> NDArray[Any]:
        """Return the maps ``(k, [z], y, x)`` of a box of their grid, which must be written.

        Of points, those whose extents meet the box, as far as they are written.

        Raises
        ------
        ScratchError
            If a file of theirs is damaged or gone.
        """
        if self.held is not None and box == self.held[0]:
            return self.held[1]
        if self.plane is not None:
            maps = replace(self, plane=None, held=None).read(box.in_plane(self.plane))
            return in_plane(maps) if self.sparse else maps[:, 0]
        array = _opened(self.folder, self.token)
        if isinstance(array, np.dtype) and not self.sparse:
            return np.zeros((0, *box.shape), array)
        try:
            if isinstance(array, np.dtype):
                return read_points(self.folder, box, array)
            _check_files(array, self.folder / "maps", box)
            return np.asarray(array[(slice(None), *box.slices)])
        except Exception as error:
            raise ScratchError(
                f"maps in {self.folder} cannot be read at [{box}]: {error}. Call predict() again with the same "
                "arguments: it predicts anew what is damaged, and keeps the rest"
            ) from error


@lru_cache(maxsize=16)
def _opened(folder: Path, _token: str) -> zarr.Array[Any] | np.dtype[Any]:
    """Return the array; of methods without maps the dtype that they have."""
    group = zarr.open_group(folder, mode="r")
    found = group.get("maps")
    if isinstance(found, zarr.Array):
        return found
    said = str(group.attrs["dtype"])
    return unpacked_dtype(said) if group.attrs.get("sparse") else np.dtype(said)


def _check_files(array: zarr.Array[Any], folder: Path, box: Box) -> None:
    """Raise where a chunk has no file: zarr reads it as zeros. All chunks are written, empty ones as well."""
    sides = zip(box.start, box.stop, array.chunks[1:], strict=True)
    for at in product(*(range(a // c, ceil(b / c)) for a, b, c in sides)):
        key = array.metadata.encode_chunk_key((0, *at))
        if not (folder / key).exists():
            raise FileNotFoundError(f"chunk {key} is gone")


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _writable(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return an array that writes empty chunks as well; to ask for that as it is opened has no effect."""
    config = ArrayConfig.from_dict({"write_empty_chunks": True})
    return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path, config=config))


def block_sums(group: zarr.Group) -> NDArray[np.int64]:
    """Return what ``done`` says of each block, 0 where it cannot be read."""
    done = _array(group, "done")
    try:
        return np.asarray(done[...]).ravel()
    except Exception:  # noqa: BLE001 (whatever zarr raises for a damaged chunk)
        return np.array([_sum(done, at) for at in np.ndindex(done.shape)], np.int64)


def _sum(done: zarr.Array[Any], at: tuple[int, ...]) -> int:
    try:
        return int(np.asarray(done[at]))
    except Exception as error:  # noqa: BLE001
        logger.warning("maps damaged, predicted again: done %s of %s: %s", at, done.store_path, error)
        return 0


def aligned(
    shape: tuple[int, ...], shard_size: int, multiple: tuple[int, ...] | None = None, *, flat: bool = False
) -> tuple[Plan, tuple[int, ...]]:
    """Return blocks of at most about ``shard_size`` pixels that are made of whole chunks, and the chunks.

    ``multiple``: the chunks that are wanted. ``flat``: a chunk holds one plane of a volume.
    """
    ndim = 2 if flat else len(shape)
    side = min(CHUNK[ndim], max(16, int(shard_size ** (1 / ndim))))
    usual = tuple(side if axis >= len(shape) - ndim else 1 for axis in range(len(shape)))
    chunks = tuple(min(m, n) for m, n in zip(multiple or usual, shape, strict=True))
    cells = tuple(ceil(n / c) for n, c in zip(shape, chunks, strict=True))
    cut = Plan.fewest(cells, max(1, shard_size // int(np.prod(chunks))), (0,) * len(shape))
    sizes = []
    for parts, c, n in zip(cut.chunks, chunks, shape, strict=True):
        ends = np.minimum(np.cumsum(parts) * c, n)
        sizes.append(tuple(np.diff(ends, prepend=0).tolist()))
    return Plan(shape, tuple(sizes), (0,) * len(shape)), chunks


def predict_maps(
    job: Job,
    folder: Path,
    shards: Sequence[int] | None,
    shard_size: int,
    executor: Executor,
    stage: str,
    far: int = FAR,
) -> Maps:
    """Write the maps that the windows of some shards need (None: all of the image), as far as they are not there.

    The windows are taken with ``far`` halos. What an earlier call wrote is read once, and written again where it is
    damaged.

    Raises
    ------
    ShardError
        If a block failed; the others are kept.
    """
    image = job.image
    grid = job.method.maps_box(image, Box.whole(image.shape)).stop
    sparse, method = job.method.sparse, job.method
    multiple = method.block_multiple(image) if sparse else None
    blocks, chunks = aligned(grid, shard_size, multiple, flat=isinstance(method, Planes))
    group = zarr.open_group(folder, mode="a")
    if "done" not in group:
        ((n_maps, dtype),) = executor.map(partial(_probe, job), [0], f"{stage} start", on_device=job.on_device)
        _create(group, n_maps, dtype, blocks, chunks, sparse=sparse)
    token = str(group.attrs["token"])
    maps = Maps(folder, blocks, token, sparse=sparse)
    wanted = _wanted(job, blocks, shards, far)
    written = np.flatnonzero(block_sums(group)).tolist()
    pending = wanted
    if "maps" not in group and not sparse:  # a method that has none
        written, pending = wanted, []
    elif not job.verify:
        there = sorted(set(wanted).intersection(written))
        sound = executor.map(partial(_is_sound, maps), there, f"{stage} maps: check")
        if damaged := [k for k, is_sound in zip(there, sound, strict=True) if not is_sound]:
            logger.warning("maps damaged, predicted again: blocks %s of %s", damaged, folder)
        pending = sorted(set(wanted).difference(there).union(damaged))
    found = executor.map(
        partial(_write_block, job, maps), pending, f"{stage} maps", len(wanted) - len(pending), on_device=job.on_device
    )
    if failures := [f for f in found if isinstance(f, Failure)]:
        raise shard_error(failures, len(blocks), kept=job.kept)
    if sparse:
        write_index(folder, sorted({*written, *wanted}))
    return replace(maps, lacking=frozenset(range(len(blocks))).difference(written, wanted))


def _wanted(job: Job, blocks: Plan, shards: Iterable[int] | None, far: int) -> list[int]:
    if shards is None:
        return list(range(len(blocks)))
    halo = tuple(far * h for h in job.plan.halo)
    boxes = (job.method.maps_box(job.image, job.plan.window(i, halo).box) for i in shards)
    return sorted({k for box in boxes for k in blocks.touched(box)})


def _create(group: zarr.Group, n_maps: int, dtype: str, blocks: Plan, chunks: tuple[int, ...], *, sparse: bool) -> None:
    group.attrs.update({"token": uuid4().hex, "dtype": dtype, "n_maps": n_maps, "sparse": sparse})
    if n_maps and not sparse:
        group.create_array(
            "maps",
            shape=(n_maps, *blocks.shape),
            chunks=(n_maps, *chunks),
            dtype=dtype,
            compressors=[BloscCodec(cname="lz4", clevel=1), Crc32cCodec()],
            overwrite=True,
        )
    group.create_array(
        "done",
        shape=blocks.grid,
        chunks=(1,) * len(blocks.grid),
        dtype="int64",
        compressors=[Crc32cCodec()],
        overwrite=True,
    )


def _probe(job: Job, _: int) -> tuple[int, str]:
    """Return how many maps there are, and their dtype, as the least window has them."""
    image = job.image
    least = Box((0,) * image.ndim, (1,) * image.ndim)
    window = job.method.maps_window(image, least).grow(job.method.map_context(image), Box.whole(image.shape))
    maps = dense_maps(job, Window(window, least, Box.whole(image.shape)))
    return len(maps), packed_dtype(maps.dtype) if job.method.sparse else maps.dtype.str


def _is_sound(maps: Maps, block: int) -> bool:
    """Tell whether every byte of a block's maps is as written."""
    if maps.sparse:
        return sound_points(maps.folder, block)
    try:
        maps.read(maps.blocks.core(block))
    except ScratchError:
        return False
    return True


def _write_block(job: Job, maps: Maps, index: int) -> int | Failure:
    """Predict one block and write it, unless it is there and of the same pixels."""
    block, image, method = maps.blocks.core(index), job.image, job.method
    core = method.maps_window(image, block)
    window = Window(core.grow(method.map_context(image), Box.whole(image.shape)), core, Box.whole(image.shape))
    try:
        group = zarr.open_group(maps.folder, mode="r+")
        done, at = _array(group, "done"), maps.at(index)
        pixels = read_pixels(job, window)
        crc = 1 + zlib.crc32(
            repr(sorted((s.label, v) for s, v in job.statistics.items())).encode(), checksum(job, window, pixels)
        )
        before = _sum(done, at)
        if before == crc and _is_sound(maps, index):
            return index
        found = dense_maps(job, window, pixels)
        held = method.maps_box(image, window.box)
        if before:
            done[at] = 0
        if maps.sparse:
            found = found[block.holds(found["point"])]
            write_points(maps.folder, index, found, method.extents(found, image))
        else:
            _writable(_array(group, "maps"))[(slice(None), *block.slices)] = found[(slice(None), *block.within(held))]
        done[at] = crc
    except ScratchError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise scratch_error(maps.folder / "maps", error) from error
        return Failure(index, core, error)
    except Exception as error:  # noqa: BLE001 (whatever a method raises is told with its block)
        return Failure(index, core, error)
    return index

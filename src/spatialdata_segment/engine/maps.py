"""Dense maps of a whole image, in a zarr group: written block by block, read by any box."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import ceil
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.engine.shard import Failure, Job, dense_maps, read_pixels, shard_error
from spatialdata_segment.errors import ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.executor import Executor

CHUNK = {2: 512, 3: 64}
"""Pixels along every axis of a chunk on disk, at most."""


_FAR = 4
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
    """

    folder: Path
    blocks: Plan
    token: str
    lacking: frozenset[int] = frozenset()

    def holds(self, box: Box) -> bool:
        """Tell whether all maps of a box are written."""
        return not self.lacking or self.lacking.isdisjoint(self.blocks.touched(box))

    def read(self, box: Box) -> NDArray[Any]:
        """Return the maps ``(k, [z], y, x)`` of a box of their grid."""
        array = _opened(self.folder, self.token)
        if isinstance(array, np.dtype):
            return np.zeros((0, *box.shape), array)
        try:
            return np.asarray(array[(slice(None), *box.slices)])
        except Exception as error:
            raise ScratchError(
                f"maps in {self.folder} cannot be read at [{box}]: {error}. A damaged file is best removed with its "
                "store: predict again"
            ) from error


@lru_cache(maxsize=16)
def _opened(folder: Path, _token: str) -> zarr.Array[Any] | np.dtype[Any]:
    """Return the array; of methods without maps the dtype that they have."""
    group = zarr.open_group(folder, mode="r")
    found = group.get("maps")
    return found if isinstance(found, zarr.Array) else np.dtype(str(group.attrs["dtype"]))


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def aligned(shape: tuple[int, ...], shard_size: int) -> tuple[Plan, tuple[int, ...]]:
    """Return blocks of at most about ``shard_size`` pixels that are made of whole chunks, and the chunks."""
    side = min(CHUNK[len(shape)], max(16, int(shard_size ** (1 / len(shape)))))
    chunks = tuple(min(side, n) for n in shape)
    cells = tuple(ceil(n / c) for n, c in zip(shape, chunks, strict=True))
    cut = Plan.fewest(cells, max(1, shard_size // int(np.prod(chunks))), (0,) * len(shape))
    sizes = []
    for parts, c, n in zip(cut.chunks, chunks, shape, strict=True):
        ends = np.minimum(np.cumsum(parts) * c, n)
        sizes.append(tuple(np.diff(ends, prepend=0).tolist()))
    return Plan(shape, tuple(sizes), (0,) * len(shape)), chunks


def predict_maps(
    job: Job, folder: Path, shards: Sequence[int] | None, shard_size: int, executor: Executor, stage: str
) -> Maps:
    """Write the maps that the windows of some shards need (None: all of the image), as far as they are not there.

    Raises
    ------
    ShardError
        If a block failed; the others are kept.
    """
    image = job.image
    grid = job.method.maps_box(image, Box.whole(image.shape)).stop
    blocks, chunks = aligned(grid, shard_size)
    group = zarr.open_group(folder, mode="a")
    if "done" not in group:
        ((n_maps, dtype),) = executor.map(partial(_probe, job), [0], f"{stage} start", on_device=job.on_device)
        _create(group, n_maps, np.dtype(dtype), blocks, chunks)
    token = str(group.attrs["token"])
    maps = Maps(folder, blocks, token)
    wanted = _wanted(job, blocks, shards)
    written = np.flatnonzero(np.asarray(_array(group, "done")[...]).ravel()).tolist()
    pending = wanted if job.verify else sorted(set(wanted).difference(written))
    if "maps" not in group:  # a method that has none
        written, pending = wanted, []
    found = executor.map(
        partial(_write_block, job, maps), pending, f"{stage} maps", len(wanted) - len(pending), on_device=job.on_device
    )
    if failures := [f for f in found if isinstance(f, Failure)]:
        raise shard_error(failures, len(blocks), kept=job.kept)
    return replace(maps, lacking=frozenset(range(len(blocks))).difference(written, wanted))


def _wanted(job: Job, blocks: Plan, shards: Iterable[int] | None) -> list[int]:
    if shards is None:
        return list(range(len(blocks)))
    far = tuple(_FAR * h for h in job.plan.halo)
    boxes = (job.method.maps_box(job.image, job.plan.window(i, far).box) for i in shards)
    return sorted({k for box in boxes for k in blocks.touched(box)})


def _create(group: zarr.Group, n_maps: int, dtype: np.dtype[Any], blocks: Plan, chunks: tuple[int, ...]) -> None:
    group.attrs.update({"token": uuid4().hex, "dtype": dtype.str, "n_maps": n_maps})
    if n_maps:
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
    return len(maps), maps.dtype.str


def _write_block(job: Job, maps: Maps, index: int) -> int | Failure:
    """Predict one block and write it, unless it is there and of the same pixels."""
    block, image, method = maps.blocks.core(index), job.image, job.method
    core = method.maps_window(image, block)
    window = Window(core.grow(method.map_context(image), Box.whole(image.shape)), core, Box.whole(image.shape))
    try:
        group = zarr.open_group(maps.folder, mode="r+")
        done, at = _array(group, "done"), tuple(int(i) for i in np.unravel_index(index, maps.blocks.grid))
        pixels = read_pixels(job, window)
        crc = 1 + zlib.crc32(
            repr(sorted((s.label, v) for s, v in job.statistics.items())).encode(), zlib.crc32(pixels.data)
        )
        if int(np.asarray(done[at])) == crc:
            return index
        found = dense_maps(job, window, pixels)
        held = method.maps_box(image, window.box)
        _array(group, "maps")[(slice(None), *block.slices)] = found[(slice(None), *block.within(held))]
        done[at] = crc
    except ScratchError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a method raises is told with its block)
        return Failure(index, core, error)
    return index

"""What a plan needs in memory, and whether it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.methods.base import ImageInfo, Method


def shard_bytes(plan: Plan, method: Method, info: ImageInfo, *, from_maps: bool = False) -> int:
    """Predict the peak working memory of the largest shard: its pixels, its maps and what decoding takes.

    ``from_maps``: the maps are there, and no pixel is read.
    """
    window = _pixels(plan, (0,) * info.ndim)
    working = int(window * method.bytes_per_pixel)
    if from_maps:
        return working
    read = _pixels(plan, method.reach(info))
    return int(read * 2 * info.n_channels * info.dtype.itemsize) + working + method.fixed_bytes


def _pixels(plan: Plan, around: tuple[int, ...]) -> float:
    """Return the pixels of the largest window, and of what lies around it."""
    sides = zip(plan.chunks, plan.halo, around, plan.shape, strict=True)
    return float(np.prod([min(max(c) + 2 * (h + a), n) for c, h, a, n in sides]))


def check_memory(plan: Plan, one: int, executor: Executor) -> None:
    """Refuse a plan whose shards in flight, of ``one`` byte size, do not fit into the memory that there is.

    Raises
    ------
    InputError
        Says which shard size would fit.
    """
    for room in executor.rooms():
        flying = min(room.in_flight, len(plan))
        if one * flying <= room.available:
            continue
        core = float(np.prod([max(c) for c in plan.chunks]))
        fits = int(core * room.available / (one * flying) * 0.7)
        raise InputError(
            f"{flying} shards in flight need {one * flying / 1e9:.1f} GB, and {room.name} has "
            f"{room.available / 1e9:.1f} GB: pass shard_size={max(fits, 1):_}, or fewer n_jobs (threads a worker)"
        )

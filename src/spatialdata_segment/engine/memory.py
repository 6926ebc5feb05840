"""What a plan needs in memory, and whether it is there."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor, Room
    from spatialdata_segment.methods.base import ImageInfo, Method

_LEAST = 1024
"""Pixels of the least core that is worth proposing."""
_SURE = 0.9
"""Share of the memory that a proposal may fill: there may be less of it when the next call looks."""


def shard_bytes(plan: Plan, method: Method, info: ImageInfo, *, from_maps: bool = False) -> int:
    """Predict the peak working memory of the largest shard: its pixels, its maps and what decoding takes.

    ``from_maps``: the maps are there, and no pixel is read.
    """
    working = method.working_bytes(_largest(plan, (0,) * info.ndim))
    if from_maps:
        return working
    if method.reads_parts:
        return working + method.fixed_bytes
    read = np.prod(_largest(plan, method.reach(info)), dtype=float)
    return int(read * 2 * info.n_channels * info.dtype.itemsize) + working + method.fixed_bytes


def _largest(plan: Plan, around: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the largest window, and of what lies around it."""
    sides = zip(plan.chunks, plan.halo, around, plan.shape, strict=True)
    return tuple(min(max(c) + 2 * (h + a), n) for c, h, a, n in sides)


def check_memory(
    plans: Mapping[str, Plan],
    methods: Mapping[str, Method],
    images: Mapping[str, ImageInfo],
    executor: Executor,
    cut: Callable[[int], Mapping[str, Plan]],
    *,
    from_maps: bool = False,
) -> None:
    """Refuse plans whose shards in flight do not fit into the memory that there is.

    The queue of the executor is as short as it must be. ``cut`` makes the plans for another ``shard_size``.

    Raises
    ------
    InputError
        Says which shard size would fit, if any.
    """

    def overflow(plans: Mapping[str, Plan], share: float = 1.0) -> tuple[Room, int, int] | None:
        for mask, plan in plans.items():
            one = shard_bytes(plan, methods[mask], images[mask], from_maps=from_maps)
            for room in rooms:
                flying = min(room.in_flight, len(plan))
                if one * flying > share * room.available:
                    return room, flying, one * flying
        return None

    rooms = executor.rooms()
    while executor.queue and overflow(plans, _SURE) is not None:
        executor.queue -= 1
        rooms = executor.rooms()
    found = overflow(plans)
    if found is None:
        return
    size = min(int(np.prod([max(c) for c in plan.chunks])) for plan in plans.values())
    while size >= _LEAST and overflow(cut(size), _SURE) is not None:
        size = _rounded(size * 3 // 4)
    room, flying, needed = found
    then = (
        f"pass shard_size={size:_}, or fewer"
        if size >= _LEAST
        else "no shard_size would do: take more memory, or fewer"
    )
    raise InputError(
        f"{flying} shards in flight need {needed / 1e9:.2f} GB, and {room.name} has {room.available / 1e9:.2f} GB: "
        f"{then} n_jobs (threads a worker)"
    )


def _rounded(size: int) -> int:
    """Return a number of two digits and zeros that is not greater."""
    unit: int = 10 ** max(0, len(str(size)) - 2)
    return size // unit * unit


def release() -> None:
    """Give memory that is free back to the system: what shards on threads leave behind stays in pieces otherwise."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """Return glibc's ``malloc_trim``, or None on other systems."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

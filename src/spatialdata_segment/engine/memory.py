"""What a plan needs in memory and on disk, and whether it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import psutil

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.methods.base import ImageInfo, Method


def shard_bytes(plan: Plan, method: Method, n_channels: int, info: ImageInfo) -> int:
    """Predict the peak working memory of the largest shard: its pixels, its maps and what decoding takes."""
    window, read = _pixels(plan, (0,) * info.ndim), _pixels(plan, method.reach(info))
    return int(read * 2 * n_channels * info.dtype.itemsize + window * method.bytes_per_pixel) + method.fixed_bytes


def _pixels(plan: Plan, around: tuple[int, ...]) -> float:
    """Return the pixels of the largest window, and of what lies around it."""
    sides = zip(plan.chunks, plan.halo, around, plan.shape, strict=True)
    return float(np.prod([min(max(c) + 2 * (h + a), n) for c, h, a, n in sides]))


def check_memory(plan: Plan, method: Method, n_channels: int, info: ImageInfo, n_jobs: int) -> None:
    """Refuse a plan whose shards in flight do not fit into the memory that there is.

    Raises
    ------
    InputError
        Says which shard size would fit.
    """
    one = shard_bytes(plan, method, n_channels, info)
    flying = min(n_jobs, len(plan))
    available = psutil.virtual_memory().available
    if one * flying <= available:
        return
    core = float(np.prod([max(c) for c in plan.chunks]))
    fits = int(core * available / (one * flying) * 0.7)
    raise InputError(
        f"{flying} shards in flight need {one * flying / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free: pass "
        f"shard_size={max(fits, 1):_}, or fewer n_jobs"
    )

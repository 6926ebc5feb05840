"""Statistics of every plane of a volume, along any axis: streamed slab by slab."""

from __future__ import annotations

from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.statistics import Histogram, Statistic
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.engine.executor import Executor

_THICK = 32
"""Planes that are counted at once."""
_PIECE_BYTES = 64e6
"""Of pixels that are read at once, about."""


def measure_planes(
    read: Callable[[Box], NDArray[Any]],
    shape: tuple[int, ...],
    wanted: Sequence[Statistic],
    executor: Executor,
    stage: str,
    itemsize: int,
) -> dict[Statistic, float]:
    """Compute statistics of single planes.

    Parameters
    ----------
    read
        Returns the channels ``(c, z, y, x)`` of a box.
    shape
        ``(z, y, x)`` of the volume.
    wanted
        All with an ``axis``.
    executor, stage
        What runs, and how it is called.
    itemsize
        Bytes a voxel of all channels.

    Raises
    ------
    InputError
        If a voxel is NaN or infinite.
    """
    slabs: dict[tuple[int, int], list[Statistic]] = {}
    for s in wanted:
        assert s.axis is not None
        slabs.setdefault((s.axis, s.plane // _THICK * _THICK), []).append(s)
    tasks = [(axis, start, asked) for (axis, start), asked in sorted(slabs.items())]
    found = executor.map(partial(_measure_slab, read, shape, itemsize), tasks, f"{stage}: planes")
    values: dict[Statistic, float] = {}
    for (_, _, asked), told in zip(tasks, found, strict=True):
        values.update(zip(asked, told, strict=True))
    return values


def _measure_slab(
    read: Callable[[Box], NDArray[Any]],
    shape: tuple[int, ...],
    itemsize: int,
    task: tuple[int, int, list[Statistic]],
) -> list[float]:
    axis, start, asked = task
    counts: dict[tuple[int, int], list[Histogram]] = {(s.channel, s.plane): [] for s in asked}
    for piece in _pieces(shape, axis, start, itemsize):
        pixels = np.moveaxis(read(piece), axis + 1, 1)
        for channel, plane in counts:
            counts[channel, plane].append(Histogram.of(pixels[channel, plane - start]))
    histograms = {key: reduce(add, parts) for key, parts in counts.items()}
    if bad := sum(h.non_finite for h in histograms.values()):
        raise InputError(
            f"the image holds {bad} NaN or infinite pixels, expected finite values: replace them, for example by "
            "0 (numpy.nan_to_num)"
        )
    return [histograms[s.channel, s.plane].compute(s) for s in asked]


def _pieces(shape: tuple[int, ...], axis: int, start: int, itemsize: int) -> Iterator[Box]:
    """Yield boxes that make up a slab, cut along the first of the other axes."""
    across = 1 if axis == 0 else 0
    low, high = [0, 0, 0], list(shape)
    low[axis], high[axis] = start, min(start + _THICK, shape[axis])
    row = itemsize * np.prod([high[k] - low[k] for k in range(3) if k != across])
    step = max(1, int(_PIECE_BYTES / row))
    for at in range(0, shape[across], step):
        low[across], high[across] = at, min(at + step, shape[across])
        yield Box(tuple(low), tuple(high))

"""Pixels changed before a method sees them: lazily, by blocks of a grid that is fixed to the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.median import disk_median
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.core.statistics import Statistic, quantile_or_end
from spatialdata_segment.engine.devices import borrowed, load
from spatialdata_segment.engine.whole import measure_image, read_source
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.methods.base import ImageInfo, Method

BLOCK = {2: (1024, 1024), 3: (16, 512, 512)}
"""Pixels of a block along ``([z], y, x)``; the first begins at the first pixel. Tiles of a step divide it."""


class Change(Protocol):
    """What is done to the pixels, block by block."""

    def context(self, ndim: int) -> tuple[int, ...]:
        """Pixels per axis up to which a pixel depends on its surroundings."""

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the result."""

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return the changed pixels, in the same shape."""

    def grain(self, ndim: int) -> tuple[int, ...] | None:
        """Pixels per axis, of whose multiples a box must be made; None: it must be a block of the grid."""


@dataclass(frozen=True)
class Median:
    """The median over a disk."""

    radius: int

    def context(self, ndim: int) -> tuple[int, ...]:
        """Return the radius, in the plane."""
        return (*(0,) * (ndim - 2), self.radius, self.radius)

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the same."""
        return before

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Filter each plane."""
        return disk_median(block, self.radius)

    def grain(self, ndim: int) -> tuple[int, ...]:
        """Return any box."""
        return (1,) * ndim


@dataclass(frozen=True)
class Normalize:
    """Bring each channel to 0..1 between two of its values; where they are equal, what lies above is 1."""

    bounds: tuple[tuple[float, float], ...]

    def context(self, ndim: int) -> tuple[int, ...]:
        """Return none."""
        return (0,) * ndim

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return float32."""
        return np.dtype(np.float32)

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Scale and clip."""
        out = np.empty(block.shape, np.float32)
        for changed, channel, (low, high) in zip(out, block, self.bounds, strict=True):
            changed[...] = np.clip((channel - low) / (high - low), 0, 1) if high > low else channel > low
        return out

    def grain(self, ndim: int) -> tuple[int, ...]:
        """Return any box."""
        return (1,) * ndim


@dataclass(frozen=True)
class Preprocessing:
    """All that is done to the pixels of one mask.

    Attributes
    ----------
    quantiles
        ``(lower, upper)`` of each channel; None: no normalisation.
    median
        Radius of the median in px; None: no median.
    steps
        What follows.
    """

    quantiles: tuple[tuple[float, float], ...] | None = None
    median: int | None = None
    steps: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return self != Preprocessing()

    def statistics(self) -> tuple[Statistic, ...]:
        """Numbers of the whole image, as it was, that `apply` needs."""
        return tuple(quantile_or_end(channel, q) for channel, pair in enumerate(self.quantiles or ()) for q in pair)

    def dtype(self, before: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the changed pixels."""
        for change in self._changes(dict.fromkeys(self.statistics(), 0.0)):
            before = change.dtype(before)
        return before

    def apply(self, source: da.Array, levels: Mapping[Statistic, float]) -> da.Array:
        """Change ``(c, [z], y, x)`` lazily; ``levels`` are the statistics."""
        for change in self._changes(levels):
            source = _changed(source, change)
        return source

    def least(self) -> float | None:
        """Return a value that no changed pixel is below, if it is known beforehand."""
        known = self.quantiles is not None and all(step.grain(2) is not None for step in self.steps)
        return 0.0 if known else None

    def reader(
        self, raw: Callable[[Box], NDArray[Any]], shape: tuple[int, ...], levels: Mapping[Statistic, float]
    ) -> BoxReader | None:
        """Return what reads boxes of the changed pixels, from what reads boxes of the image of that shape."""
        return BoxReader(raw, tuple(self._changes(levels)), Box.whole(shape)) if self else None

    def _changes(self, levels: Mapping[Statistic, float]) -> list[Change]:
        """List what is done. A median is a pixel, and scaling keeps the order: the median of integers goes first."""
        changes: list[Change] = [] if self.median is None else [Median(self.median)]
        if self.quantiles is not None:
            pairs = [[levels[quantile_or_end(c, q)] for q in pair] for c, pair in enumerate(self.quantiles)]
            changes.append(Normalize(tuple((low, high) for low, high in pairs)))
        return [*changes, *self.steps]


@dataclass(frozen=True)
class Measured:
    """Numbers of the whole image.

    Attributes
    ----------
    levels
        What a preprocessing needs, of the pixels as they were.
    statistics
        What the method asks for, of the pixels that it gets.
    """

    levels: Mapping[Statistic, float]
    statistics: Mapping[Statistic, float]

    def labelled(self) -> dict[str, float]:
        """Return all of them by name."""
        levels = {f"raw_{s.label}": value for s, value in self.levels.items()}
        return levels | {s.label: value for s, value in self.statistics.items()}


def measure(
    source: da.Array,
    before: Preprocessing,
    method: Method,
    image: ImageInfo,
    plan: Plan,
    executor: Executor,
    stage: str,
    folder: Path | None = None,
    *,
    devices: tuple[str, ...] = ("cpu",),
    known: Mapping[Statistic, float] | None = None,
    raw: Callable[[Box], NDArray[Any]] | None = None,
) -> Measured:
    """Compute what a preprocessing and a method ask for.

    ``folder`` keeps it for a resumed run; what the method asks for may be ``known``. ``raw`` reads a box of the source,
    where something does so faster than dask.
    """
    kept = [None if folder is None else folder / name for name in ("levels.json", "statistics.json")]
    levels = measure_image(source, before.statistics(), plan, executor, f"{stage} levels", kept[0])
    if known is not None:
        return Measured(levels, known)
    pixels = before.apply(source, levels)
    read = raw
    if (reader := before.reader(raw or partial(read_source, source), plan.shape, levels)) is not None:
        read = reader.read
        plan = Plan(plan.shape, pixels.chunks[1:], (0,) * len(plan.shape))  # its own blocks: none is computed twice
    found = measure_image(
        pixels,
        method.statistics(image),
        plan,
        executor,
        f"{stage} statistics",
        kept[1],
        least=before.least(),
        read=read,
        diameter=partial(estimate_diameter, method, image, devices),
        by_plane=isinstance(method, Planes),
    )
    return Measured(levels, found)


def estimate_diameter(
    method: Method,
    image: ImageInfo,
    devices: tuple[str, ...],
    read: Callable[[Box], NDArray[Any]],
    statistics: Mapping[Statistic, float],
) -> float:
    """Let a method estimate the diameter, on one of the devices."""
    with borrowed(devices) as device:
        return method.estimate(read, image, statistics, load(method, device))


@dataclass(frozen=True)
class BoxReader:
    """Boxes of the pixels that `Preprocessing.apply` gives, without whole blocks where a step does not need them.

    Attributes
    ----------
    raw
        Reads a box of the image, ``(c, [z], y, x)``.
    changes
        What is done, in order.
    image
        The box of the whole image.
    """

    raw: Callable[[Box], NDArray[Any]]
    changes: tuple[Change, ...]
    image: Box

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels of a box, ``(c, [z], y, x)``."""
        if not self.changes:
            return self.raw(box)
        change, before = self.changes[-1], replace(self, changes=self.changes[:-1])
        parts = []
        for part in self._parts(change, box):
            window = part.grow(change.context(box.ndim), self.image)
            common = part.intersect(box)
            parts.append((common, _apply(change, before.read(window))[:, *common.within(window)]))
        out = np.empty((len(parts[0][1]), *box.shape), parts[0][1].dtype)
        for common, pixels in parts:
            out[:, *common.within(box)] = pixels
        return out

    def _parts(self, change: Change, box: Box) -> list[Box]:
        """Return boxes that cover a box, such as a change may be given."""
        grain = change.grain(box.ndim)
        if grain is None:
            grid = Plan(self.image.shape, _grid(self.image.shape, change), (0,) * box.ndim)
            return [grid.core(i) for i in grid.touched(box)]
        start = tuple(a // g * g for a, g in zip(box.start, grain, strict=True))
        stop = tuple(-(-b // g) * g for b, g in zip(box.stop, grain, strict=True))
        return [Box(start, stop).intersect(self.image)]


def _changed(source: da.Array, change: Change) -> da.Array:
    ndim = source.ndim - 1
    context, sizes = change.context(ndim), _grid(source.shape[1:], change)
    changed: da.Array = da.map_overlap(
        partial(_apply, change),
        source.rechunk((source.shape[0], *sizes), threshold=1 << 40),
        depth={0: 0, **{i: c if len(s) > 1 else 0 for i, (c, s) in enumerate(zip(context, sizes, strict=True), 1)}},
        boundary="none",
        trim=True,
        allow_rechunk=False,
        dtype=change.dtype(source.dtype),
        meta=np.empty((0,) * source.ndim, change.dtype(source.dtype)),
    )
    return changed


def _grid(shape: tuple[int, ...], change: Change) -> tuple[tuple[int, ...], ...]:
    ndim = len(shape)
    return tuple(_sizes(*at) for at in zip(shape, BLOCK[ndim], change.context(ndim), strict=True))


def _sizes(length: int, side: int, context: int) -> tuple[int, ...]:
    """Return the blocks along an axis: whole ones from the first pixel, none less than the context."""
    side *= max(1, -(-context // side))
    edges: Sequence[int] = range(0, length, side)
    if len(edges) > 1 and length - edges[-1] < context:
        edges = edges[:-1]
    return tuple(b - a for a, b in zip(edges, [*edges[1:], length], strict=True))


def _apply(change: Change, block: NDArray[Any]) -> NDArray[Any]:
    if block.dtype.kind == "f" and (bad := block.size - int(np.isfinite(block).sum())):
        raise InputError(
            f"the image holds NaN or infinite pixels ({bad} in one block), expected finite values: replace them, for "
            "example by 0 (numpy.nan_to_num)"
        )
    return change.apply(block)

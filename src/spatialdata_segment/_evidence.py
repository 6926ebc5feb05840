"""What shows whether a shard plan left traces: borders of objects at the seams and beside them.

Reads windows of labels along the borders of the cores, a bounded number of them. Knows nothing of objects in a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

_LONG = 512
"""Pixels of a window along its seam, at most."""
_REACH = 24
"""Pixels to either side of a seam that are looked at, at most."""
_ROWS = 2 * _REACH
"""Rows of the planes near a seam between planes that are read, at most."""
IN_PLANE, ALONG_Z = "y and x", "z"
"""The seams of two profiles: planes are farther apart than pixels, and differ more."""


@dataclass(frozen=True)
class SeamProfile:
    """How often labels differ across lines that run along the seams, by the distance from them.

    A seam that cut objects, or lost a part of them, would have a peak at 0: more borders there than on the lines beside
    it, which no shard knows of.

    Attributes
    ----------
    offset
        ``(k,)`` pixels from the seam; planes where the seams lie between planes.
    edges
        ``(k,)`` pairs of neighbouring pixels across such a line whose labels differ, of any with a label.
    pairs
        ``(k,)`` pairs of which at least one has a label.
    n_windows, n_possible
        Windows read, and those there are.
    """

    offset: NDArray[np.int64]
    edges: NDArray[np.int64]
    pairs: NDArray[np.int64]
    n_windows: int
    n_possible: int

    @property
    def share(self) -> NDArray[np.float64]:
        """``(k,)`` share of the pairs that differ; NaN where there is none."""
        share: NDArray[np.float64] = np.where(self.pairs > 0, self.edges / np.maximum(self.pairs, 1), np.nan)
        return share

    @property
    def at_seam(self) -> float:
        """Share at the seams."""
        return float(self.share[self.offset == 0][0])

    @property
    def beside(self) -> float:
        """Share on the other lines."""
        other = self.offset != 0
        total = self.pairs[other].sum()
        return float(self.edges[other].sum() / total) if total else float("nan")

    @property
    def deviation(self) -> float:
        """How far the seams are from the lines beside them, in standard deviations of those."""
        spread = float(np.nanstd(self.share[self.offset != 0])) if np.isfinite(self.share).sum() > 2 else 0.0
        return (self.at_seam - self.beside) / spread if spread else 0.0


def seam_profiles(
    labels: Any, chunks: Sequence[Sequence[int]], n_windows: int, rng: np.random.Generator
) -> dict[str, SeamProfile]:
    """Return the profile of the seams in the plane, and of a volume that of those between planes, where there are any.

    See `seam_profile`; ``n_windows`` are read for each.
    """
    ndim = len(chunks)
    axes = {IN_PLANE: (ndim - 2, ndim - 1)} | ({ALONG_Z: (0,)} if ndim == 3 else {})
    found = {name: seam_profile(labels, chunks, n_windows, rng, cut) for name, cut in axes.items()}
    return {name: profile for name, profile in found.items() if profile is not None}


def seam_profile(
    labels: Any,
    chunks: Sequence[Sequence[int]],
    n_windows: int,
    rng: np.random.Generator,
    axes: Sequence[int] | None = None,
) -> SeamProfile | None:
    """Count borders between labels at the seams and on the lines beside them.

    Parameters
    ----------
    labels
        ``([z], y, x)``, numpy or dask; windows of it are read: of a volume single planes, and of seams between planes
        some rows of those near.
    chunks
        Sizes of the cores along the axes.
    n_windows
        To read, at most; which ones is drawn from ``rng``.
    rng
        Source of randomness.
    axes
        That the seams cut; None: y and x.

    Returns
    -------
    The profile; None where there is no seam, or cores are too small to tell a seam from what lies beside it.
    """
    ndim = len(chunks)
    axes = (ndim - 2, ndim - 1) if axes is None else axes
    reach = min(_REACH, min((min(chunks[a]) // 2 for a in axes if len(chunks[a]) > 1), default=0))
    windows = [window for axis in axes for window in _windows(chunks, reach, axis)]
    if reach < 4 or not windows:
        return None
    taken = np.sort(rng.permutation(len(windows))[:n_windows])
    offset = np.arange(1 - reach, reach)
    edges, pairs = np.zeros(len(offset), np.int64), np.zeros(len(offset), np.int64)
    for i in taken:
        box, axis, other = windows[i]
        at = list(box.slices)
        if other is not None:
            first = int(rng.integers(box.start[other], box.stop[other]))
            at[other] = slice(first, min(first + (_ROWS if axis == 0 else 1), box.stop[other]))
        found = np.moveaxis(np.asarray(labels[tuple(at)]), axis, -1)
        before, after = found[..., :-1], found[..., 1:]
        others = tuple(range(ndim - 1))
        edges += (before != after).sum(axis=others)
        pairs += ((before > 0) | (after > 0)).sum(axis=others)
    return SeamProfile(offset, edges, pairs, len(taken), len(windows))


def _windows(chunks: Sequence[Sequence[int]], reach: int, axis: int) -> Iterator[tuple[Box, int, int | None]]:
    """Yield windows along the seams that cut an axis, that axis, and the one of which a part is read."""
    shape = tuple(sum(c) for c in chunks)
    along = len(shape) - 1 if axis < len(shape) - 1 else axis - 1
    other = next((a for a in range(len(shape)) if a not in (axis, along)), None)
    starts = range(0, shape[along], _LONG)
    deep = (0,) if other is None else range(0, shape[other], chunks[other][0])
    for seam, start, at in product(np.cumsum(chunks[axis])[:-1].tolist(), starts, deep):
        low, high = [0] * len(shape), list(shape)
        low[axis], high[axis] = seam - reach, seam + reach
        low[along], high[along] = start, min(start + _LONG, shape[along])
        if other is not None:
            low[other], high[other] = at, min(at + chunks[other][0], shape[other])
        yield Box(tuple(low), tuple(high)), axis, other


def crosses(rows: pd.DataFrame, chunks: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Tell which objects have pixels in more than one core.

    Parameters
    ----------
    rows
        Of a candidates table.
    chunks
        Sizes of the cores along ``([z], y, x)``.
    """
    met = np.zeros(len(rows), np.bool_)
    for axis, sizes in zip("zyx"[-len(chunks) :], chunks, strict=True):
        ends = np.cumsum(sizes)[:-1]
        first, last = (rows[f"bbox_{axis}_{end}"].to_numpy() for end in ("min", "max"))
        met |= np.searchsorted(ends, first, "right") < np.searchsorted(ends, last, "left")
    return met

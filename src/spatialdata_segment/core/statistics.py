"""Statistics of a whole image from histograms of its blocks, without an order.

Integers of up to 16 bits are counted exactly. Everything else is counted by the leading bits of its
float32 form (sign, exponent and 11 bits of the mantissa), so that no range need be known beforehand; a
value is then known to one part in 4,096 of its distance to the least value of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DROPPED_BITS = 12
_BINS = 1 << (32 - _DROPPED_BITS)


@dataclass(frozen=True)
class Statistic:
    """A number that a method asks for, of one of its channels, over the whole image.

    Attributes
    ----------
    kind
        ``"otsu"`` (the threshold), ``"dark"`` and ``"bright"`` (the median of what is not above it, the mean of
        what is), ``"radius"`` (px, of a usual object; see `spatialdata_segment.engine.whole`), ``"quantile"``,
        ``"minimum"``, ``"maximum"``, or ``"diameter"`` (px, of a usual object, by the method's own estimate).
    channel
        Position among the method's channels.
    value
        The quantile, 0 to 1. Of the first four kinds: the quantile at which brighter pixels are clipped before,
        so that a speck of debris does not decide; 0: none are.
    axis, plane
        Of a quantile, the minimum and the maximum in a volume: that of one plane alone, the ``plane``-th along ``axis``
        (0: z, 1: y, 2: x). None: of the whole image.
    """

    kind: Literal["otsu", "dark", "bright", "quantile", "minimum", "maximum", "radius", "diameter"]
    channel: int = 0
    value: float = 0.0
    axis: int | None = None
    plane: int = 0

    @property
    def label(self) -> str:
        """Name under which the number is reported."""
        if self.kind == "diameter":
            return self.kind
        detail = f"_{self.value!r}" if self.kind == "quantile" else ""
        where = "" if self.axis is None else f"_{'zyx'[self.axis]}{self.plane}"
        return f"channel{self.channel}_{self.kind}{detail}{where}"


def quantile_or_end(channel: int, q: float, axis: int | None = None, plane: int = 0) -> Statistic:
    """Return the statistic of a quantile; 0 and 1 are the minimum and the maximum, which are exact."""
    if q in (0, 1):
        return Statistic("maximum" if q else "minimum", channel, axis=axis, plane=plane)
    return Statistic("quantile", channel, q, axis, plane)


@dataclass(frozen=True)
class Histogram:
    """Counts of pixel values; the sum of two is that of both parts of the image.

    Attributes
    ----------
    values
        ``(k,)`` float64, ascending: the value that stands for a bin (exact where it can be).
    counts
        ``(k,)`` int64, above 0.
    lowest, highest
        The least and the greatest value, exactly.
    non_finite
        Number of NaN and infinite pixels, which are in no bin.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    lowest: float
    highest: float
    non_finite: int = 0

    @classmethod
    def of(cls, block: NDArray[np.generic], origin: float = 0.0) -> Self:
        """Count one block of one channel.

        Integers beyond 16 bits and floats are known to one part in 4,096 of their distance to ``origin``: the
        least value of the image, the same for all of its blocks.
        """
        flat = np.ascontiguousarray(block).reshape(-1)
        if flat.dtype == bool:
            flat = flat.view(np.uint8)
        if flat.dtype.kind in "ui" and flat.dtype.itemsize <= 2:
            low = int(np.iinfo(flat.dtype).min)
            counts = np.zeros(1 << (8 * flat.dtype.itemsize), np.int64)
            _count_integers(flat, low, counts)
            bins = np.flatnonzero(counts)
            return cls((bins + low).astype(np.float64), counts[bins], float(bins[0] + low), float(bins[-1] + low))
        counts = np.zeros(_BINS, np.int64)
        relative = (flat - np.float64(origin)).astype(np.float32) if origin else flat.astype(np.float32)
        non_finite = int(_count_floats(relative.view(np.uint32), counts))
        bins = np.flatnonzero(counts)
        finite = flat[np.isfinite(flat)] if non_finite else flat
        lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
        values, where = np.unique(_bin_values(bins) + origin, return_inverse=True)  # +0, -0 and all between are one
        merged = np.zeros(len(values), np.int64)
        np.add.at(merged, where, counts[bins])
        return cls(values, merged, lowest, highest, non_finite)

    def __add__(self, other: Histogram) -> Histogram:
        values, where = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        return Histogram(
            values,
            counts,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.non_finite + other.non_finite,
        )

    def compute(self, statistic: Statistic) -> float:
        """Return the number asked for."""
        match statistic.kind:
            case "otsu":
                return self.clipped(statistic.value).otsu()
            case "dark":
                seen = self.clipped(statistic.value)
                return seen._part(seen.values <= seen.otsu()).quantile(0.5)
            case "bright":
                seen = self.clipped(statistic.value)
                above = seen._part(seen.values > seen.otsu())
                return float(above.counts @ above.values / above.counts.sum()) if len(above.values) else seen.highest
            case "quantile":
                return self.quantile(statistic.value)
            case "minimum":
                return self.lowest
            case "maximum":
                return self.highest
            case "radius" | "diameter":
                raise ValueError(f"a histogram of values knows of no {statistic.kind}")

    def clipped(self, q: float) -> Histogram:
        """Return the histogram of the pixels clipped at a quantile; 0: itself."""
        top = self.quantile(q) if q else self.highest
        if top >= self.highest:
            return self
        below = self.values < top
        values = np.append(self.values[below], top)
        counts = np.append(self.counts[below], self.counts[~below].sum())
        return replace(self, values=values, counts=counts, lowest=min(self.lowest, top), highest=top)

    def between_classes(self) -> float:
        """Return the middle between Otsu's threshold and the next value: for pixels that were smoothed since."""
        otsu = self.otsu()
        above = self.values[self.values > otsu]
        return float(otsu + above[0]) / 2 if len(above) else otsu

    def _part(self, which: NDArray[np.bool_]) -> Histogram:
        return replace(self, values=self.values[which], counts=self.counts[which])

    def quantile(self, q: float) -> float:
        """Quantile by linear interpolation between order statistics, as ``numpy.quantile`` has it."""
        ends = np.cumsum(self.counts)
        at = q * (int(ends[-1]) - 1)
        low = int(np.floor(at))
        a, b = (self.values[np.searchsorted(ends, i, "right")] for i in (low, min(low + 1, int(ends[-1]) - 1)))
        return float(a + (b - a) * (at - low))

    def otsu(self) -> float:
        """Threshold of the greatest variance between the classes ``<=`` and ``>`` it.

        Source: N. Otsu, "A threshold selection method from gray-level histograms" (1979). The flat image
        has no two classes: its highest value is returned, and nothing lies above it.
        """
        if len(self.values) == 1:
            return self.highest
        n = self.counts.astype(np.float64)
        below = np.cumsum(n)[:-1]
        above = n.sum() - below
        mass = np.cumsum(n * self.values)
        between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
        return float(self.values[:-1][np.argmax(between)])


@kernel
def _count_integers(flat: Any, low: Any, counts: Any) -> Any:
    for i in range(flat.size):
        counts[np.int64(flat[i]) - low] += 1


@kernel
def _count_floats(bits: Any, counts: Any) -> Any:
    """Count by the leading bits, in an order-preserving form; return the number of non-finite values."""
    bad = 0
    for i in range(bits.size):
        b = bits[i]
        if (b >> np.uint32(23)) & np.uint32(0xFF) == np.uint32(0xFF):
            bad += 1
            continue
        key = ~b if b >> np.uint32(31) else b | np.uint32(0x80000000)
        counts[np.uint32(key) >> np.uint32(_DROPPED_BITS)] += 1
    return bad


def _bin_values(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the float in the middle of each bin; exactly 0 for the bins that hold +0 and -0."""
    key = (bins.astype(np.uint64) << np.uint64(_DROPPED_BITS)).astype(np.uint32)
    middle = key | np.uint32(1 << (_DROPPED_BITS - 1))
    sign = np.uint32(0x80000000)
    bits = np.where(middle & sign, middle & ~sign, ~middle)
    values = bits.astype(np.uint32).view(np.float32).astype(np.float64)
    values[np.abs(values) < 1e-38] = 0.0
    return values

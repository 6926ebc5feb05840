"""What a picture reads: an image and masks on one grid, of the scale that fits it, and of that the crop alone.

Coordinates are pixels of the finest scale; pixel ``i`` reaches from ``i`` to ``i + 1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._results import Levels
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Crop = Box | tuple[slice, ...] | None

MOST_PIXELS = 36_000_000
"""Of a picture."""
_SIDE = 2048
"""Pixels along the longer side of a picture that are enough: of several scales the finest is taken that has no more."""


@dataclass(frozen=True)
class Source:
    """One scale of an image and of masks.

    Attributes
    ----------
    channels
        Arrays ``([z], y, x)``, numpy or dask.
    masks
        Name -> labels of that shape.
    shape
        Of the finest scale.
    crop
        What is shown, in pixels of the finest scale.
    """

    channels: list[Any]
    masks: dict[str, Any]
    shape: tuple[int, ...]
    crop: Box

    @property
    def factors(self) -> tuple[float, ...]:
        """Pixels of the finest scale along the sides of one of this scale."""
        return tuple(n / m for n, m in zip(self.shape, self.channels[0].shape, strict=True))

    @property
    def box(self) -> Box:
        """The crop in pixels of this scale: all that share something with it."""
        sides = zip(self.crop.start, self.crop.stop, self.factors, strict=True)
        start, stop = zip(*((int(a / f), int(np.ceil(b / f - 1e-9))) for a, b, f in sides), strict=True)
        return Box(start, stop)

    @property
    def extent(self) -> Box:
        """Low and high ends of `box`, in pixels of the finest scale, rounded."""
        low, high = (
            tuple(round(i * f) for i, f in zip(end, self.factors, strict=True))
            for end in (self.box.start, self.box.stop)
        )
        return Box(low, high)

    def index(self, axis: int, at: int) -> int:
        """Return where the pixel ``at`` of an axis lies on this scale."""
        return int((at + 0.5) / self.factors[axis])


def source(
    image: Any,
    labels: Any,
    crop: Crop,
    channels: Sequence[int] | None,
    *,
    ndim: int,
    shown: Sequence[int],
    side: int | None = None,
    thin: float | None = None,
) -> Source:
    """Check what a picture is to be drawn of, and pick the scale.

    Parameters
    ----------
    image, labels
        Arrays or elements, as the functions that draw take them.
    crop
        A box or slices of the last axes; None for everything.
    channels
        Indices; None for the first two.
    ndim
        Spatial axes, 2 or 3.
    shown
        Axes along which the picture reaches.
    side
        Pixels along its longer side that are enough; None: 2,048.
    thin
        Pixels of a picture beyond which it is thinned to ``side``; None: never.
    """
    side = side or _SIDE
    scales = _scales(image, "image", (ndim, ndim + 1))
    masks = {name: _scales(mask, f"labels {name!r}", (ndim,)) for name, mask in _named(labels).items()}
    shape = tuple(scales[0].shape[-ndim:])
    box = _box(crop, shape)
    common = [s for s in scales if all(any(m.shape == s.shape[-ndim:] for m in of) for of in masks.values())]
    if not common:
        told = ", ".join(f"{name!r} {of[0].shape}" for name, of in masks.items())
        raise InputError(f"Labels have the shape {told}, the image {shape}: expected the same grid.")
    sides = [max(box.shape[a] * s.shape[a - ndim] / shape[a] for a in shown) for s in common]
    fitting = [s for s, n in zip(common, sides, strict=True) if n <= side]
    best = fitting[0] if fitting else common[-1]
    grid = tuple(best.shape[-ndim:])
    found = Source(
        _channels(channels, best, ndim),
        {name: next(m for m in of if m.shape == grid) for name, of in masks.items()},
        shape,
        box,
    )
    if thin is not None and np.prod(found.box.shape[-2:], dtype=float) > thin:
        found = _thinned(found, -(-max(found.box.shape[-2:]) // side))
    planes = [(a, b) for a in shown for b in shown if a < b]
    most = max(found.box.shape[a] * found.box.shape[b] for a, b in planes)
    if box.size == 0:
        raise InputError(f"Crop {crop} has no pixel of the image {shape}: expected one inside of it, in its px.")
    if most > MOST_PIXELS:
        what, way = ("Image", "crop=") if crop is None else (f"Crop {crop} of the image", "a smaller crop=")
        raise InputError(f"{what} {shape}: {most:,} px to draw, expected {MOST_PIXELS:,} at most; pass {way}.")
    return found


def _thinned(found: Source, step: int) -> Source:
    """Return one of ``step`` x ``step`` pixels: where there is no coarser scale, all chunks are read, and few kept."""
    at = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    return replace(found, channels=[c[at] for c in found.channels], masks={n: m[at] for n, m in found.masks.items()})


def _named(labels: Any) -> dict[str, Any]:
    if labels is None:
        return {}
    is_one = hasattr(labels, "shape") or hasattr(labels, "children")
    masks = dict(labels) if isinstance(labels, Mapping) and not is_one else {"cell": labels}
    return {str(name): mask for name, mask in masks.items() if mask is not None}


def _scales(value: Any, name: str, ndim: tuple[int, ...]) -> list[Any]:
    """Return the numpy or dask arrays of an array or of a multiscale element, the finest first."""
    if isinstance(value, Levels):
        return [_array(level, name, ndim) for level in value.arrays]
    nodes = getattr(value, "children", None)
    levels = [next(iter(node.data_vars.values())) for node in nodes.values()] if nodes else [value]
    return [_array(level, name, ndim) for level in levels]


def _array(value: Any, name: str, ndim: tuple[int, ...]) -> Any:
    """Return the numpy or dask array behind ``value``."""
    array = getattr(value, "data", value) if hasattr(value, "dims") else value
    flat = ndim[0] == 2
    is_deep = flat and "z" in getattr(value, "dims", ())
    if not hasattr(array, "shape") or len(array.shape) not in ndim or is_deep:
        got = getattr(array, "shape", type(value).__name__)
        axes = "(y, x)" if flat else "(z, y, x)"
        with_channels = "" if len(ndim) == 1 else f" or (c, {axes[1:]}"
        more = " Of a volume, pass z= for one plane." if flat else ""
        raise InputError(f"{name}: {got}; expected an array {axes}{with_channels}.{more}")
    return array


def _box(crop: Crop, shape: tuple[int, ...]) -> Box:
    """Return the crop as a box inside the image; slices of fewer axes are of the last ones."""
    whole = Box.whole(shape)
    if crop is None:
        return whole
    if isinstance(crop, Box):
        if crop.ndim != len(shape):
            raise InputError(f"Crop {crop}: expected a box of {len(shape)} axes.")
        return crop.intersect(whole)
    if not 2 <= len(crop) <= len(shape) or not all(isinstance(part, slice) for part in crop):
        raise InputError(f"Crop {crop}: expected slices {'(z, y, x), or (y, x)' if len(shape) == 3 else '(y, x)'}.")
    every = (slice(None),) * (len(shape) - len(crop)) + tuple(crop)
    parts = [part.indices(n) for part, n in zip(every, shape, strict=True)]
    if any(step != 1 for _, _, step in parts):
        raise InputError(f"Crop {crop}: expected slices without a step.")
    return Box(tuple(p[0] for p in parts), tuple(p[1] for p in parts))


def _channels(channels: Sequence[int] | None, pixels: Any, ndim: int) -> list[Any]:
    if len(pixels.shape) == ndim:
        return [pixels]
    chosen = list(range(min(2, pixels.shape[0]))) if channels is None else list(channels)
    bad = [c for c in chosen if not 0 <= c < pixels.shape[0]]
    if bad or not chosen:
        raise InputError(f"Channels {chosen}: expected indices from 0 to {pixels.shape[0] - 1}.")
    return [pixels[c] for c in chosen]

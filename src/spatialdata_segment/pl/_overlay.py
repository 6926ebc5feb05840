"""Outlines of labels over an image. Works on arrays (numpy, dask, xarray), reads the crop alone.

Coordinates are pixel indices of the whole image, pixel ``i`` reaching from ``i`` to ``i + 1``, as SpatialData
has it; outlines lie exactly on the borders of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Crop = Box | tuple[slice, slice] | None

COLORS = {"nucleus": "#ffd400", "cell": "#ff4fd8"}
"""Colours of the two masks; other names take the next of :data:`MORE_COLORS`."""

MORE_COLORS = "#00e5ff", "#7cff4f", "#ff8c3b", "#b388ff"

STAINS = (0.25, 0.5, 1.0), (0.55, 0.85, 0.55), (1.0, 0.35, 0.3), (0.9, 0.8, 0.3)
"""Colours (RGB) of the channels where several are shown: nuclear, membrane, others. One alone is grey."""

_MOST_PIXELS = 36_000_000


def overlay(
    image: Any,
    labels: Any = None,
    *,
    crop: Crop = None,
    channels: Sequence[int] | None = None,
    quantiles: tuple[float, float] = (0.01, 0.998),
    colors: Mapping[str, str] | None = None,
    linewidth: float = 0.8,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image and the outlines of labels.

    Parameters
    ----------
    image
        ``(y, x)`` or ``(c, y, x)``: numpy, dask or xarray.
    labels
        ``(y, x)`` labels of the same grid, or several by name, ``{"nucleus": ..., "cell": ...}``; 0 is the
        background. One array alone is taken for the cells.
    crop
        What to show, in pixels of the image: a :class:`Box` or a pair of slices ``(y, x)``; only that is
        read.
    channels
        Indices of the channels shown; by default the first two (or the only one).
    quantiles
        Of each channel's shown pixels: what is drawn black and what is drawn full.
    colors
        Name of a mask -> colour, before :data:`COLORS`.
    linewidth
        Of the outlines, in points.
    legend
        Name the masks, where there are several.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    The axes, in pixel indices of the whole image, y downwards.

    Raises
    ------
    InputError
        Wrong axes, shapes that differ, an empty crop, or more than 36 million pixels to show.

    Examples
    --------
    >>> pl.overlay(image, {"nucleus": nuclei, "cell": cells}, crop=(slice(0, 512), slice(0, 512)))
    """
    from matplotlib.collections import LineCollection

    masks = _named(labels)
    pixels = _array(image, "image", (2, 3))
    box = _box(crop, pixels.shape[-2:])
    for name, mask in masks.items():
        if mask.shape != pixels.shape[-2:]:
            raise InputError(f"Labels {name!r} have the shape {mask.shape}, the image {pixels.shape[-2:]}.")
    chosen = _channels(channels, pixels)
    picture = _blend([np.asarray(c[box.slices]) for c in chosen], quantiles)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(7, 7), layout="constrained")[1]
    (top, left), (bottom, right) = box.start, box.stop
    ax.imshow(picture, extent=(left, right, bottom, top), interpolation="nearest", aspect="equal")
    palette, spare = {**COLORS, **(colors or {})}, iter(MORE_COLORS * (1 + len(masks) // len(MORE_COLORS)))
    for name, mask in masks.items():
        lines = outlines(np.asarray(mask[box.slices])) + np.array([left, top])
        color = palette.get(name) or next(spare)
        ax.add_collection(
            LineCollection(list(lines), colors=color, linewidths=linewidth, label=name, capstyle="projecting"),
            autolim=False,
        )
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x (px)", ylabel="y (px)")
    if legend and len(masks) > 1:
        ax.legend(loc="upper right", fontsize="small")
    return ax


def save_overlay(
    path: str | Path,
    image: Any,
    labels: Any = None,
    *,
    crop: Crop = None,
    zoom: int | None = None,
    **kwargs: Any,
) -> None:
    """Write an overlay as a PNG without margins, each pixel ``zoom`` x ``zoom`` wide.

    Parameters
    ----------
    path
        File to write; replaced if it exists.
    image, labels, crop
        As in :func:`overlay`.
    zoom
        By default the least that makes the longer side 1,000.
    kwargs
        Of :func:`overlay`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = _box(crop, _array(image, "image", (2, 3)).shape[-2:]).shape
    zoom = zoom or max(1, -(-1000 // max(height, width)))
    dpi = 100
    figure = Figure(figsize=(width * zoom / dpi, height * zoom / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    overlay(image, labels, crop=crop, ax=ax, **kwargs)
    ax.set_axis_off()
    figure.savefig(path, format="png", dpi=dpi)


def outlines(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the borders between different labels as straight segments on the edges of pixels.

    Parameters
    ----------
    labels
        ``(y, x)``. What the array's edge cuts is left open there.

    Returns
    -------
    ``(n, 2, 2)``: segments of two points ``(x, y)``, as long as they can be.
    """
    down = _runs(labels[:, 1:] != labels[:, :-1])
    across = _runs((labels[1:] != labels[:-1]).T)[..., ::-1]
    return np.concatenate([down, across]).astype(np.float64)


def _runs(edge: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the vertical runs of ``edge[y, x]``, the right edges of pixels, as points ``(x, y)``."""
    padded = np.zeros((edge.shape[0] + 2, edge.shape[1]), np.int8)
    padded[1:-1] = edge
    change = np.diff(padded, axis=0).T
    x, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]
    return np.stack([np.stack([x + 1, start], axis=1), np.stack([x + 1, stop], axis=1)], axis=1)


def _named(labels: Any) -> dict[str, Any]:
    if labels is None:
        return {}
    masks = dict(labels) if isinstance(labels, Mapping) and not hasattr(labels, "shape") else {"cell": labels}
    return {str(name): _array(mask, f"labels {name!r}", (2,)) for name, mask in masks.items() if mask is not None}


def _array(value: Any, name: str, ndim: tuple[int, ...]) -> Any:
    """Return the numpy or dask array behind ``value``."""
    array = getattr(value, "data", value) if hasattr(value, "dims") else value
    if not hasattr(array, "shape") or len(array.shape) not in ndim:
        got = getattr(array, "shape", type(value).__name__)
        axes = "(y, x)" if ndim == (2,) else "(y, x) or (c, y, x)"
        raise InputError(f"{name}: {got}; expected an array {axes}. Take one scale, and one plane of a volume.")
    return array


def _box(crop: Crop, shape: tuple[int, ...]) -> Box:
    """Return the crop as a box inside the image, checked."""
    whole = Box.whole(shape)
    if crop is None:
        box = whole
    elif isinstance(crop, Box):
        box = crop.intersect(whole)
    else:
        parts = [part.indices(n) for part, n in zip(crop, shape, strict=True)]
        if any(step != 1 for _, _, step in parts):
            raise InputError(f"Crop {crop}: expected slices without a step.")
        box = Box(tuple(p[0] for p in parts), tuple(p[1] for p in parts))
    if not 0 < box.size <= _MOST_PIXELS:
        raise InputError(f"Crop {crop} of an image {shape}: expected 1 to {_MOST_PIXELS:,} pixels; pass crop=.")
    return box


def _channels(channels: Sequence[int] | None, pixels: Any) -> list[Any]:
    if len(pixels.shape) == 2:
        return [pixels]
    chosen = list(range(min(2, pixels.shape[0]))) if channels is None else list(channels)
    bad = [c for c in chosen if not 0 <= c < pixels.shape[0]]
    if bad or not chosen:
        raise InputError(f"Channels {chosen}: expected indices from 0 to {pixels.shape[0] - 1}.")
    return [pixels[c] for c in chosen]


def _blend(planes: list[NDArray[Any]], quantiles: tuple[float, float]) -> NDArray[np.float32]:
    """Return the planes as RGB in 0..1: each stretched between its quantiles, tinted, added."""
    picture = np.zeros((*planes[0].shape, 3), np.float32)
    for i, plane in enumerate(planes):
        low, high = np.quantile(plane, quantiles)
        grey = (plane.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
        tint = STAINS[i % len(STAINS)] if len(planes) > 1 else (1.0, 1.0, 1.0)
        picture += np.clip(grey, 0, 1)[..., None] * np.asarray(tint, np.float32)
    return np.clip(picture, 0, 1)

"""Drawing: channels blended into colours, outlines of labels as straight segments on the edges of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

COLORS = {"nucleus": "#ffd400", "cell": "#ff4fd8"}
"""Colours of the two masks; other names take the next of :data:`MORE_COLORS`."""

MORE_COLORS = "#00e5ff", "#7cff4f", "#ff8c3b", "#b388ff"

STAINS = (0.25, 0.5, 1.0), (0.55, 0.85, 0.55), (1.0, 0.35, 0.3), (0.9, 0.8, 0.3)
"""Colours (RGB) of the channels where several are shown: nuclear, membrane, others. One alone is grey."""


def palette(names: Iterable[str], colors: Mapping[str, str] | None) -> dict[str, str]:
    """Return a colour for each mask."""
    known, names = {**COLORS, **(colors or {})}, list(names)
    spare = iter(MORE_COLORS * (1 + len(names) // len(MORE_COLORS)))
    return {name: known.get(name) or next(spare) for name in names}


def limits(planes: Iterable[NDArray[Any]], quantiles: tuple[float, float]) -> tuple[float, float]:
    """Return what of one channel is drawn black and what full: quantiles of the finite pixels of all planes shown."""
    values = np.concatenate([p.ravel() for p in planes])
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = np.quantile(values, quantiles) if len(values) else (0.0, 1.0)
    return float(low), float(high)


def shades(n: int, tints: Sequence[str] | None) -> list[tuple[float, float, float]]:
    """Return the colours (RGB) of ``n`` channels: those given, or the stains; of one alone white."""
    if tints is None:
        return [STAINS[i % len(STAINS)] if n > 1 else (1.0, 1.0, 1.0) for i in range(n)]
    from matplotlib.colors import is_color_like, to_rgb

    if bad := [tint for tint in tints if not is_color_like(tint)]:
        raise InputError(f"{bad[0]!r} is no colour: expected a name such as 'cyan', or '#00ffff'")
    return [to_rgb(tint) for tint in tints]


def blend(
    planes: Sequence[NDArray[Any]], ends: Sequence[tuple[float, float]], tints: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """Return the channels as RGB in 0..1: each stretched between its ends, tinted, added. NaN is black."""
    colors = shades(len(planes), tints)
    picture = np.zeros((*planes[0].shape, 3), np.float32)
    for plane, (low, high), tint in zip(planes, ends, colors, strict=True):
        grey = (plane.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
        picture += np.nan_to_num(np.clip(grey, 0, 1))[..., None] * np.asarray(tint, np.float32)
    return np.clip(picture, 0, 1)


def show(
    ax: Axes,
    picture: NDArray[np.float32],
    lines: Mapping[str, NDArray[np.float64]],
    colors: Mapping[str, str],
    *,
    extent: tuple[float, float, float, float],
    names: tuple[str, str],
    aspect: float,
    linewidth: float,
) -> None:
    """Draw a picture and segments on it.

    Parameters
    ----------
    ax
        Where.
    picture
        RGB.
    lines
        Label -> segments ``(n, 2, 2)``, points (right, down), in pixels of the picture.
    colors
        Label -> colour.
    extent
        Left, right, top, bottom of the picture.
    names
        Of the axes, to the right and down.
    aspect
        Height of a unit down over the width of one to the right.
    linewidth
        In points.
    """
    from matplotlib.collections import LineCollection

    left, right, top, bottom = extent
    ax.imshow(picture, extent=(left, right, bottom, top), interpolation="nearest", aspect=aspect)
    height, width = picture.shape[:2]
    scale = np.array([(right - left) / width, (bottom - top) / height])
    for name, segments in lines.items():
        ax.add_collection(
            LineCollection(
                list(segments * scale + np.array([left, top])),
                colors=colors[name],
                linewidths=linewidth,
                label=name,
                capstyle="projecting",
            ),
            autolim=False,
        )
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel=f"{names[0]} (px)", ylabel=f"{names[1]} (px)")


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


def columns(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return which objects lie above which pixels: ``(n, 3)`` of (id, row, column), each once, in order.

    ``labels`` has the axis along which it is seen first.
    """
    fresh = labels > 0
    fresh[1:] &= labels[1:] != labels[:-1]  # an object goes on for some pixels
    _, row, column = np.nonzero(fresh)
    return distinct(np.column_stack((labels[fresh].astype(np.int64), row, column)))


def distinct(triples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows in order, each once."""
    triples = triples[np.lexsort(triples.T[::-1])]
    keep = np.ones(len(triples), np.bool_)
    keep[1:] = (triples[1:] != triples[:-1]).any(axis=1)
    return triples[keep]


def silhouettes(triples: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the outlines of objects that may lie over each other, each as if it were alone.

    Parameters
    ----------
    triples
        ``(n, 3)`` (id, row, column), distinct.
    shape
        Of the picture; what its edge cuts is left open there, as in :func:`outlines`.

    Returns
    -------
    As :func:`outlines`.
    """
    turned = triples[:, [0, 2, 1]]
    down = _sides(triples, shape[1])
    across = _sides(turned, shape[0])[..., ::-1]
    return np.concatenate([down, across]).astype(np.float64)


def _sides(triples: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the left and right sides of objects as points (x, y), joined along y."""
    triples = triples[np.lexsort(triples.T[::-1])]
    goes_on = np.zeros(len(triples) + 1, np.bool_)  # the pixel before, of the same object and row, is there
    goes_on[1:-1] = (triples[1:, :2] == triples[:-1, :2]).all(axis=1) & (np.diff(triples[:, 2]) == 1)
    left, right = triples[~goes_on[:-1]], triples[~goes_on[1:]] + np.array([0, 0, 1])
    edges = np.concatenate([left, right])
    edges = edges[(edges[:, 2] > 0) & (edges[:, 2] < width)][:, [0, 2, 1]]
    edges = distinct(edges)
    starts = np.ones(len(edges), np.bool_)
    starts[1:] = (edges[1:, :2] != edges[:-1, :2]).any(axis=1) | (np.diff(edges[:, 2]) != 1)
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(edges))[: len(first)] - 1
    begin, end = edges[first][:, 1:], edges[last][:, 1:] + np.array([0, 1])
    return np.stack([begin, end], axis=1)


def hidden(triples: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of objects, and of those that lie over or under another."""
    ids = np.unique(triples[:, 0])
    _, where, count = np.unique(triples[:, 1:], axis=0, return_inverse=True, return_counts=True)
    return len(ids), len(np.unique(triples[count[where.ravel()] > 1, 0]))

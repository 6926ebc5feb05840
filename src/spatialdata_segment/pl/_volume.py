"""Pictures of volumes: three planes through a point, and a projection."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
from dask.base import compute
from dask.delayed import delayed

from spatialdata_segment.errors import InputError, is_whole
from spatialdata_segment.pl._draw import (
    blend,
    columns,
    distinct,
    hidden,
    limits,
    outlines,
    palette,
    show,
    silhouettes,
)
from spatialdata_segment.pl._input import read_input
from spatialdata_segment.pl._marks import draw_legend, drawn_in, new_axes
from spatialdata_segment.pl._source import source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.pl._input import Channels
    from spatialdata_segment.pl._source import Crop, Source

_VIEWS = {"xy": (0, 1, 2), "zy": (2, 1, 0), "xz": (1, 0, 2)}
"""The axis that a view cuts, the one that goes down, the one that goes to the right; of (z, y, x)."""
_NARROW = 0.15
"""Least width of a view over that of the widest."""
_INCHES = 8.0
"""The longer side of the views together."""


def orthogonal_views(
    image: Any,
    labels: Any = None,
    *,
    key: str | None = "segmentation",
    point: Sequence[int] | None = None,
    crop: Crop = None,
    pixel_size: float | Sequence[float] | None = None,
    channels: Channels = None,
    quantiles: tuple[float, float] = (0.01, 0.998),
    colors: Mapping[str, str] | None = None,
    linewidth: float = 0.8,
    legend: bool = True,
    axes: Sequence[Axes] | None = None,
) -> tuple[Axes, Axes, Axes]:
    """Draw the three planes of a volume through a point, each with the outlines of the labels that it cuts.

    Three planes are read, and of a store the chunks that they lie in.

    Parameters
    ----------
    image
        ``(z, y, x)`` or ``(c, z, y, x)``: numpy, dask or xarray, or a multiscale element, of which the finest scale
        is taken that is no larger than 2,048 px in the pictures; or a `SpatialData` object.
    labels
        ``(z, y, x)`` labels of the same grid, or several by name; with an object, the name of an image in it. See
        :func:`overlay`.
    key
        With an object: the result to outline; see :func:`overlay`.
    point
        ``(z, y, x)``, pixels of the finest scale; by default the middle of what is shown.
    crop
        What to show: a :class:`Box`, slices ``(z, y, x)``, or slices ``(y, x)`` of all planes.
    pixel_size
        µm a pixel, a number or one per axis ``(z, y, x)``: how long the axes are beside each other. None: that of the
        result in an object, else as long as they have pixels.
    channels, quantiles, colors, linewidth, legend
        As in :func:`overlay`; the quantiles are those of the three planes together.
    axes
        Three axes for the planes xy, zy and xz; a new figure by default.

    Returns
    -------
    The axes of xy, of zy (z to the right) and of xz (z downwards), in pixel indices of the whole volume.

    Raises
    ------
    InputError
        Wrong axes, shapes that differ, an empty crop, a point outside of it, or too many pixels.

    Examples
    --------
    >>> pl.orthogonal_views(sdata, "image", pixel_size=(1.5, 0.5, 0.5))
    >>> pl.orthogonal_views(sdata["image"], sdata["segmentation_cell_labels"])
    """
    given = read_input(image, labels, key, channels, pixel_size, 3)
    found = source(given.image, given.labels, crop, given.channels, ndim=3, shown=(0, 1, 2))
    size = given.pixel_size or (1.0, 1.0, 1.0)
    middle = [(a + b) // 2 for a, b in zip(found.crop.start, found.crop.stop, strict=True)]
    at = middle if point is None else list(np.ravel(np.asarray(point, object)))
    if len(at) != 3 or not all(is_whole(p) for p in at) or not found.crop.holds(np.array([at], np.int64))[0]:
        raise InputError(f"point={point!r}: expected voxels (z, y, x) inside of what is shown, {found.crop}.")
    drawn = _new_axes(found.crop, size) if axes is None else tuple(np.ravel(np.asarray(axes, object)))
    if len(drawn) != 3:
        raise InputError(f"axes: {len(drawn)} given, expected three, for the planes xy, zy and xz.")
    planes = {view: [_cut(c, found, view, at) for c in found.channels] for view in _VIEWS}
    ends = [limits([planes[view][i] for view in _VIEWS], quantiles) for i in range(len(found.channels))]
    for ax, (view, (_, down, right)) in zip(drawn, _VIEWS.items(), strict=True):
        lines = {name: outlines(_cut(mask, found, view, at)) for name, mask in found.masks.items()}
        (left, top), (end, bottom) = ([e[right], e[down]] for e in (found.extent.start, found.extent.stop))
        show(
            ax,
            blend(planes[view], ends, given.tints),
            lines,
            palette(found.masks, colors),
            extent=(left, end, top, bottom),
            names=("zyx"[right], "zyx"[down]),
            aspect=size[down] / size[right],
            linewidth=linewidth,
        )
        for line, axis in ((ax.axvline, right), (ax.axhline, down)):
            line(at[axis] + 0.5, color="white", linewidth=0.6, linestyle=(0, (4, 4)), alpha=0.7)
    xy, zy, xz = drawn
    if axes is None:  # what axes beside each other would say twice
        xy.set_xlabel("")
        zy.set_ylabel("")
    if legend and len(found.masks) > 1 and axes is None:
        figure: Any = xy.figure
        draw_legend(figure, drawn_in(xy, found.masks), loc="lower right")
    elif legend and len(found.masks) > 1:
        draw_legend(xy, drawn_in(xy, found.masks), loc="upper right")
    return xy, zy, xz


def maximum_projection(
    image: Any,
    labels: Any = None,
    *,
    key: str | None = "segmentation",
    axis: Literal["z", "y", "x"] = "z",
    crop: Crop = None,
    pixel_size: float | Sequence[float] | None = None,
    channels: Channels = None,
    quantiles: tuple[float, float] = (0.01, 0.998),
    colors: Mapping[str, str] | None = None,
    linewidth: float = 0.8,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the brightest value along an axis of a volume, and the outline of every object seen along it.

    Each object is outlined as if it were alone, so that none hides another: where outlines cross, objects lie over
    each other, and the legend says of how many that holds. What is cropped is read chunk by chunk.

    Parameters
    ----------
    image, labels, key, crop, pixel_size, channels, quantiles, colors, linewidth
        As in :func:`orthogonal_views`.
    axis
        Along which to look.
    legend
        Name the masks, with the number of their objects and of those that lie over or under another.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    The axes, in pixel indices of the whole volume; y (or z) downwards.

    Raises
    ------
    InputError
        Wrong axes, shapes that differ, an empty crop, or more than 36 million pixels.

    Examples
    --------
    >>> pl.maximum_projection(sdata["image"], sdata["segmentation_cell_labels"], crop=np.s_[10:20, :512, :512])
    """
    views = {"z": "xy", "y": "xz", "x": "zy"}
    if str(axis) not in views:
        raise InputError(f"axis={axis!r}: expected 'z', 'y' or 'x'.")
    view = views[str(axis)]
    seen, down, right = _VIEWS[view]
    given = read_input(image, labels, key, channels, pixel_size, 3)
    found = source(given.image, given.labels, crop, given.channels, ndim=3, shown=(down, right))
    size = given.pixel_size or (1.0, 1.0, 1.0)
    order = (seen, down, right)
    planes = [np.asarray(c[found.box.slices].transpose(order).max(axis=0)) for c in found.channels]
    shape = (planes[0].shape[0], planes[0].shape[1])
    (left, top), (end, bottom) = ([e[right], e[down]] for e in (found.extent.start, found.extent.stop))
    if ax is None:
        ax = new_axes((bottom - top) * size[down], (end - left) * size[right])
    lines, names = {}, {}
    for name, mask in found.masks.items():
        triples = _columns(mask[found.box.slices].transpose(order))
        n, over = hidden(triples)
        names[name] = f"{name}: {n} objects" + (f", {over} over or under another" if over else "")
        lines[names[name]] = silhouettes(triples, shape)
    shades = {names[name]: color for name, color in palette(found.masks, colors).items()}
    show(
        ax,
        blend(planes, [limits([p], quantiles) for p in planes], given.tints),
        lines,
        shades,
        extent=(left, end, top, bottom),
        names=("zyx"[right], "zyx"[down]),
        aspect=size[down] / size[right],
        linewidth=linewidth,
    )
    if legend and lines:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "frameon": False}
        draw_legend(ax, drawn_in(ax, lines), **place)
    return ax


def _cut(array: Any, found: Source, view: str, point: Sequence[int]) -> NDArray[Any]:
    """Return a plane through a point: rows down, columns to the right."""
    cut, down, right = _VIEWS[view]
    at: list[Any] = list(found.box.slices)
    at[cut] = found.index(cut, point[cut])
    plane = np.asarray(array[tuple(at)])
    return plane if down < right else plane.T


def _columns(labels: Any) -> NDArray[np.int64]:
    """Return what :func:`columns` says of the blocks of a volume, joined; one block a thread is in memory."""
    if not isinstance(labels, da.Array):
        return columns(np.asarray(labels))
    starts = [np.cumsum([0, *c[:-1]]).tolist() for c in labels.chunks]
    blocks = zip(product(*starts), labels.to_delayed().ravel(), strict=True)
    parts: tuple[NDArray[np.int64], ...] = compute(*(delayed(_moved)(block, start[1:]) for start, block in blocks))
    return distinct(np.concatenate(parts))


def _moved(block: NDArray[Any], start: Sequence[int]) -> NDArray[np.int64]:
    moved: NDArray[np.int64] = columns(block) + np.array([0, *start])
    return moved


def _new_axes(crop: Box, size: tuple[float, ...]) -> tuple[Axes, ...]:
    """Return axes of a new figure, as wide and high as the planes are in µm, those that share one side by side."""
    import matplotlib.pyplot as plt

    z, y, x = (n * s for n, s in zip(crop.shape, size, strict=True))
    least = _NARROW * max(x, y, z)
    scale = _INCHES / max(max(x, least) + max(z, least), max(y, least) + max(z, least))
    wide, high, deep = (scale * max(n, least) for n in (x, y, z))
    left, low, gap, rim = 0.75, 0.6, 0.25, 0.2
    across, up = left + wide + gap + deep + rim, low + deep + gap + high + rim
    figure = plt.figure(figsize=(across, up))

    def place(x: float, y: float, width: float, height: float, **shared: Any) -> Axes:
        return figure.add_axes((x / across, y / up, width / across, height / up), **shared)

    xy = place(left, low + deep + gap, wide, high)
    zy = place(left + wide + gap, low + deep + gap, deep, high, sharey=xy)
    xz = place(left, low, wide, deep, sharex=xy)
    for ax, side in ((xy, "SE"), (zy, "SW"), (xz, "NE")):
        ax.set_anchor(side)
    xy.tick_params(labelbottom=False)
    zy.tick_params(labelleft=False)
    return xy, zy, xz

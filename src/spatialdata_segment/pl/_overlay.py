"""Outlines of labels over an image. Works on objects, arrays and elements, and reads the crop alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError, is_whole
from spatialdata_segment.pl._draw import blend, limits, outlines, palette, shades, show
from spatialdata_segment.pl._dropped import among, draw_dropped
from spatialdata_segment.pl._input import read_input
from spatialdata_segment.pl._marks import add_legend, new_axes, scale_bar
from spatialdata_segment.pl._source import MOST_PIXELS, source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from spatialdata_segment.pl._input import Channels, Input
    from spatialdata_segment.pl._source import Crop, Source


def overlay(
    image: Any,
    labels: Any = None,
    *,
    key: str | None = "segmentation",
    z: int | None = None,
    crop: Crop = None,
    channels: Channels = None,
    quantiles: tuple[float, float] = (0.01, 0.998),
    colors: Mapping[str, str] | None = None,
    linewidth: float = 0.8,
    dropped: bool = False,
    pixel_size: float | Sequence[float] | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image and the outlines of labels.

    ``overlay(sdata, "image")`` looks up image and labels by name; ``overlay(image, labels)`` takes them as they are.

    Parameters
    ----------
    image
        A `SpatialData` object; or an image ``(y, x)`` or ``(c, y, x)``, or, with ``z``, ``(z, y, x)`` or
        ``(c, z, y, x)``: numpy, dask or xarray, or a multiscale element. Of several scales the finest is taken that
        is no larger than 2,048 px in the picture. One scale that is too large is thinned.
    labels
        With an object: the name of an image in it; None for the one that was segmented, or the only one. Else labels
        of the image's grid, ``(y, x)`` or ``(z, y, x)``, or several by name, ``{"nucleus": ..., "cell": ...}``; 0 is
        the background. One alone is taken for the cells.
    key
        With an object: the result to outline, by its prefix (``key_added`` of `segment`), or one labels element by
        its name; None for the image alone.
    z
        The plane of a volume to show, counted from 0 on the finest scale; only that is read.
    crop
        What to show, in pixels of the image (of the finest scale, or the one that was segmented): a :class:`Box` or a
        pair of slices ``(y, x)``; only that is read.
    channels
        Those shown: indices, with an object also names, or a mapping to colours, ``{"DAPI": "blue"}``. None: those
        that were segmented, else the first two (or the only one).
    quantiles
        Of each channel's shown pixels: what is drawn black and what is drawn full.
    colors
        Name of a mask -> colour; "nucleus" and "cell" have one of their own.
    linewidth
        Of the outlines, in points.
    dropped
        With an object: draw the boxes of the candidates that were dropped too, coloured by the reason. What a later run
        replaced is left out.
    pixel_size
        µm a pixel, a number or one per axis, for a scale bar. None: that of the result in an object, if it has one.
    legend
        Name channels, masks and reasons, where there are several: above the picture, in axes of yours in a corner.
    ax
        Where to draw; by default a new figure of the picture's shape.

    Returns
    -------
    The axes, in pixel indices of the whole image, y downwards.

    Raises
    ------
    MissingError
        A name that is not in the object; the message lists those that are.
    InputError
        Wrong axes, shapes that differ, an empty crop, a plane that there is not.

    Examples
    --------
    >>> pl.overlay(sdata, "image", crop=(slice(0, 512), slice(0, 512)), dropped=True)
    >>> pl.overlay(image, {"nucleus": nuclei, "cell": cells}, channels={0: "blue", 1: "lime"})
    """
    given = read_input(image, labels, key, channels, pixel_size, 2 if z is None else 3)
    if dropped and given.result is None:
        raise InputError("dropped=True needs an object with a result: overlay(sdata, 'image', key='segmentation')")
    found = _source(given, z, crop)
    at: tuple[int | slice, ...] = found.box.slices[-2:]
    if z is not None:
        at = (found.index(0, z), *at)
    planes = [np.asarray(c[at]) for c in found.channels]
    picture = blend(planes, [limits([p], quantiles) for p in planes], given.tints)
    (top, left), (bottom, right) = found.extent.start[-2:], found.extent.stop[-2:]
    aspect = 1.0 if given.pixel_size is None else given.pixel_size[-2] / given.pixel_size[-1]
    is_new, ax = ax is None, new_axes((bottom - top) * aspect, right - left) if ax is None else ax
    show(
        ax,
        picture,
        {name: outlines(np.asarray(mask[at])) for name, mask in found.masks.items()},
        palette(found.masks, colors),
        extent=(left, right, top, bottom),
        names=("x", "y"),
        aspect=aspect,
        linewidth=linewidth,
    )
    if dropped and given.result is not None:
        draw_dropped(ax, among(given.result.candidates, (left, right, top, bottom), z), linewidth)
    if given.pixel_size is not None:
        scale_bar(ax, given.pixel_size[-1], right - left)
    if legend:
        named = given.names if len(given.names) > 1 else ()
        channels_drawn = dict(zip(named, shades(len(given.names), given.tints), strict=False))
        add_legend(ax, channels_drawn, found.masks, above=is_new)
    return ax


def save_overlay(
    path: str | Path,
    image: Any,
    labels: Any = None,
    *,
    key: str | None = "segmentation",
    z: int | None = None,
    crop: Crop = None,
    zoom: int | None = None,
    **kwargs: Any,
) -> None:
    """Write an overlay as a PNG without margins, each pixel ``zoom`` x ``zoom`` wide.

    Parameters
    ----------
    path
        File to write; replaced if it exists.
    image, labels, key, z, crop
        As in :func:`overlay`.
    zoom
        By default the least that makes the longer side 1,000.
    kwargs
        Of :func:`overlay`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    given = read_input(image, labels, key, kwargs.get("channels"), kwargs.get("pixel_size"), 2 if z is None else 3)
    height, width = _source(given, z, crop).box.shape[-2:]
    zoom = zoom or max(1, -(-1000 // max(height, width)))
    dpi = 100
    figure = Figure(figsize=(width * zoom / dpi, height * zoom / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    overlay(image, labels, key=key, z=z, crop=crop, ax=ax, **kwargs)
    ax.set_axis_off()
    figure.savefig(path, format="png", dpi=dpi)


def _source(given: Input, z: int | None, crop: Crop) -> Source:
    ndim = 2 if z is None else 3
    if z is not None and not is_whole(z):
        raise InputError(f"z={z!r}: expected a plane, a whole number from 0.")
    if z is not None and crop is not None and not isinstance(crop, tuple):
        crop = crop.slices[-2:]
    found = source(
        given.image, given.labels, crop, given.channels, ndim=ndim, shown=(ndim - 2, ndim - 1), thin=MOST_PIXELS
    )
    if z is not None and not 0 <= z < found.shape[0]:
        raise InputError(f"z={z}: expected a plane from 0 to {found.shape[0] - 1}.")
    return found

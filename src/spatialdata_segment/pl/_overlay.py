"""Outlines of labels over an image. Works on arrays (numpy, dask, xarray) and elements, reads the crop alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError
from spatialdata_segment.pl._draw import blend, limits, outlines, palette, show
from spatialdata_segment.pl._source import source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from spatialdata_segment.pl._source import Crop, Source


def overlay(
    image: Any,
    labels: Any = None,
    *,
    z: int | None = None,
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
        ``(y, x)`` or ``(c, y, x)``, or, with ``z``, ``(z, y, x)`` or ``(c, z, y, x)``: numpy, dask or xarray, or a
        multiscale element, of which the finest scale is taken that is no larger than 2,048 px in the picture.
    labels
        Labels of the same grid, ``(y, x)`` or ``(z, y, x)``, or several by name, ``{"nucleus": ..., "cell": ...}``;
        0 is the background. One alone is taken for the cells.
    z
        The plane of a volume to show, counted from 0 on the finest scale; only that is read.
    crop
        What to show, in pixels of the image (of the finest scale): a :class:`Box` or a pair of slices ``(y, x)``;
        only that is read.
    channels
        Indices of the channels shown; by default the first two (or the only one).
    quantiles
        Of each channel's shown pixels: what is drawn black and what is drawn full.
    colors
        Name of a mask -> colour; "nucleus" and "cell" have one of their own.
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
        Wrong axes, shapes that differ, an empty crop, a plane that there is not, or more than 36 million pixels.

    Examples
    --------
    >>> pl.overlay(image, {"nucleus": nuclei, "cell": cells}, crop=(slice(0, 512), slice(0, 512)))
    """
    found = _source(image, labels, z, crop, channels)
    at: tuple[int | slice, ...] = found.box.slices[-2:]
    if z is not None:
        at = (found.index(0, z), *at)
    planes = [np.asarray(c[at]) for c in found.channels]
    picture = blend(planes, [limits([p], quantiles) for p in planes])
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(7, 7), layout="constrained")[1]
    (top, left), (bottom, right) = found.extent.start[-2:], found.extent.stop[-2:]
    show(
        ax,
        picture,
        {name: outlines(np.asarray(mask[at])) for name, mask in found.masks.items()},
        palette(found.masks, colors),
        extent=(left, right, top, bottom),
        names=("x", "y"),
        aspect=1.0,
        linewidth=linewidth,
    )
    if legend and len(found.masks) > 1:
        ax.legend(loc="upper right", fontsize="small")
    return ax


def save_overlay(
    path: str | Path,
    image: Any,
    labels: Any = None,
    *,
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
    image, labels, z, crop
        As in :func:`overlay`.
    zoom
        By default the least that makes the longer side 1,000.
    kwargs
        Of :func:`overlay`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = _source(image, None, z, crop, None).box.shape[-2:]
    zoom = zoom or max(1, -(-1000 // max(height, width)))
    dpi = 100
    figure = Figure(figsize=(width * zoom / dpi, height * zoom / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    overlay(image, labels, z=z, crop=crop, ax=ax, **kwargs)
    ax.set_axis_off()
    figure.savefig(path, format="png", dpi=dpi)


def _source(image: Any, labels: Any, z: int | None, crop: Crop, channels: Sequence[int] | None) -> Source:
    ndim = 2 if z is None else 3
    if z is not None and crop is not None and not isinstance(crop, tuple):
        crop = crop.slices[-2:]
    found = source(image, labels, crop, channels, ndim=ndim, shown=(ndim - 2, ndim - 1))
    if z is not None and not 0 <= z < found.shape[0]:
        raise InputError(f"z={z}: expected a plane from 0 to {found.shape[0] - 1}.")
    return found

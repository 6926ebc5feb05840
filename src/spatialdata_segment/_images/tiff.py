"""TIFF: tiled, striped, pyramidal, OME, ImageJ, compressed; which plane is meant, and what the file says of it."""

from __future__ import annotations

import warnings
from itertools import accumulate
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from spatialdata_segment._images.facts import Axes, ImageFacts, channel_names, checked_page, said
from spatialdata_segment._images.series import lazy_series
from spatialdata_segment._images.units import size_in_tags, size_of_pixels
from spatialdata_segment.errors import InputError, SegmentationWarning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import dask.array as da
    from tifffile import TiffFile, TiffPageSeries

_RGB = 2, 6
"""Codes of photometric interpretation: RGB, YCbCr."""
_PALETTE, _PLANAR, _UNSPECIFIED = 3, 2, 0
"""Codes of a photometric interpretation, of samples in planes of their own, and of an extra sample."""
ALPHA = (
    "says that it is RGB and that its fourth channel is alpha, which is left out: if these are four stains, save them "
    "as such, with tifffile.imwrite(..., photometric='minisblack')"
)


def read_tiff(path: Path, *, page: int | None, channel_last: bool) -> tuple[da.Array, ImageFacts]:
    """Return a plane ``(c, y, x)`` of a TIFF, lazily; of a pyramid the finest level.

    Pages count through the planes of all series of the file, in the file's order.

    Raises
    ------
    InputError
        If it is no TIFF, or its axes are none of an image.
    """
    import tifffile

    try:
        tif = tifffile.TiffFile(path)
        series = tif.series
    except Exception as error:  # tifffile raises many kinds for what is spoilt
        raise InputError(f"{path} cannot be read as a TIFF: {error}. Expected .tif, .tiff, .btf or .svs") from error
    with tif:
        if not series:
            raise InputError(f"{path} is a TIFF without images")
        found = [Axes.of(s.axes, s.shape, channel_last=channel_last, page=page, path=path) for s in series]
        which, at = _chosen(found, page, path)
        one, axes = series[which], found[which]
        pixels, is_tiled = lazy_series(path, which, one, axes.letters)
        plane = axes.plane(pixels, at)
        photometric = int(one.keyframe.photometric)
        if photometric == _PALETTE and not tif.is_imagej:  # of ImageJ it is how intensities are shown
            raise InputError(f"{path} holds indices into a palette of colours: save it as grey or RGB first")
        is_rgb = photometric in _RGB and axes.n_channels in (3, 4) and not _is_of_stains(one, axes)
        has_alpha = is_rgb and axes.n_channels == 4
        if has_alpha:
            plane = plane[:3]
            if one.keyframe.planarconfig == _PLANAR or one.keyframe.bitspersample != 8:  # few pictures are
                warnings.warn(f"{path} {ALPHA}", SegmentationWarning, stacklevel=3)
        names, size = _said_by_ome(tif, which) if tif.is_ome else ((), size_in_tags(tif))
        n_pages = axes.n_pages if page is None else sum(a.n_pages for a in found)
        channels = channel_names(plane.shape[0], names, is_rgb=is_rgb)
        facts = ImageFacts(path, "tiff", axes.letters, axes.shape, page, n_pages, channels, size, is_tiled, has_alpha)
    return plane, facts


def _is_of_stains(series: TiffPageSeries, axes: Axes) -> bool:
    """Tell whether four samples are four stains: the last is not said to be alpha, and a picture has eight bits."""
    page = series.keyframe
    return axes.n_channels == 4 and page.bitspersample == 16 and tuple(map(int, page.extrasamples)) == (_UNSPECIFIED,)


def _chosen(found: Sequence[Axes], page: int | None, path: Path) -> tuple[int, int]:
    """Return which series holds a page, and where in it."""
    if page is None:
        alike = [a for a in found if a.shape == found[0].shape]  # others are labels and thumbnails of a slide
        return 0, checked_page(None, sum(a.n_pages for a in alike), "; ".join(map(said, alike[:4])), path)
    ends = list(accumulate(a.n_pages for a in found))
    checked_page(page, ends[-1], "; ".join(map(said, found[:4])), path)
    which = next(k for k, end in enumerate(ends) if page < end)
    return which, page - (ends[which] - found[which].n_pages)


def _said_by_ome(tif: TiffFile, which: int) -> tuple[tuple[str | None, ...], tuple[float, float] | None]:
    """Return names of the channels and the pixel size of the OME-XML."""
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return (), None
    images = [e for e in root.iter() if e.tag.endswith("}Pixels") or e.tag == "Pixels"]
    if which >= len(images):
        return (), None
    pixels = images[which]
    return tuple(e.get("Name") for e in pixels if e.tag.endswith("Channel")), size_of_pixels(pixels)

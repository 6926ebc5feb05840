"""PNG, JPEG and the other formats of pictures: read whole, as they cannot be read in part."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment._images.facts import SIDE, Axes, ImageFacts, channel_names, checked_page
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_opening = Lock()
_PLAIN = {"L", "I", "F", "RGB", "I;16", "I;16L", "I;16B", "I;16N"}
_TO = {"1": "L", "LA": "L", "PA": "RGB", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB"}
"""What pixels of another mode are turned into; an alpha channel goes."""


def read_picture(path: Path, *, page: int | None, channel_last: bool) -> tuple[da.Array, ImageFacts]:
    """Return a picture as ``(c, y, x)``: one channel, or R, G and B.

    A colour picture whose channels are all equal is grey. An alpha channel is left out.

    Raises
    ------
    InputError
        If it cannot be read, or has several pages.
    """
    try:
        pixels = _deep_png(path)
        pixels, n_pages = (_decoded(path, page or 0)) if pixels is None else (pixels, 1)
    except Exception as error:  # every reader raises errors of its own
        raise InputError(f"{path} cannot be read as a picture: {error}. Expected a PNG or a JPEG") from error
    checked_page(page, n_pages, "pages", path)
    if pixels.ndim == 3:
        pixels = pixels[..., : {2: 1, 4: 3}.get(pixels.shape[-1], pixels.shape[-1])]  # without an alpha channel
        if all(np.array_equal(pixels[..., 0], pixels[..., k]) for k in range(1, pixels.shape[-1])):
            pixels = pixels[..., :1]
    letters = "YX" if pixels.ndim == 2 else "YXS"
    axes = Axes.of(letters, pixels.shape, channel_last=False, page=page, path=path)
    lazy = da.from_array(pixels, chunks=(SIDE, SIDE, -1)[: pixels.ndim], name=False)
    plane = axes.plane(lazy, 0)
    channels = channel_names(plane.shape[0], (), is_rgb=True)
    return plane, ImageFacts(path, "image", letters, axes.shape, page, n_pages, channels, None, True)


def _deep_png(path: Path) -> NDArray[Any] | None:
    """Return a PNG of 16-bit colours, of which Pillow keeps 8 bits; None for any other file."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or len(head) < 26 or head[24] != 16 or head[25] not in (2, 4, 6):
        return None
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _decoded(path: Path, page: int) -> tuple[NDArray[Any], int]:
    """Return ``(y, x)`` or ``(y, x, c)``, and the number of pages; of a page that is not there the last one."""
    from PIL import Image

    with _opening:  # its guard against bombs is a global, and scans of slides are large
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with picture:
        n_pages = int(getattr(picture, "n_frames", 1))
        if n_pages > 1:
            picture.seek(min(max(page, 0), n_pages - 1))
        mode = picture.mode
        if mode in ("RGBA", "RGBX", "RGBa"):
            return np.asarray(picture)[..., :3], n_pages
        return np.asarray(picture if mode in _PLAIN else picture.convert(_TO.get(mode, "RGB"))), n_pages

"""What is known of an image in a file, and what its axes mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import dask.array as da

_UNNAMED = "QI"
"""Axes of which a TIFF does not say what they are: further pages."""
SIDE = 512
"""px; of what is read at once, where tiles are smaller: a window of a shard reads what it touches."""


@dataclass(frozen=True)
class ImageFacts:
    """What a file says of an image.

    Attributes
    ----------
    path
        Of the file, or the folder of a Zarr array.
    image_type
        "tiff", "zarr" or "image".
    axes, shape
        As they are stored; letters as tifffile has them: T, C, Z, Y, X, S (samples of a colour), Q or I (unknown).
    page
        Which plane was read; None: the only one.
    n_pages
        Planes that there are.
    channels
        Names, in order.
    pixel_size
        µm, ``(y, x)``; None where the file does not say.
    is_tiled
        Whether a box can be read without reading the rows or the plane that it lies in.
    has_alpha
        Whether the file has an alpha channel after those of the colours, which is left out.

    Examples
    --------
    >>> image, facts = read_image("slide.tif")
    >>> facts.channels, facts.pixel_size
    (('DAPI', 'WGA'), (0.325, 0.325))
    """

    path: Path
    image_type: str
    axes: str
    shape: tuple[int, ...]
    page: int | None
    n_pages: int
    channels: tuple[str, ...]
    pixel_size: tuple[float, float] | None
    is_tiled: bool
    has_alpha: bool = False


@dataclass(frozen=True)
class Axes:
    """The axes of one array, and which of them are the channels.

    Attributes
    ----------
    letters
        One for each axis.
    shape
        Lengths.
    channel
        Place of the channels; None: there is one channel.
    """

    letters: str
    shape: tuple[int, ...]
    channel: int | None

    @classmethod
    def of(cls, letters: str, shape: Sequence[int], *, channel_last: bool, page: int | None, path: Path) -> Axes:
        """Find rows, columns and channels.

        An axis that the file does not name is the channels where no ``page`` is asked for, else it counts pages.

        Raises
        ------
        InputError
            If there are no rows and columns, or no last axis to be the channels.
        """
        shape = tuple(int(n) for n in shape)
        if channel_last:
            if len(shape) < 3:
                raise InputError(f"{path} has the shape {shape}: no axis is left for channels; leave channel_last out")
            letters = "".join("Q" if a in "YXCS" else a for a in letters[:-3]) + "YXC"
        if letters.count("Y") != 1 or letters.count("X") != 1:
            raise InputError(
                f"{path} has the axes {letters} {shape}, expected rows and columns (Y, X): save it as an image of axes "
                "(c, y, x)"
            )
        channel = next((letters.index(a) for a in "SC" if a in letters and shape[letters.index(a)] > 1), None)
        rest = [k for k, a in enumerate(letters) if a not in "YX" and k != channel and shape[k] > 1]
        if channel is None and page is None and len(rest) == 1 and letters[rest[0]] in _UNNAMED:
            channel = rest[0]
        return cls(letters, shape, channel)

    @property
    def others(self) -> tuple[int, ...]:
        """Places of the axes that count pages."""
        return tuple(k for k, a in enumerate(self.letters) if a not in "YX" and k != self.channel)

    @property
    def n_pages(self) -> int:
        """Planes that there are."""
        return prod(self.shape[k] for k in self.others)

    @property
    def n_channels(self) -> int:
        """Channels of a plane."""
        return 1 if self.channel is None else self.shape[self.channel]

    def plane(self, array: da.Array, page: int) -> da.Array:
        """Return a plane of the array as ``(c, y, x)``."""
        at = np.unravel_index(page, [self.shape[k] for k in self.others]) if self.others else ()
        index: list[Any] = [slice(None)] * array.ndim
        for k, i in zip(self.others, at, strict=True):
            index[k] = int(i)
        kept = [k for k in range(array.ndim) if k not in self.others]
        axes = [self.letters.index("Y"), self.letters.index("X")]
        picked = array[tuple(index)]
        order = axes if self.channel is None else [self.channel, *axes]
        moved = picked.transpose([kept.index(k) for k in order])
        plane: da.Array = moved[None] if self.channel is None else moved
        return plane

    def blocks(self, stored: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is read at once, see `blocks_of`."""
        return blocks_of(self.letters, self.shape, stored)


def blocks_of(letters: str, shape: Sequence[int], stored: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what is read at once: whole stored chunks, about 512 x 512 px of a plane."""
    sides = zip(letters, shape, stored, strict=True)
    return tuple(min(n, max(1, SIDE // c) * c) if a in "YX" else min(n, c) for a, n, c in sides)


def checked_page(page: int | None, n_pages: int, what: str, path: Path) -> int:
    """Return the plane to read.

    Raises
    ------
    InputError
        If it is not there, or there are several and none is chosen.
    """
    if page is None:
        if n_pages > 1:
            raise InputError(
                f"{path} has {n_pages} planes ({what}): pick one with page= (--page), 0 to {n_pages - 1}; planes that "
                "are segmented one by one are joined by `stitch`"
            )
        return 0
    if not 0 <= page < n_pages:
        raise InputError(f"page={page} is not in {path} ({what}): expected 0 to {n_pages - 1}")
    return page


def said(axes: Axes) -> str:
    """Return axes and lengths for a message."""
    return ", ".join(f"{a} {n}" for a, n in zip(axes.letters, axes.shape, strict=True))


def channel_names(n: int, given: Sequence[str | None], *, is_rgb: bool) -> tuple[str, ...]:
    """Return names of the channels: those given if they are there and differ, else R, G and B or their numbers."""
    if len(given) == n and all(given) and len(set(given)) == n:
        return tuple(str(name) for name in given)
    return ("R", "G", "B") if is_rgb and n == 3 else tuple(map(str, range(n)))

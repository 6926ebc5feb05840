"""Tiles of a StarDist network: a grid fixed to the image, with all around a tile that its pixels depend on.

The network sees the image padded at its end by reflection, as StarDist pads it, and nothing else: maps are those of the
whole image at once.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.methods.stardist.layers import pools_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from spatialdata_segment.methods.stardist.description import Description

_SIDE = {2: 512, 3: 96}


class Tile(NamedTuple):
    """One tile.

    Attributes
    ----------
    seen
        Pixels of the padded image that the network gets.
    core
        Pixels of it that are the tile's own.
    """

    seen: Box
    core: Box


def core_of(said: Description, tile_size: int | None) -> tuple[int, ...]:
    """Return the sides of a tile's own pixels, multiples of the divisor."""
    side = tile_size or _SIDE[said.n_dim]
    return tuple(-(-side // d) * d for d in said.divisor)


def margin_of(said: Description) -> tuple[int, ...]:
    """Return the pixels around a tile that its maps depend on, rounded up to multiples of the divisor."""
    return tuple(-(-r // d) * d for r, d in zip(_reach(said), said.divisor, strict=True))


def _reach(said: Description) -> tuple[int, ...]:
    """Return how far, in pixels, a network looks; pooling adds what is left of a pooled pixel."""
    b, total = said.backbone, np.zeros(said.n_dim, np.int64)
    half: NDArray[np.int64] = np.array(b.kernel_size, np.int64) // 2
    scale: NDArray[np.int64] = np.ones(said.n_dim, np.int64)
    if b.kind == "resnet":
        total += 3 + 1
        for step in pools_of(said.grid, b.n_depth):
            total += half * scale + (np.array(step, np.int64) - 1) * scale
            scale = scale * np.array(step, np.int64)
            total += half * scale * (b.n_conv - 1)
    else:
        for step in pools_of(said.grid):
            total += half * scale * b.n_conv + (np.array(step, np.int64) - 1) * scale
            scale = scale * np.array(step, np.int64)
        fine = scale
        for _ in range(b.n_depth):
            total += 2 * half * scale * b.n_conv + (np.array(b.pool, np.int64) - 1) * scale
            scale = scale * np.array(b.pool, np.int64)
        total += half * scale * b.n_conv
        scale = fine
    if b.n_features:
        total += half * scale
    return tuple(total.tolist())


def tiles_of(said: Description, shape: tuple[int, ...], core: tuple[int, ...], box: Box) -> Iterator[Tile]:
    """Yield the tiles that hold a pixel of a box, in raster order."""
    padded = Box.whole(tuple(-(-n // d) * d for n, d in zip(shape, said.divisor, strict=True)))
    ranges = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, core, strict=True)]
    for at in product(*ranges):
        own = Box(
            tuple(i * c for i, c in zip(at, core, strict=True)),
            tuple((i + 1) * c for i, c in zip(at, core, strict=True)),
        ).intersect(padded)
        yield Tile(own.grow(margin_of(said), padded), own)


def cut(pixels: NDArray[np.float32], origin: tuple[int, ...], shape: tuple[int, ...], seen: Box) -> NDArray[np.float32]:
    """Return ``(c, [z], y, x)`` of a box of the padded image, of a part of it that begins at ``origin``."""
    out = pixels
    for axis, (a, b, o, n) in enumerate(zip(seen.start, seen.stop, origin, shape, strict=True), 1):
        out = np.take(out, _reflected(np.arange(a, b), n) - o, axis=axis)
    return np.ascontiguousarray(out)


def _reflected(at: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the pixels of which padding by reflection takes the values."""
    period = max(1, 2 * (n - 1))
    at = at % period
    return np.where(at < n, at, period - at)

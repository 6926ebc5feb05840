"""A network on a device, and its maps of a part of an image."""

# torch's functions are untyped calls
# mypy: disable-error-code="no-any-return,no-untyped-call"
from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from spatialdata_segment.errors import MethodError
from spatialdata_segment.methods.cellpose.shared import SharedTiles
from spatialdata_segment.methods.torch_threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.core.tiles import Tiling
    from spatialdata_segment.methods.cellpose.shared import Result

_REMEMBERED = 64
"""Empty tiles whose maps are kept."""


class Tile(NamedTuple):
    """One tile: its first pixel in the image, and whether it is mirrored along y and x."""

    y: int
    x: int
    flip_y: bool
    flip_x: bool


@dataclass
class Network:
    """A network that is loaded.

    Attributes
    ----------
    net
        From ``(n, c, y, x)`` to maps ``(n, k, y, x)``, of which the last three count, and styles ``(n, s)``.
    generation
        "cpnet", "cpsam" or "cpdino".
    device, dtype
        Where, and in what precision, it runs.
    n_inputs
        Channels that it takes; fewer are filled up with zeros. None: as many as come.
    batch_size
        Tiles that run at once. A batch is always full, so that each tile runs alike.
    """

    net: torch.nn.Module
    generation: str
    device: torch.device
    dtype: torch.dtype
    n_inputs: int | None
    batch_size: int
    _turn: Any = field(default_factory=Lock)
    _empty: dict[tuple[object, ...], Result] = field(default_factory=dict)
    _shared: SharedTiles = field(default_factory=SharedTiles)

    def maps(
        self,
        image: NDArray[np.float32],
        origin: tuple[int, ...],
        tiling: Tiling,
        box: Box,
        run: str = "",
        own: Box | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Run all tiles that hold a pixel of a box, and blend them.

        Parameters
        ----------
        image
            ``(c, y, x)``: a part of what the network sees, that holds these tiles as far as the image goes.
        origin
            ``(y, x)`` of its first pixel in the whole.
        tiling
            Of the whole.
        box
            What is wanted.
        run
            See `View`: under it tiles are shared with other windows.
        own
            Pixels that no other window wants: tiles inside are not kept for others.

        Returns
        -------
        ``(3, y, x)`` flows along y and x and the logit of the cell probability of the box; the sum of the styles.
        """
        tiles, shape = _tiles(tiling, box), (tiling.axes[0].side, tiling.axes[1].side)
        compute = partial(self._run, lambda k: self._cut(image, origin, tiles[k], shape))
        keys = [None if own is not None and _within(tile, shape, own) else (run, shape, tile) for tile in tiles]
        found = self._shared.take(keys, compute) if run else compute(range(len(tiles)))
        results = dict(found)
        # in one order, so that sums are the same in every window
        out = self._blended(((tile, results[at][0]) for at, tile in enumerate(tiles)), tiling, box)
        return out, np.sum([style for _, style in results.values()], axis=0, dtype=np.float64)

    def planes(
        self, images: NDArray[np.float32], origin: tuple[int, ...], tiling: Tiling, box: Box
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the maps ``(3, y, x)`` of a box of planes ``(n, c, y, x)``, which fill batches together; see `maps`."""
        tiles, shape = _tiles(tiling, box), (tiling.axes[0].side, tiling.axes[1].side)
        n = len(tiles)
        found = self._run(lambda k: self._cut(images[k // n], origin, tiles[k % n], shape), range(len(images) * n))
        for _ in images:
            plane = islice(found, n)
            yield self._blended(((tiles[k % n], result[0]) for k, result in plane), tiling, box)

    def _blended(
        self, results: Iterable[tuple[Tile, NDArray[np.float32]]], tiling: Tiling, box: Box
    ) -> NDArray[np.float32]:
        """Return the mean of what tiles say, by their weights, ``(3, y, x)`` of a box."""
        rows, columns = tiling.axes
        out = np.zeros((3, *box.shape), np.float32)
        weights = (rows.weights[:, None] * columns.weights[None, :]).astype(np.float32)
        for tile, said in results:
            maps = _turned(said, tile)
            a = max(tile.y, box.start[0]), max(tile.x, box.start[1])
            b = min(tile.y + rows.side, box.stop[0]), min(tile.x + columns.side, box.stop[1])
            inner = np.s_[a[0] - tile.y : b[0] - tile.y, a[1] - tile.x : b[1] - tile.x]
            place = np.s_[a[0] - box.start[0] : b[0] - box.start[0], a[1] - box.start[1] : b[1] - box.start[1]]
            out[:, *place] += maps[:, *inner] * weights[inner]
        out /= rows.total(box.start[0], box.stop[0]).astype(np.float32)[:, None]
        out /= columns.total(box.start[1], box.stop[1]).astype(np.float32)
        if not np.isfinite(out).all():
            raise MethodError(
                f"the network returned maps that are not finite in {self.dtype}: the weights do not suit it; pass "
                "precision='float32', or check the model"
            )
        return out

    def _run(self, cut: Callable[[int], NDArray[np.float32]], which: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Yield the positions, maps and styles of some of the tiles, each of which ``cut`` returns."""
        for start in range(0, len(which), self.batch_size):
            batch = which[start : start + self.batch_size]
            yield from zip(batch, self._results([cut(k) for k in batch]), strict=True)

    def _cut(
        self, image: NDArray[np.float32], origin: tuple[int, ...], tile: Tile, shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return the pixels of a tile: zeros beyond the image and in channels that are not there."""
        n = len(image) if self.n_inputs is None else self.n_inputs
        out = np.zeros((n, *shape), np.float32)
        y, x = tile.y - origin[0], tile.x - origin[1]
        a, b = max(y, 0), max(x, 0)
        part = image[:n, a : max(a, y + shape[0]), b : max(b, x + shape[1])]
        out[: len(part), a - y : a - y + part.shape[1], b - x : b - x + part.shape[2]] = part
        return _turned_pixels(out, tile)

    def _results(self, batch: list[NDArray[np.float32]]) -> list[Result]:
        """Run a batch; tiles of one value a channel are all alike, and run once."""
        keys = [_constant(pixels) for pixels in batch]
        known = {k: self._empty[k] for k in keys if k is not None and k in self._empty}
        fresh = [i for i, k in enumerate(keys) if k not in known]
        results: dict[int, Result] = {}
        if fresh:
            maps, styles = self.forward(np.stack([batch[i] for i in fresh]))
            results = {i: (maps[n].copy(), styles[n].copy()) for n, i in enumerate(fresh)}
        for i, key in enumerate(keys):
            if key is None:
                continue
            if key in known:
                results[i] = known[key]
            elif len(self._empty) < _REMEMBERED:
                self._empty[key] = results[i]
        return [results[i] for i in range(len(batch))]

    def forward(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the maps ``(n, 3, y, x)`` and the styles ``(n, s)`` of tiles ``(n, c, y, x)``."""
        n = len(batch)
        if n < self.batch_size:
            batch = np.concatenate([batch, np.zeros((self.batch_size - n, *batch.shape[1:]), np.float32)])
        pixels = torch.from_numpy(batch)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        with torch.inference_mode(), self._turn if self.device.type != "cpu" else one_thread():
            # on a GPU this only queues the work: the next thread queues its batch while this one waits for its own
            pixels = pixels.to(self.device, self.dtype, non_blocking=True)
            maps, styles = self.net(pixels.contiguous(memory_format=torch.channels_last))[:2]
        maps, styles = maps[:n, -3:].float().contiguous().cpu(), styles[:n].float().cpu()
        return maps.numpy(), styles.numpy()


def _tiles(tiling: Tiling, box: Box) -> list[Tile]:
    """Return the tiles that hold a pixel of a box."""
    rows, columns = tiling.axes
    return [
        Tile(int(rows.starts[j]), int(columns.starts[i]), *(tiling.mirrored and k % 2 == 1 for k in (i, j)))
        for j in rows.meeting(box.start[0], box.stop[0])
        for i in columns.meeting(box.start[1], box.stop[1])
    ]


def _within(tile: Tile, shape: tuple[int, int], box: Box) -> bool:
    return all(a <= at and at + n <= b for a, at, n, b in zip(box.start, tile[:2], shape, box.stop, strict=True))


def _turned_pixels(pixels: NDArray[np.float32], tile: Tile) -> NDArray[np.float32]:
    if tile.flip_y:
        pixels = pixels[:, ::-1]
    if tile.flip_x:
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels)


def _turned(maps: NDArray[np.float32], tile: Tile) -> NDArray[np.float32]:
    """Turn maps back; a flow along a mirrored axis changes its sign."""
    if not (tile.flip_y or tile.flip_x):
        return maps
    maps = _turned_pixels(maps, tile)
    signs = np.array([-1 if tile.flip_y else 1, -1 if tile.flip_x else 1, 1], np.float32)
    return maps * signs[:, None, None]


def _constant(pixels: NDArray[np.float32]) -> tuple[object, ...] | None:
    """Return what identifies a tile that has one value in each channel."""
    values = pixels[:, 0, 0]
    return (pixels.shape, *values.tolist()) if (pixels == values[:, None, None]).all() else None

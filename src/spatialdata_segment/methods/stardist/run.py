"""A StarDist network on a device, and the candidates of its tiles."""

# torch's functions are untyped calls
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import threading
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spatialdata_segment.errors import MethodError
from spatialdata_segment.methods.stardist.description import BORDER
from spatialdata_segment.methods.stardist.layers import layers_of
from spatialdata_segment.methods.stardist.network import StarNet
from spatialdata_segment.methods.stardist.weights import read_weights
from spatialdata_segment.methods.torch_threads import one_thread

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.methods.stardist.description import Description
    from spatialdata_segment.methods.stardist.tiles import Tile

LEAST_DIST = 1e-3
"""px; smaller distances become this, as in StarDist."""

_loaded: dict[tuple[str, str], Network] = {}
_loading = threading.Lock()


@dataclass
class Network:
    """A network that is loaded.

    Attributes
    ----------
    said
        The model.
    net
        From ``(n, c, [z], y, x)`` to maps.
    device
        Where it runs.
    """

    said: Description
    net: StarNet
    device: torch.device
    _turn: Any = field(default_factory=Lock)

    def maps(self, pixels: NDArray[np.float32], tile: Tile) -> list[NDArray[np.float32]]:
        """Return probability ``([z], y, x)``, distances and classes ``(k, [z], y, x)`` of a tile's core, on the grid.

        ``pixels``: ``(c, [z], y, x)`` of what the tile sees.
        """
        grid = self.said.grid
        sides = zip(tile.core.start, tile.core.stop, tile.seen.start, grid, strict=True)
        keep = [slice((a - o) // g, (b - o) // g) for a, b, o, g in sides]
        with torch.inference_mode(), self._turn if self.device.type != "cpu" else one_thread():
            found = self.net(torch.from_numpy(pixels).to(self.device)[None], keep)
            prob, *others = [part[0].float().cpu().numpy() for part in found]
        if not all(np.isfinite(part).all() for part in (prob, *others)):
            raise MethodError("the network returned maps that are not finite: check the model and the image's values")
        others[0] = np.maximum(others[0], np.float32(LEAST_DIST))
        return [prob[0], *others]


def candidates(
    maps: list[NDArray[np.float32]], tile: Tile, said: Description, shape: tuple[int, ...], least: float
) -> NDArray[Any]:
    """Return the points of a tile's maps whose probability is above ``least``, by `record_dtype`."""
    prob, dist = maps[0], maps[1]
    first = tuple(a // g for a, g in zip(tile.core.start, said.grid, strict=True))
    at = np.argwhere(prob > np.float32(least))
    inside = np.all((at + first >= BORDER) & (at + first < said.grid_ends(shape)), axis=1)
    at = at[inside]
    every: tuple[Any, ...] = tuple(at.T)
    out = np.zeros(len(at), record_dtype(said))
    out["point"] = (at + first) * said.grid
    out["prob"] = prob[every]
    out["dist"] = dist[(slice(None), *every)].T
    if said.n_classes is not None:
        out["classes"] = maps[2][(slice(None), *every)].T
    return out


def record_dtype(said: Description) -> np.dtype[Any]:
    """Return what is kept of a candidate: its pixel, probability, distances and, if there are classes, theirs."""
    fields: list[Any] = [("point", "<i4", (said.n_dim,)), ("prob", "<f4"), ("dist", "<f4", (said.n_rays,))]
    if said.n_classes is not None:
        fields.append(("classes", "<f4", (said.n_classes + 1,)))
    return np.dtype(fields)


def load_network(weights: Path, said: Description, digest: str, device: str) -> Network:
    """Load a network, once a process and device."""
    key = (digest, device)
    with _loading:
        if key not in _loaded:
            net = StarNet(said, read_weights(weights, layers_of(said)))
            _loaded[key] = Network(said, net.to(device).eval(), torch.device(device))
        return _loaded[key]

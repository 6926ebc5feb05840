"""`core.paths.follow` on a GPU: the same arithmetic, operation by operation, and the same ends, bit for bit."""

# torch's functions are untyped calls
# mypy: disable-error-code="no-any-return,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from spatialdata_segment.core.paths import BITS, LOST, NOWHERE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHECKED = 8
"""Steps after which paths at rest are taken out."""


def follow_on(device: str, field: NDArray[np.float32], edge: NDArray[np.int64], steps: int) -> NDArray[np.int32]:
    """Follow the paths of all pixels whose flow is not 0, all at once, on a device.

    Parameters and result are those of `core.paths.follow`.
    """
    height, width = field.shape[:2]
    values = torch.from_numpy(field).to(device).reshape(-1, 2)
    unit = 1 << BITS
    last = torch.tensor([height - 1, width - 1], device=device) * unit
    far = 1 << 62
    opens = [[bool(v) for v in row] for row in edge]
    least = torch.tensor([0 if opens[k][0] else -far for k in (0, 1)], device=device)
    most = torch.tensor([(n - 1) * unit if opens[k][1] else far for k, n in ((0, height), (1, width))], device=device)
    pixel = torch.nonzero((values != 0).any(dim=1)).reshape(-1)
    at = torch.stack([pixel // width, pixel % width], dim=1) * unit
    ends = torch.full((height * width,), NOWHERE, dtype=torch.int32, device=device)
    for step in range(1, steps + 1):
        if len(pixel) == 0:
            break
        moved, lost = _step(values, width, at, last, least, most)
        if lost.any():
            ends[pixel[lost]] = LOST
            pixel, at, moved = pixel[~lost], at[~lost], moved[~lost]
        if step % _CHECKED == 0:
            rests = (moved == at).all(dim=1)
            ends[pixel[rests]] = _pixel(moved[rests], width)
            pixel, moved = pixel[~rests], moved[~rests]
        at = moved
    ends[pixel] = _pixel(at, width)
    return ends.cpu().numpy().reshape(height, width)


def _pixel(at: torch.Tensor, width: int) -> torch.Tensor:
    return ((at[:, 0] >> BITS) * width + (at[:, 1] >> BITS)).to(torch.int32)


def _step(
    values: torch.Tensor, width: int, at: torch.Tensor, last: torch.Tensor, least: torch.Tensor, most: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where paths are a step later, and which leave what is known."""
    unit = 1 << BITS
    here = (at[:, 0] >> BITS) * width + (at[:, 1] >> BITS)
    inner = at < last
    right = here + inner[:, 1]
    down = here + width * inner[:, 0]
    both = down + inner[:, 1]
    part = (at & (unit - 1)).to(torch.float32) * (1 / unit)
    v, u = part[:, 0], part[:, 1]
    w11 = v * u
    w01, w10 = u - w11, v - w11
    w00 = (1 - v) - w01
    weights = [w[:, None] for w in (w00, w01, w10, w11)]
    corners = [values[i] for i in (here, right, down, both)]
    step = corners[0] * weights[0] + corners[1] * weights[1]
    step = step + corners[2] * weights[2]
    step = step + corners[3] * weights[3]
    unknown = torch.isnan(step).any(dim=1)
    new = at + torch.round(torch.nan_to_num(step) * unit).to(torch.int64)
    lost = unknown | ((new < least) | (new >= most)).any(dim=1)
    return torch.minimum(last, new.clamp(min=0)), lost

"""The network of Cellpose 1 to 3, as a torch module that reads their files.

A residual U-Net with a style vector (Stringer et al., "Cellpose: a generalist algorithm for cellular
segmentation", Nature Methods 2021). The names of its parts are those of the state dicts.
"""

# torch's modules are untyped calls
# mypy: disable-error-code="no-any-return,no-untyped-call,misc"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def _unit(n_in: int, n_out: int, size: int, *, rectified: bool = True) -> nn.Sequential:
    """Batch normalisation, a rectifier, a convolution."""
    parts: list[nn.Module] = [nn.BatchNorm2d(n_in, eps=1e-5, momentum=0.05)]
    if rectified:
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.Conv2d(n_in, n_out, size, padding=size // 2))


class _Down(nn.Module):
    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__()
        self.proj = _unit(n_in, n_out, 1, rectified=False)
        self.conv = nn.Sequential()
        for k in range(4):
            self.conv.add_module(f"conv_{k}", _unit(n_in if k == 0 else n_out, n_out, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.conv
        x = self.proj(x) + second(first(x))
        return x + fourth(third(x))


class _Styled(nn.Module):
    """A unit whose input is shifted by a linear function of the style."""

    def __init__(self, n: int, n_style: int, size: int) -> None:
        super().__init__()
        self.conv = _unit(n, n, size)
        self.full = nn.Linear(n_style, n)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        return self.conv(x + self.full(style)[:, :, None, None])


class _Up(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_style: int, size: int) -> None:
        super().__init__()
        self.proj = _unit(n_in, n_out, 1, rectified=False)
        self.conv = nn.Sequential()
        self.conv.add_module("conv_0", _unit(n_in, n_out, size))
        for k in (1, 2, 3):
            self.conv.add_module(f"conv_{k}", _Styled(n_out, n_style, size))

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.conv
        x = self.proj(x) + second(first(x) + skip, style)
        return x + fourth(third(x, style), style)


class _Path(nn.Module):
    """The blocks of one side of the U, by name."""

    def __init__(self, name: str, prefix: str, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential())
        for k, block in enumerate(blocks):
            self.get_submodule(name).add_module(f"{prefix}_{k}", block)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the finest grid."""
        (path,) = self.children()
        return list(path.children())


class CPnet(nn.Module):
    """Flows and cell probability of an image.

    Parameters
    ----------
    nbase
        Channels of the input, then of every level: ``(2, 32, 64, 128, 256)`` in Cellpose's own models.
    nout
        Channels of the output: flow along y, flow along x (5 a pixel), the logit of the cell probability.
    size
        Side of the convolutions, px.
    diameter
        px, of the cells to which training images were rescaled.
    """

    def __init__(self, nbase: Sequence[int], nout: int = 3, size: int = 3, diameter: float = 30.0) -> None:
        super().__init__()
        self.nbase = tuple(nbase)
        self.nout = nout
        levels = self.nbase[1:]
        down = [_Down(a, b, size) for a, b in zip(self.nbase[:-1], levels, strict=True)]
        above = (*levels[1:], levels[-1])
        up = [_Up(a, b, levels[-1], size) for a, b in zip(above, levels, strict=True)]
        self.downsample = _Path("down", "res_down", down)
        self.upsample = _Path("up", "res_up", up)
        self.output = _unit(levels[0], nout, 1)
        self.diam_mean = nn.Parameter(torch.full((1,), float(diameter)), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.full((1,), float(diameter)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return maps ``(n, nout, y, x)`` and styles ``(n, channels of the last level)``.

        ``x`` is ``(n, c, y, x)``, its sides multiples of 2 to the number of levels less one.
        """
        skips: list[torch.Tensor] = []
        for block in self.downsample.blocks:
            x = block(nn.functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        style = x.mean(dim=(2, 3))
        style = style / style.square().sum(dim=1, keepdim=True).sqrt()
        blocks = self.upsample.blocks
        for k in range(len(blocks) - 1, -1, -1):
            if k < len(blocks) - 1:
                x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            x = blocks[k](x, skips[k], style)
        return self.output(x), style


def architecture(state: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of `CPnet` off a state dict; `KeyError` where it is of something else."""
    first = state["downsample.down.res_down_0.conv.conv_0.2.weight"]
    nbase = [int(first.shape[1])]
    while (name := f"downsample.down.res_down_{len(nbase) - 1}.conv.conv_0.2.weight") in state:
        nbase.append(int(state[name].shape[0]))
    return {"nbase": tuple(nbase), "nout": int(state["output.2.weight"].shape[0]), "size": int(first.shape[2])}

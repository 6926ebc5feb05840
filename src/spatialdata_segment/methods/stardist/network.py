"""The networks of StarDist as a torch module: U-Nets in 2D and 3D, and the 3D ResNet."""

# torch's modules are untyped calls
# mypy: disable-error-code="no-any-return,no-untyped-call,misc"
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.stardist.layers import layers_of, pools_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from spatialdata_segment.methods.stardist.description import Description
    from spatialdata_segment.methods.stardist.layers import Layer

    Weights = Mapping[str, Mapping[str, NDArray[np.float32]]]

_EPS = 1e-3
"""Of Keras' batch normalisation."""
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "swish": functional.silu,
    "silu": functional.silu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
}


class StarNet(nn.Module):
    """Probability, distances and classes of an image.

    Parameters
    ----------
    said
        The model.
    weights
        By layer, as `read_weights` returns them.

    Raises
    ------
    InputError
        If an activation is not known.
    """

    def __init__(self, said: Description, weights: Weights) -> None:
        super().__init__()
        self.said = said
        for name in (said.backbone.activation, said.backbone.last_activation):
            if name not in _ACTIVATIONS:
                raise InputError(f"activation {name!r} is not known: expected one of {', '.join(_ACTIVATIONS)}")
        self.parts = nn.ModuleDict({layer.key: _module(layer, weights[layer.key]) for layer in layers_of(said)})

    def forward(self, x: torch.Tensor, keep: Sequence[slice]) -> tuple[torch.Tensor, ...]:
        """Return maps ``(n, k, [z], y, x)``: probability, distances and, if there are classes, theirs.

        Parameters
        ----------
        x
            ``(n, c, [z], y, x)``, its sides multiples of `Description.divisor`.
        keep
            Of the network's grid, what is wanted: the heads run on no more.
        """
        base = self._unet(x) if self.said.backbone.kind == "unet" else self._resnet(x)
        margin = tuple(k // 2 if self.said.backbone.n_features else 0 for k in self.said.backbone.kernel_size)
        cut, inner = [], []
        for part, m, n in zip(keep, margin, base.shape[2:], strict=True):
            start, stop = max(0, part.start - m), min(n, part.stop + m)
            cut.append(slice(start, stop))
            inner.append(slice(part.start - start, part.stop - start))
        every = (slice(None), slice(None))
        base = base[(*every, *cut)]
        wide = self._features(base, "features", inner)
        maps = [torch.sigmoid(self.parts["prob"](wide)), self.parts["dist"](wide)]
        if "prob_class" in self.parts:
            classes = self.parts["prob_class"](self._features(base, "features_class", inner))
            maps.append(torch.softmax(classes, dim=1))
        return tuple(maps)

    def _features(self, base: torch.Tensor, name: str, inner: Sequence[slice]) -> torch.Tensor:
        wide = self._act(self.parts[name](base)) if name in self.parts else base
        return wide[(slice(None), slice(None), *inner)]

    def _act(self, x: torch.Tensor) -> torch.Tensor:
        return _ACTIVATIONS[self.said.backbone.activation](x)

    def _conv(self, x: torch.Tensor, key: str, activation: str) -> torch.Tensor:
        x = self.parts[key](x)
        if f"{key}_norm" in self.parts:
            x = self.parts[f"{key}_norm"](x)
        return _ACTIVATIONS[activation](x)

    def _unet(self, x: torch.Tensor) -> torch.Tensor:
        b = self.said.backbone
        pool = functional.max_pool2d if self.said.n_dim == 2 else functional.max_pool3d
        for k, step in enumerate(pools_of(self.said.grid)):
            for i in range(b.n_conv):
                x = self._conv(x, f"grid_{k}_{i}", b.activation)
            x = pool(x, step)
        skips = []
        for level in range(b.n_depth):
            for i in range(b.n_conv):
                x = self._conv(x, f"down_level_{level}_no_{i}", b.activation)
            skips.append(x)
            x = pool(x, b.pool)
        for i in (*range(b.n_conv - 1), b.n_conv):
            x = self._conv(x, f"middle_{i}", b.activation)
        for level in reversed(range(b.n_depth)):
            x = functional.interpolate(x, scale_factor=[float(p) for p in b.pool], mode="nearest")
            x = torch.cat([x, skips.pop()], dim=1)
            for i in range(b.n_conv - 1):
                x = self._conv(x, f"up_level_{level}_no_{i}", b.activation)
            last = b.activation if level > 0 else b.last_activation
            x = self._conv(x, f"up_level_{level}_no_{b.n_conv}", last)
        return x

    def _resnet(self, x: torch.Tensor) -> torch.Tensor:
        b = self.said.backbone
        x = self.parts["second"](self.parts["first"](x))
        for k, step in enumerate(pools_of(self.said.grid, b.n_depth)):
            skip = x
            for i in range(b.n_conv):
                x = _strided(self.parts[f"block_{k}_{i}"], x, step if i == 0 else (1,) * self.said.n_dim)
                if b.batch_norm:
                    x = self.parts[f"block_{k}_{i}_norm"](x)
                if i < b.n_conv - 1:
                    x = self._act(x)
            if f"block_{k}_skip" in self.parts:
                skip = _strided(self.parts[f"block_{k}_skip"], skip, step)
            x = self._act(skip + x)
        return x


class _Conv(nn.Module):
    """A convolution that pads as TensorFlow's "same" does: the odd pixel at the end."""

    def __init__(self, layer: Layer, weights: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        n = len(layer.kernel)
        self.kernel = layer.kernel
        kernel = torch.from_numpy(weights["kernel"].copy())
        self.weight = nn.Parameter(kernel.permute(n + 1, n, *range(n)).contiguous(), requires_grad=False)
        bias = torch.from_numpy(weights["bias"].copy()) if layer.bias else torch.zeros(layer.n_out)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.function = functional.conv2d if n == 2 else functional.conv3d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _strided(self, x, (1,) * len(self.kernel))


def _strided(conv: nn.Module, x: torch.Tensor, step: tuple[int, ...]) -> torch.Tensor:
    """Run a convolution with strides, which divide the sides of ``x``."""
    assert isinstance(conv, _Conv)
    total = [max(0, k - s) for k, s in zip(conv.kernel, step, strict=True)]
    if all(t % 2 == 0 for t in total):
        return conv.function(x, conv.weight, conv.bias, stride=step, padding=tuple(t // 2 for t in total))
    around = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return conv.function(functional.pad(x, around), conv.weight, conv.bias, stride=step)


class _Norm(nn.Module):
    """A batch normalisation with fixed statistics."""

    def __init__(self, layer: Layer, weights: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name, torch.from_numpy(value.copy()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(
            x,
            self.get_buffer("moving_mean"),
            self.get_buffer("moving_variance"),
            self.get_buffer("gamma"),
            self.get_buffer("beta"),
            eps=_EPS,
        )


def _module(layer: Layer, weights: Mapping[str, NDArray[np.float32]]) -> nn.Module:
    return (_Conv if layer.kind == "conv" else _Norm)(layer, weights)

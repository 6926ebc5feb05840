"""The layers that hold weights of a StarDist network, in the order in which Keras made them; neither files nor torch.

Names, sizes and order are those of `stardist.models` (0.9.2) and `csbdeep.internals.blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata_segment.methods.stardist.description import Description

Kind = Literal["conv", "batch_normalization"]


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes
    ----------
    key
        Its name in our network.
    kind
        "conv" or "batch_normalization".
    name
        Its name in the file; None where Keras numbered it.
    n_in, n_out
        Channels.
    kernel
        Pixels along ``([z], y, x)``; empty for a normalisation.
    bias
        Whether a convolution has one.
    """

    key: str
    kind: Kind
    name: str | None
    n_in: int
    n_out: int
    kernel: tuple[int, ...] = ()
    bias: bool = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in Keras' order."""
        if self.kind == "batch_normalization":
            return dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (self.n_out,))
        kernel = {"kernel": (*self.kernel, self.n_in, self.n_out)}
        return kernel | {"bias": (self.n_out,)} if self.bias else kernel


def pools_of(grid: tuple[int, ...], n: int | None = None) -> list[tuple[int, ...]]:
    """Return the factors by which a network is pooled, one step after the other, until it has the grid.

    ``n``: the number of steps; those that are left over pool nothing.
    """
    pooled, steps = (1,) * len(grid), list[tuple[int, ...]]()
    while pooled != grid if n is None else len(steps) < n:
        step = tuple(2 if g > p else 1 for g, p in zip(grid, pooled, strict=True))
        pooled = tuple(p * s for p, s in zip(pooled, step, strict=True))
        steps.append(step)
    return steps


def layers_of(said: Description) -> list[Layer]:
    """Return the layers of a network."""
    make = _unet if said.backbone.kind == "unet" else _resnet
    found = list(make(said))
    n = found[-1].n_out
    return [*found, *_heads(said, n)]


def _unet(said: Description) -> Iterator[Layer]:
    b, n = said.backbone, said.n_channels
    for k, _ in enumerate(pools_of(said.grid)):
        for i in range(b.n_conv):
            yield Layer(f"grid_{k}_{i}", "conv", None, n, b.n_filter_base, b.kernel_size)
            n = b.n_filter_base
    width = [int(b.n_filter_base * b.expansion**k) for k in range(b.n_depth + 1)]
    for level in range(b.n_depth):
        for i in range(b.n_conv):
            yield from _block(said, f"down_level_{level}_no_{i}", n, width[level])
            n = width[level]
    below = int(b.n_filter_base * b.expansion ** max(0, b.n_depth - 1))
    for i in range(b.n_conv - 1):
        yield from _block(said, f"middle_{i}", n, width[b.n_depth])
        n = width[b.n_depth]
    yield from _block(said, f"middle_{b.n_conv}", n, below)
    n = below
    for level in reversed(range(b.n_depth)):
        n += width[level]
        for i in range(b.n_conv - 1):
            yield from _block(said, f"up_level_{level}_no_{i}", n, width[level])
            n = width[level]
        last = int(b.n_filter_base * b.expansion ** max(0, level - 1))
        yield from _block(said, f"up_level_{level}_no_{b.n_conv}", n, last)
        n = last


def _block(said: Description, name: str, n_in: int, n_out: int) -> Iterator[Layer]:
    b = said.backbone
    yield Layer(name, "conv", b.prefix + name, n_in, n_out, b.kernel_size)
    if b.batch_norm:
        yield Layer(f"{name}_norm", "batch_normalization", None, n_out, n_out)


def _resnet(said: Description) -> Iterator[Layer]:
    b, n = said.backbone, said.backbone.n_filter_base
    yield Layer("first", "conv", None, said.n_channels, n, (7,) * said.n_dim)
    yield Layer("second", "conv", None, n, n, (3,) * said.n_dim)
    for k, pool in enumerate(pools_of(said.grid, b.n_depth)):
        n_in, n = n, n * (2 if max(pool) > 1 else 1)
        for i in range(b.n_conv):
            yield Layer(f"block_{k}_{i}", "conv", None, n_in if i == 0 else n, n, b.kernel_size, not b.batch_norm)
            if b.batch_norm:
                yield Layer(f"block_{k}_{i}_norm", "batch_normalization", None, n, n)
        if max(pool) > 1 or n != n_in:
            yield Layer(f"block_{k}_skip", "conv", None, n_in, n, (1,) * said.n_dim, not b.batch_norm)


def _heads(said: Description, n: int) -> Iterator[Layer]:
    b, point = said.backbone, (1,) * said.n_dim
    wide = b.n_features or n
    if b.n_features:
        yield Layer("features", "conv", "features", n, wide, b.kernel_size)
    yield Layer("prob", "conv", "prob", wide, 1, point)
    yield Layer("dist", "conv", "dist", wide, said.n_rays, point)
    if said.n_classes is not None:
        if b.n_features:
            yield Layer("features_class", "conv", "features_class", n, wide, b.kernel_size)
        yield Layer("prob_class", "conv", "prob_class", wide, said.n_classes + 1, point)

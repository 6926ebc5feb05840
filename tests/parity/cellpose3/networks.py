"""Weights of small networks of Cellpose 1 to 3, with numpy alone: the same for Cellpose and for this package.

`random_weights` are numbers of a seed, for every tensor that a network has. `cell_weights` are set by hand, so that
bright spots are found: the network blurs its input, and its flows are the gradient of that.
"""

from __future__ import annotations

import numpy as np

CELL_NBASE = 2, 12, 12
"""Of the network that `cell_weights` are for; its convolutions have a side of 5 px."""
CELL_SIZE = 5


def random_weights(shapes, seed):
    """Return an array for every tensor: ``shapes`` has their names and shapes.

    They are made in the order of their names. Statistics of batch normalisation are neither 0 nor 1.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked" or name.startswith("diam"):
            continue
        if kind == "running_var" or (kind == "weight" and len(shape) == 1):
            made[name] = rng.uniform(0.5, 1.5, shape)
        elif kind == "weight":
            made[name] = rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
        else:
            made[name] = rng.normal(0, 0.3, shape)
    return {name: value.astype(np.float32) for name, value in made.items()}


def cell_weights(shapes, threshold=0.35, gain=14.0, second=0.5):
    """Return an array for every tensor of a network of `CELL_NBASE` that finds bright spots of some 8 px.

    Parameters
    ----------
    shapes
        Names and shapes of its tensors.
    threshold
        Of the blurred image, for the cell probability.
    gain
        Of the gradient: flows are cut at a length of 1 along each axis.
    second
        Weight of the second channel.
    """
    made = {name: np.zeros(tuple(shape), np.float32) for name, shape in shapes.items() if not name.startswith("diam")}
    for name, value in made.items():
        if name.endswith("running_var"):
            value[...] = 1 - 1e-5
        elif name.endswith("weight") and value.ndim == 1:
            value[...] = 1
    binomial = np.array([1, 4, 6, 4, 1]) / 16
    blur = np.outer(binomial, binomial)
    dot = np.zeros((CELL_SIZE, CELL_SIZE))
    dot[2, 2] = 1
    down = np.zeros((CELL_SIZE, CELL_SIZE))
    down[3, 2], down[1, 2] = gain, -gain

    def put(place, pairs, bias=()):
        for (after, before), value in pairs.items():
            made[f"{place}.weight"][after, before] = value
        for channel, value in enumerate(bias):
            made[f"{place}.bias"][channel] = value

    first = "downsample.down.res_down_0.conv.conv_{}.2"
    put(first.format(0), {(0, 0): blur, (0, 1): second * blur})
    put(first.format(1), {(0, 0): blur})
    put(first.format(2), {(0, 0): blur})
    put(first.format(3), {(1, 0): blur})
    put("downsample.down.res_down_1.proj.1", {(1, 1): 1.0})
    put("downsample.down.res_down_1.conv.conv_1.2", {}, [1.0])  # the style is never nothing
    last = "upsample.up.res_up_0.conv.conv_{}.conv.2"
    # gradients 1 higher and 1 lower: what a rectifier leaves of both tells them cut at 1
    put(last.format(1), {(0, 1): down, (1, 1): down, (2, 1): down.T, (3, 1): down.T, (4, 1): dot}, [1, -1, 1, -1])
    cut = {(0, 0): dot, (0, 1): -dot, (2, 2): dot, (2, 3): -dot, (4, 4): 20 * dot}
    put(last.format(2), {**cut, **{(a + 1, b): -v for (a, b), v in cut.items()}},
        [-1, 1, -1, 1, -20 * threshold, 20 * threshold])  # fmt: skip
    put(last.format(3), {(k + 6, k): dot for k in range(6)})
    put("output.2", {(0, 6): 5, (0, 7): -5, (1, 8): 5, (1, 9): -5, (2, 10): 1, (2, 11): -1})
    return made

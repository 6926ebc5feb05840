"""Make the golden data of `tests/parity/test_cellpose3.py` with cellpose 3.1.1.3, on the CPU.

    python tests/parity/cellpose3/make_golden.py

writes ``maps.npz``, ``volumes.npz``, ``masks.npz`` and ``rest.npz`` beside this file. What goes in is not stored: it is
made here, of whole numbers and of operations that are exact, by numpy alone; the tests make it again with the same
functions.
"""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    from networks import CELL_NBASE, CELL_SIZE, cell_weights, random_weights

HERE = Path(__file__).parent
NETWORKS = {"shallow": ((2, 8, 16), 1), "deep": ((2, 8, 16, 32, 64), 2)}
"""``nbase`` and seed of networks of random weights; they take 30 px."""
MAPS = {
    "one tile": ("shallow", (224, 208), {}),
    "small": ("deep", (60, 70), {}),
    "tiles": ("shallow", (230, 300), {}),
    "tiles, deep": ("deep", (250, 199), {}),
    "shrunk": ("shallow", (250, 390), {"rescale": 0.6}),
    "shrunk, not resampled": ("deep", (250, 390), {"rescale": 0.6, "resample": False}),
    "enlarged": ("deep", (130, 190), {"rescale": 1.7}),
    "enlarged, not resampled": ("shallow", (130, 190), {"rescale": 1.7, "resample": False}),
    "augmented": ("deep", (150, 290), {"augment": True}),
    "augmented, shrunk": ("shallow", (250, 390), {"augment": True, "rescale": 0.6}),
    "augmented, enlarged, not resampled": (
        "shallow", (101, 190), {"augment": True, "rescale": 1.7, "resample": False},
    ),
    "other tiles": ("shallow", (240, 333), {"bsize": 128, "tile_overlap": 0.3}),
}  # fmt: skip
"""Network, shape of the image, and what `CellposeModel._run_net` is told."""
VOLUMES = {
    "plain": ("shallow", (9, 40, 50), {}),
    "tiles": ("deep", (6, 30, 250), {}),
    "anisotropic": ("shallow", (9, 40, 50), {"anisotropy": 2.5}),
    "shrunk, anisotropic": ("deep", (10, 60, 70), {"rescale": 0.7, "anisotropy": 1.6}),
    "shrunk, not resampled": ("shallow", (10, 60, 70), {"rescale": 0.7, "anisotropy": 1.6, "resample": False}),
    "enlarged": ("shallow", (7, 31, 35), {"rescale": 1.3}),
    "smoothed": ("shallow", (9, 40, 50), {"flow3D_smooth": 1.5}),
}
"""As `MAPS`, with ``do_3D=True``; the smoothing is that of `CellposeModel.eval`."""
MASKS = {
    "usual": {},
    "no threshold": {"flow_threshold": None},
    "strict, few steps": {"flow_threshold": 0.3, "niter": 25},
    "high probability": {"cellprob_threshold": 4.0, "min_size": 60},
    "large ones out": {"max_size_fraction": 0.0013},
}
WHOLE = {
    "plain": {"diameter": 17.0},
    "shrunk": {"diameter": 24.0},
    "enlarged": {"diameter": 11.0},
    "shrunk, not resampled": {"diameter": 24.0, "resample": False},
    "enlarged, not resampled": {"diameter": 11.0, "resample": False},
    "augmented": {"diameter": 17.0, "augment": True},
    "inverted": {"diameter": 17.0, "invert": True},
}
"""What `CellposeModel.eval` is told, with the network that finds bright spots."""
GENTLE = 4.0
"""Gain of flows that do not throw paths to and fro: two of length 1, the sum of two planes, would."""
WHOLE_VOLUMES = {
    "plain": {"diameter": 17.0},
    "anisotropic": {"diameter": 17.0, "anisotropy": 2.0},
    "shrunk, not resampled": {"diameter": 21.0, "resample": False},
}
PERCENTILES = {"usual": {}, "others": {"percentile": (3.0, 99.8)}, "inverted": {"invert": True},
               "given": {"lowhigh": [[10, 900], [5, 300]]}}  # fmt: skip


def noise(seed, shape):
    """Return the two channels that random networks see, ``(2, [z], y, x)``."""
    return np.random.default_rng(seed).random((2, *shape), dtype=np.float32)


def sampled(length, n=26):
    """Return the pixels along an axis of which maps are kept: spread evenly, ends included."""
    return np.unique(np.linspace(0, length - 1, n).astype(int))


def ellipses(shape=(380, 400), pitch=18, seed=0, size=60):
    """Return labels of ellipses that touch, one side cut off each, some cut by others; all of whole numbers.

    What is symmetric has no direction in its middle but that of rounding.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    k = 0
    for row in range(shape[0] // pitch + 1):
        for column in range(shape[1] // pitch + 1):
            centre = pitch * np.array([row, column]) + rng.integers(0, 9, 2)
            a, c = rng.integers(5, 14, 2)
            b = rng.integers(-4, 5)
            y, x = (np.arange(n) - m for n, m in zip(shape, centre, strict=True))
            inside = a * y[:, None] ** 2 + b * y[:, None] * x + c * x**2 <= size * rng.integers(6, 13)
            inside &= 3 * y[:, None] + 2 * x <= rng.integers(3, 20)
            k += 1
            labels[inside & ((labels == 0) | (rng.random() < 0.3))] = k
    present = np.unique(labels)
    return np.searchsorted(present, labels).astype(np.int32)


def _rough(rng, shape, n=3):
    """Return smooth noise of about unit size, of whole numbers: sums over boxes."""
    rough = rng.integers(-100, 101, (shape[0] + 2 * n, shape[1] + 2 * n))
    side = 2 * n + 1
    for axis in (0, 1):
        total = np.insert(np.cumsum(rough, axis=axis), 0, 0, axis=axis)
        after, before = (np.take(total, range(s, total.shape[axis] - side + s), axis=axis) for s in (side, 0))
        rough = after - before
    return rough / 400.0


def flow_maps(labels, seed=0, amount=0.35):
    """Return maps ``(3, y, x)`` of labels: flows to the middle of each, and noise; rounded to half precision."""
    rng = np.random.default_rng(seed)
    n = np.bincount(labels.ravel())
    y, x = np.indices(labels.shape)
    steps = np.stack([(np.bincount(labels.ravel(), at.ravel()) / n)[labels] - at for at in (y, x)])
    steps /= np.maximum(np.sqrt((steps**2).sum(axis=0)), 1)
    steps = np.where(labels > 0, steps, 0) + amount * np.stack([_rough(rng, labels.shape) for _ in range(2)])
    logit = np.where(labels > 0, 5, -5) + 2 * _rough(rng, labels.shape)
    return np.stack([*(5 * steps), logit]).astype(np.float16).astype(np.float32)


def spots(seed=0):
    """Return a picture ``(1, y, x)`` uint16 of bright ellipses, unevenly lit."""
    rng = np.random.default_rng(seed)
    labels = ellipses((270, 300), 14, seed + 1, 22)
    light = rng.integers(600, 1400, labels.max() + 1)
    light[0] = 0
    picture = 300 + light[labels] + rng.integers(0, 120, labels.shape) + np.arange(300) // 2
    return picture.astype(np.uint16)[None]


def balls(step=1, seed=0):
    """Return a volume ``(1, z, y, x)`` uint16 of bright balls, every ``step``-th plane of it."""
    rng = np.random.default_rng(seed)
    shape = 48, 80, 90
    picture = 300 + rng.integers(0, 120, shape)
    at = [np.arange(n) for n in shape]
    for corner in np.ndindex(3, 5, 6):
        z, y, x = 16 * np.array(corner) + rng.integers(5, 12, 3)
        inside = ((at[0] - z) ** 2)[:, None, None] + ((at[1] - y) ** 2)[:, None] + (at[2] - x) ** 2
        picture[inside <= rng.integers(16, 40)] += rng.integers(600, 1400)
    return picture[::step].astype(np.uint16)[None]


def stains():
    """Return a small skewed image ``(2, y, x)`` uint16."""
    rng = np.random.default_rng(5)
    return (rng.integers(1, 1000, (2, 40, 50)) ** 2 // rng.integers(1, 900, (2, 40, 50))).astype(np.uint16)


def size_numbers(n=12):
    """Return the parameters of a size model for styles of length ``n``, and some styles."""
    rng = np.random.default_rng(3)
    styles = rng.normal(0, 1, (6, n))
    styles /= np.sqrt((styles**2).sum(axis=1, keepdims=True))
    numbers = {"A": rng.normal(0, 1, n), "smean": rng.normal(0, 0.3, n), "diam_mean": 17.0, "ymean": -0.2}
    return numbers, styles


def small_size_numbers(n=12):
    """Return the parameters of a size model that guesses some 13 px, whatever the style."""
    return {"A": np.full(n, 0.05), "smean": np.full(n, 0.1), "diam_mean": 17.0, "ymean": np.log(13 / 17.0)}


def _model(net, n_style):
    """Return a `CellposeModel` around a network; `core.run_net` expects 256 channels of style."""
    import torch
    from cellpose import core, models

    code = Path(inspect.getsourcefile(core)).read_text().replace('256), "float32")', f'{n_style}), "float32")')
    exec(compile(code, core.__file__, "exec"), core.__dict__)
    models.run_net = core.run_net
    model = models.CellposeModel.__new__(models.CellposeModel)
    model.net, model.device, model.nchan, model.pretrained_model = net.eval(), torch.device("cpu"), 2, ""
    model.net_ortho = None
    model.diam_mean = model.diam_labels = float(net.diam_mean)
    return model


def _filled(net, made):
    import torch

    state = net.state_dict()
    for name, value in made(state).items():
        state[name] = torch.from_numpy(value).to(state[name].dtype)
    net.load_state_dict(state)
    return net


def _make_maps():
    from cellpose.resnet_torch import CPnet

    found = {}
    for name, (network, shape, given) in MAPS.items():
        nbase, seed = NETWORKS[network]
        net = CPnet(list(nbase), 3, 3, diam_mean=30.0)
        net = _filled(net, lambda state, seed=seed: random_weights({n: v.shape for n, v in state.items()}, seed))
        model = _model(net, nbase[-1])
        image = noise(7, shape).transpose(1, 2, 0)[None]
        flows, logit, style = model._run_net(image, **{"rescale": 1.0, "batch_size": 1, **given})
        maps = np.concatenate([flows, logit[None]])[:, 0]
        found[f"{name}/maps"] = maps[np.ix_(range(3), *(sampled(n) for n in maps.shape[1:]))]
        found[f"{name}/shape"] = np.array(maps.shape)
        found[f"{name}/std"] = maps.std(axis=(1, 2))
        found[f"{name}/style"] = np.float32(style)
    np.savez_compressed(HERE / "maps.npz", **found)


def _make_volumes():
    from cellpose.resnet_torch import CPnet
    from scipy.ndimage import gaussian_filter

    found = {}
    for name, (network, shape, given) in VOLUMES.items():
        nbase, seed = NETWORKS[network]
        net = CPnet(list(nbase), 3, 3, diam_mean=30.0)
        net = _filled(net, lambda state, seed=seed: random_weights({n: v.shape for n, v in state.items()}, seed))
        model = _model(net, nbase[-1])
        told = {"rescale": 1.0, "batch_size": 1, **given}
        sigma = told.pop("flow3D_smooth", 0)
        flows, logit, _ = model._run_net(noise(7, shape).transpose(1, 2, 3, 0), do_3D=True, **told)
        if sigma:
            flows = gaussian_filter(flows, (0, sigma, sigma, sigma))
        maps = np.concatenate([flows, logit[None]])
        found[f"{name}/maps"] = maps[np.ix_(range(4), *(sampled(n, 9) for n in maps.shape[1:]))]
        found[f"{name}/shape"] = np.array(maps.shape)
        found[f"{name}/std"] = maps.std(axis=(1, 2, 3))
    np.savez_compressed(HERE / "volumes.npz", **found, **_masks_of_volumes())


def _masks_of_volumes():
    """Return masks; paths are sampled truly, as Cellpose does in planes.

    It takes positions that count from the middles of the outermost voxels for such that count from their sides.
    """
    from cellpose import dynamics
    from cellpose.resnet_torch import CPnet

    code = inspect.getsource(dynamics.steps_interp).replace("align_corners=False", "align_corners=True")
    exec(compile(code, dynamics.__file__, "exec"), dynamics.__dict__)
    found = {}
    net = CPnet(list(CELL_NBASE), 3, CELL_SIZE, diam_mean=17.0)
    weights = lambda s: cell_weights({n: v.shape for n, v in s.items()}, gain=GENTLE)  # noqa: E731
    model = _model(_filled(net, weights), CELL_NBASE[-1])
    for name, given in WHOLE_VOLUMES.items():
        picture = balls(2 if "anisotropy" in given else 1)[0]
        image = np.stack([picture, 0 * picture], axis=-1)
        masks, *_ = model.eval(image, channels=None, channel_axis=-1, z_axis=0, do_3D=True, **given)
        found[f"whole/{name}"] = masks.astype(np.uint8)
    return found


def _make_masks():
    """Make masks; between its steps Cellpose must number them again.

    Its `fill_holes_and_remove_small_masks` takes the labels for 1..n, which they are no more once masks of wrong flows
    are out: where some are too small, it removes others in their place.
    """
    import fastremap
    from cellpose import dynamics
    from cellpose.resnet_torch import CPnet

    remove = dynamics.remove_bad_flow_masks
    dynamics.remove_bad_flow_masks = lambda *args, **given: fastremap.renumber(remove(*args, **given))[0]
    found = {}
    labels = ellipses()
    maps = flow_maps(labels)
    for name, given in MASKS.items():
        masks = dynamics.compute_masks(maps[:2], maps[2], **{"niter": 200, "min_size": 15, **given})
        found[f"decoded/{name}"] = masks.astype(np.uint16)
    net = CPnet(list(CELL_NBASE), 3, CELL_SIZE, diam_mean=17.0)
    model = _model(_filled(net, lambda s: cell_weights({n: v.shape for n, v in s.items()})), CELL_NBASE[-1])
    for name, given in WHOLE.items():
        picture = spots()[0]
        picture = 5000 - picture if given.get("invert") else picture
        masks, *_ = model.eval(np.stack([picture, 0 * picture], axis=-1), channels=None, channel_axis=-1, **given)
        found[f"whole/{name}"] = masks.astype(np.uint16)
    np.savez_compressed(HERE / "masks.npz", **found)
    return model


def _make_rest(model):
    import torch
    from cellpose import dynamics, metrics, models, transforms

    found = {}
    labels = ellipses((120, 130), 18, 4)
    flows = dynamics.masks_to_flows_cpu(labels)[0]
    found["heat"] = np.rint(flows[:, ::2] * 32000).astype(np.int16)
    labels = ellipses()
    found["errors"] = metrics.flow_error(labels, flow_maps(labels)[:2], torch.device("cpu"))[0].astype(np.float32)
    for name, given in PERCENTILES.items():
        image = transforms.normalize_img(stains().transpose(1, 2, 0).astype(np.float32), **given)
        found[f"normalized/{name}"] = image.transpose(2, 0, 1)[:, ::3, ::3]
    with tempfile.TemporaryDirectory() as folder:
        numbers, styles = size_numbers()
        for name, made in (("size", numbers), ("small", small_size_numbers())):
            np.save(Path(folder) / f"{name}.npy", made)
        size = models.SizeModel(model, pretrained_size=f"{folder}/size.npy")
        found["diameters"] = np.array([float(np.squeeze(size._size_estimation(s))) for s in styles])
        size = models.SizeModel(model, pretrained_size=f"{folder}/small.npy")
        picture = spots()[0]
        found["estimate"] = np.array(size.eval(np.stack([picture, 0 * picture], -1), channels=None, channel_axis=-1))
    np.savez_compressed(HERE / "rest.npz", **found)


if __name__ == "__main__":
    _make_maps()
    _make_volumes()
    _make_rest(_make_masks())
    for path in sorted(HERE.glob("*.npz")):
        print(path.name, path.stat().st_size)

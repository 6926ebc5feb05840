"""Make the golden data of `tests/parity/test_stardist.py` with stardist 0.9.2 on TensorFlow, on the CPU.

    python tests/parity/stardist/make_golden.py

writes, beside this file, a model folder for every entry of `MODELS`, and ``maps.npz`` and ``instances.npz``. The images
are not stored: they are made here, by numpy alone, and the tests make them again with the same functions.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SMALL = {"unet_n_filter_base": 2, "net_conv_after_unet": 5}
MODELS = {
    "grid1": (2, (45, 50), {"n_rays": 8, "unet_n_depth": 2, **SMALL}),
    "grid2": (2, (61, 70), {"n_rays": 32, "grid": (2, 2), **SMALL}),
    "grid4-rgb": (2, (71, 90), {"n_rays": 11, "grid": (4, 4), "n_channel_in": 3, "unet_n_depth": 2, **SMALL}),
    "classes": (2, (50, 47), {"n_rays": 6, "grid": (2, 2), "n_classes": 3, "unet_n_depth": 1, **SMALL}),
    "norm": (
        2,
        (40, 57),
        {
            "n_rays": 9,
            "grid": (1, 2),
            "unet_n_depth": 1,
            "unet_n_filter_base": 3,
            "unet_n_conv_per_depth": 3,
            "unet_kernel_size": (5, 3),
            "unet_batch_norm": True,
            "unet_activation": "elu",
            "unet_last_activation": "linear",
            "net_conv_after_unet": 0,
        },
    ),
    "unet3d": (3, (9, 30, 33), {"n_rays": 13, "grid": (1, 2, 2), "anisotropy": (2, 1, 1), **SMALL}),
    "resnet3d": (
        3,
        (7, 26, 31),
        {
            "n_rays": 12,
            "grid": (1, 2, 2),
            "backbone": "resnet",
            "resnet_n_filter_base": 2,
            "resnet_n_blocks": 3,
            "net_conv_after_resnet": 4,
        },
    ),
    "resnet3d-norm": (
        3,
        (8, 21, 19),
        {
            "n_rays": 10,
            "grid": (2, 2, 4),
            "backbone": "resnet",
            "resnet_n_filter_base": 2,
            "resnet_n_blocks": 2,
            "resnet_batch_norm": True,
            "net_conv_after_resnet": 4,
            "n_classes": 2,
        },
    ),
}
"""Axes, shape of the image, and what the configuration is told."""
WITH_KERAS3 = "grid1"
"""The model whose weights are kept in the layout of Keras 3 as well."""
N_KEPT = 3000
"""Distances a model that are kept."""
INSTANCES = {"2d": ((120, 130), 16, (2, 2)), "3d": ((18, 40, 44), 24, (1, 2, 2))}
"""Shape, number of rays and grid of maps that are made of labels, not by a network."""


def image_of(shape, n_channels, seed):
    """Return a normalised image ``(c, [z], y, x)`` float32: bright spots and noise."""
    rng = np.random.default_rng(seed)
    at = np.indices(shape).reshape(len(shape), -1).T
    out = np.zeros((n_channels, *shape))
    for _ in range(6 * len(shape)):
        centre, radius = rng.uniform(0, shape), rng.uniform(3, 7)
        spot = np.maximum(0, 1 - ((at - centre) ** 2).sum(axis=1) / radius**2).reshape(shape)
        out += spot * rng.uniform(0.3, 1, n_channels).reshape(-1, *(1,) * len(shape))
    return (out + rng.uniform(0, 0.2, out.shape)).astype(np.float32)


def kept_places(size, seed):
    """Return the flat positions of the distances that are kept."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:N_KEPT])


def label_spots(shape, seed, radius, spacing):
    """Return labels ``([z], y, x)`` of spots of all sizes that touch and overlap."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    axes = np.indices(shape)
    for k in range(1, int(np.prod(shape) / spacing ** len(shape)) + 1):
        centre = rng.uniform(-2, np.array(shape) + 2)
        radii = rng.uniform(*radius) * rng.uniform(0.6, 1.0, len(shape))
        away = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True))
        labels[away < 1] = k
    return labels


def _randomise(model, rng):
    """Give every weight a number, so that none can be taken for another."""
    for layer in model.keras_model.layers:
        made = []
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
            name = weight.path.rsplit("/", 1)[-1]
            if name == "kernel":
                made.append(rng.normal(0, 1, value.shape) * np.sqrt(1.4 / np.prod(value.shape[:-1])))
            elif name == "moving_variance" or name == "gamma":
                made.append(rng.uniform(0.5, 1.5, value.shape))
            else:
                made.append(rng.normal(4.0 if layer.name == "dist" else 0.0, 0.3, value.shape))
        layer.set_weights([m.astype(np.float32) for m in made])


def _pack(path):
    """Write a file of weights again, the same groups and attributes, without the room that HDF5 leaves in it."""
    import h5py

    packed = path.with_suffix(".packed")
    with h5py.File(path) as source, h5py.File(packed, "w", libver="latest") as target:
        for name in source:
            source.copy(name, target)
        for name, value in source.attrs.items():
            target.attrs[name] = value
    packed.replace(path)


def _make_models():
    from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D

    golden = {}
    for seed, (name, (ndim, shape, settings)) in enumerate(MODELS.items()):
        shutil.rmtree(HERE / name, ignore_errors=True)
        config = (Config2D if ndim == 2 else Config3D)(**settings)
        model = (StarDist2D if ndim == 2 else StarDist3D)(config, name=name, basedir=str(HERE))
        _randomise(model, np.random.default_rng(seed))
        model.keras_model.save_weights(str(HERE / name / "weights_best.h5"))
        if name == WITH_KERAS3:
            model.keras_model.save_weights(str(HERE / name / "keras3.weights.h5"))
        for path in (HERE / name).glob("*.h5"):
            _pack(path)
        (HERE / name / "thresholds.json").write_text(json.dumps({"prob": 0.5, "nms": 0.4}))
        image = np.moveaxis(image_of(shape, config.n_channel_in, seed), 0, -1)
        prob, dist, *classes = model.predict(image, axes="ZYX"[-ndim:] + "C")
        golden[f"{name}/prob"] = prob
        golden[f"{name}/shape"] = np.array(dist.shape)
        golden[f"{name}/dist"] = dist.ravel()[kept_places(dist.size, seed)]
        if classes:
            golden[f"{name}/classes"] = classes[0]
    np.savez_compressed(HERE / "maps.npz", **golden)


def _make_instances():
    from stardist import edt_prob, star_dist, star_dist3D
    from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D
    from stardist.rays3d import Rays_GoldenSpiral

    golden = {}
    for seed, (name, (shape, n_rays, grid)) in enumerate(INSTANCES.items()):
        rng = np.random.default_rng(seed)
        labels = label_spots(shape, seed, (5, 11) if len(shape) == 2 else (3, 8), 11 if len(shape) == 2 else 9)
        every = tuple(slice(None, None, g) for g in grid)
        prob = edt_prob(labels)[every].astype(np.float32)
        if len(shape) == 2:
            config, kind = Config2D(n_rays=n_rays, grid=grid), StarDist2D
            dist = star_dist(labels, n_rays, grid=grid)
        else:
            rays = Rays_GoldenSpiral(n_rays, anisotropy=(2, 1, 1))
            config, kind = Config3D(rays=rays, grid=grid, anisotropy=(2, 1, 1)), StarDist3D
            dist = star_dist3D(labels, rays, grid=grid)
        prob = np.clip(prob * rng.uniform(0.6, 1.0, prob.shape), 0, 1).astype(np.float32)
        dist = np.maximum(1e-3, dist * rng.normal(1, 0.08, dist.shape)).astype(np.float32)
        mask = prob > 0.3
        golden[f"{name}/prob"], golden[f"{name}/dist"] = np.where(mask, prob, 0), dist[mask]
        model = kind(config, basedir=None)
        for k, (prob_thresh, nms_thresh) in enumerate([(0.3, 0.3), (0.4, 0.5), (0.35, 0.05)]):
            found, details = model._instances_from_prediction(
                shape, prob, dist, prob_thresh=prob_thresh, nms_thresh=nms_thresh
            )
            golden[f"{name}/labels{k}"] = found.astype(np.uint16)
            golden[f"{name}/points{k}"] = details["points"]
            golden[f"{name}/thresholds{k}"] = np.array([prob_thresh, nms_thresh])
    np.savez_compressed(HERE / "instances.npz", **golden)


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["OMP_NUM_THREADS"] = "1"  # the suppression of volumes adds up in the order of its threads
    _make_models()
    _make_instances()

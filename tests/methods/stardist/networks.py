"""StarDist models in the small, written as StarDist writes them: bright spots are found, by weights set by hand."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np


def write_model(folder: Path, ndim: int = 2, **settings) -> Path:
    """Write a model whose candidates are pixels that are bright after a blur; return its folder.

    Parameters
    ----------
    folder
        To make.
    ndim
        2 or 3.
    settings
        See `_settings`.
    """
    s = _settings(ndim, **settings)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(s["config"]))
    (folder / "thresholds.json").write_text(json.dumps({"prob": s["prob_thresh"], "nms": s["nms_thresh"]}))
    write_weights(folder / "weights_best.h5", s["layers"])
    return folder


def write_weights(path: Path, layers) -> None:
    """Write weights in the layout of Keras' ``save_weights``."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"] = b"tensorflow"
        for name, weights in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{w}:0".encode() for w in weights]
            for w, value in weights.items():
                group[f"{name}/{w}:0"] = np.asarray(value, np.float32)


def _settings(
    ndim,
    *,
    n_rays=8,
    grid=None,
    n_channels=1,
    n_classes=None,
    radius=5.0,
    growth=3.0,
    threshold=0.35,
    gain=12.0,
    anisotropy=None,
    prob_thresh=0.5,
    nms_thresh=0.4,
):
    """Return the configuration and the layers.

    The probability is a logistic function of the blurred first channel; distances are ``radius`` and, by ``growth``,
    more where it is brighter, and differ from ray to ray. The more of the last channel, the more class 2.
    """
    kernel = (3,) * ndim
    grid = grid or (1,) * ndim
    blur = np.ones((*kernel, 1, 1)) / 3**ndim
    layers, n = {"input": {}}, n_channels
    passed = np.zeros((*kernel, n, 2))
    passed[..., 0, 0], passed[..., n - 1, 1] = blur[..., 0, 0], blur[..., 0, 0]
    steps = int(np.log2(max(grid)))
    for k in range(2 * steps):  # two convolutions before each pooling
        name = f"conv{ndim}d" + (f"_{k}" if k else "")
        layers[name] = {"kernel": passed, "bias": np.zeros(2)}
        passed = _both(blur)
    for name in ("middle_0", "middle_2"):
        layers[name] = {"kernel": passed, "bias": np.zeros(2)}
        passed = _both(blur)
    point = (1,) * ndim
    rng = np.random.default_rng(0)
    layers["prob"] = {"kernel": np.array([gain, 0.0]).reshape(*point, 2, 1), "bias": [-gain * threshold]}
    shape = radius * (1 + 0.1 * rng.uniform(-1, 1, n_rays))
    layers["dist"] = {
        "kernel": np.stack([growth * np.ones(n_rays), np.zeros(n_rays)]).reshape(*point, 2, n_rays),
        "bias": shape,
    }
    if n_classes is not None:
        slopes = np.zeros((2, n_classes + 1))
        slopes[1, min(2, n_classes)] = 4.0
        bias = np.zeros(n_classes + 1)
        bias[1] = 1.0
        layers["prob_class"] = {"kernel": slopes.reshape(*point, 2, -1), "bias": bias}
    config = {
        "n_dim": ndim,
        "axes": "ZYXC"[-ndim - 1 :],
        "n_channel_in": n_channels,
        "n_rays": n_rays,
        "grid": grid,
        "backbone": "unet",
        "n_classes": n_classes,
        "unet_n_depth": 0,
        "unet_kernel_size": kernel,
        "unet_n_filter_base": 2,
        "unet_n_conv_per_depth": 2,
        "unet_pool": (2,) * ndim,
        "unet_activation": "relu",
        "unet_last_activation": "relu",
        "unet_batch_norm": False,
        "unet_dropout": 0.0,
        "unet_prefix": "",
        "net_conv_after_unet": 0,
    }
    if ndim == 3:
        config["rays_json"] = {"name": "Rays_GoldenSpiral", "kwargs": {"n": n_rays, "anisotropy": anisotropy}}
    return {"config": config, "layers": layers, "prob_thresh": prob_thresh, "nms_thresh": nms_thresh}


def _both(blur):
    kernel = np.zeros((*blur.shape[:-2], 2, 2))
    kernel[..., 0, 0], kernel[..., 1, 1] = blur[..., 0, 0], blur[..., 0, 0]
    return kernel

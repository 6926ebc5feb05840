"""Train small StarDist models, and keep what stardist on TensorFlow makes of images: run by `stardist.py reference`.

Runs in an environment with stardist 0.9.2 and tensorflow; imports nothing of this package.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from csbdeep.utils import normalize
from skimage.io import imread


def train(folder: Path, data: Path, name: str, epochs: int) -> None:
    """Train on the parts of one image, and keep the maps and the instances of the whole."""
    from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D
    from stardist.rays3d import Rays_GoldenSpiral

    raw, labels = imread(data / f"{name}.tif"), imread(data / f"{name}_labels.tif")
    image = normalize(raw, 1, 99.8)
    common = {"train_epochs": epochs, "train_steps_per_epoch": 40, "train_learning_rate": 1e-3}
    common |= {"train_tensorboard": False, "train_batch_size": 4}
    rng = np.random.default_rng(0)
    if image.ndim == 2:
        config = Config2D(
            n_rays=32, grid=(2, 2), unet_n_filter_base=8, net_conv_after_unet=32, train_patch_size=(128, 128), **common
        )
        model = StarDist2D(config, name=name, basedir=str(folder))
    else:
        patch = (24, 48, 48)
        config = Config3D(
            rays=Rays_GoldenSpiral(48), grid=(1, 2, 2), unet_n_filter_base=8, net_conv_after_unet=32,
            train_patch_size=patch, **common,
        )  # fmt: skip
        model = StarDist3D(config, name=name, basedir=str(folder))

    def augment(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axes = tuple(a for a in range(y.ndim) if rng.random() < 0.5)
        return np.flip(x, axes) * rng.uniform(0.8, 1.2), np.flip(y, axes)

    model.train([image], [labels], validation_data=([image], [labels]), augmenter=augment, seed=0)
    model.optimize_thresholds([image], [labels])
    prob, dist = model.predict(image)
    found, details = model.predict_instances(image)
    np.savez(
        folder / f"{name}.npz", raw=raw, truth=labels, prob=prob, dist=dist, labels=found, points=details["points"],
        thresholds=np.array([model.thresholds.prob, model.thresholds.nms]),
    )  # fmt: skip
    print(name, "objects", len(details["points"]), "of", len(np.unique(labels)) - 1)


if __name__ == "__main__":
    target, source = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    epochs = {"nuclei_2d": int(sys.argv[3]), "nuclei_3d": int(sys.argv[4])}
    for which, number in epochs.items():
        train(target, source, which, number)

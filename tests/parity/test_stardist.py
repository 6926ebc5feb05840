"""The maps and the instances of stardist 0.9.2 on TensorFlow; `stardist/make_golden.py` made what is compared with."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.methods.stardist import shapes
from spatialdata_segment.methods.stardist.description import BORDER, Backbone, Description, describe
from spatialdata_segment.methods.stardist.layers import layers_of
from spatialdata_segment.methods.stardist.weights import read_weights

pytest.importorskip("pyclipper")

HERE = Path(__file__).parent / "stardist"
RECIPE = runpy.run_path(str(HERE / "make_golden.py"))


@pytest.fixture(scope="module")
def golden():
    return {name: np.load(HERE / f"{name}.npz") for name in ("maps", "instances")}


def network_maps(name, weights, image):
    """Return the maps of an image, by a network and the tiles that the method lays."""
    torch = pytest.importorskip("torch")
    from spatialdata_segment.methods.stardist.network import StarNet
    from spatialdata_segment.methods.stardist.run import Network
    from spatialdata_segment.methods.stardist.tiles import core_of, cut, tiles_of

    said = describe(HERE / name)
    net = StarNet(said, read_weights(weights, layers_of(said))).eval()
    network, shape = Network(said, net, torch.device("cpu")), image.shape[1:]
    whole = said.grid_shape(shape)
    n_maps = [1, said.n_rays] + ([said.n_classes + 1] if said.n_classes else [])
    out = [np.full((n, *whole), np.nan, np.float32) for n in n_maps]
    for tile in tiles_of(said, shape, core_of(said, 16), Box.whole(shape)):
        maps = network.maps(cut(image, (0,) * len(shape), shape, tile.seen), tile)
        at = [
            slice(a // g, -(-min(b, n) // g))
            for a, b, g, n in zip(tile.core.start, tile.core.stop, said.grid, shape, strict=True)
        ]
        for part, found in zip(out, [maps[0][None], *maps[1:]], strict=True):
            inner = tuple(slice(0, s.stop - s.start) for s in at)
            part[(slice(None), *at)] = found[(slice(None), *inner)]
    return said, out


@pytest.mark.parametrize("name", RECIPE["MODELS"])
def test_maps_are_those_of_tensorflow(name, golden):
    """Every architecture, of seeded weights, in tiles smaller than what the network sees."""
    seed = list(RECIPE["MODELS"]).index(name)
    shape = RECIPE["MODELS"][name][1]
    for weights in sorted((HERE / name).glob("*.h5")):
        image = RECIPE["image_of"](shape, describe(HERE / name).n_channels, seed)
        _, maps = network_maps(name, weights, image)
        expected = golden["maps"]
        assert np.abs(maps[0][0] - expected[f"{name}/prob"]).max() < 1e-5
        dist = np.moveaxis(maps[1], 0, -1)
        assert dist.shape == tuple(expected[f"{name}/shape"])
        kept = dist.ravel()[RECIPE["kept_places"](dist.size, seed)]
        assert np.abs(kept - expected[f"{name}/dist"]).max() < 1e-4
        if f"{name}/classes" in expected:
            assert np.abs(np.moveaxis(maps[2], 0, -1) - expected[f"{name}/classes"]).max() < 1e-5


def test_both_layouts_of_keras_are_read():
    """The weights of one model, as Keras 2 and as Keras 3 keep them."""
    folder = HERE / RECIPE["WITH_KERAS3"]
    layers = layers_of(describe(folder))
    old, new = (read_weights(folder / f, layers) for f in ("weights_best.h5", "keras3.weights.h5"))
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[k][w], new[k][w]) for k in old for w in old[k])


@pytest.mark.parametrize("name", RECIPE["INSTANCES"])
@pytest.mark.parametrize("which", range(3))
def test_instances_are_those_of_stardist(name, which, golden):
    """From the same maps: the same points, and the same pixels of each object."""
    shape, n_rays, grid = RECIPE["INSTANCES"][name]
    found = golden["instances"]
    prob_thresh, nms_thresh = found[f"{name}/thresholds{which}"]
    prob, at = found[f"{name}/prob"], np.argwhere(found[f"{name}/prob"] > 0.3)
    dtype = [("point", "<i4", (len(shape),)), ("prob", "<f4"), ("dist", "<f4", (n_rays,))]
    points = np.zeros(len(at), dtype)
    points["point"], points["prob"], points["dist"] = at * grid, prob[tuple(at.T)], found[f"{name}/dist"]
    ends = np.array(prob.shape) - BORDER
    inside = np.all((at >= BORDER) & (at < ends), axis=1) & (points["prob"] > np.float32(prob_thresh))
    points = points[inside]
    solids = shapes.of(_described(len(shape), n_rays, grid))
    every = np.ones(len(points), bool)
    settled = solids.suppressed(points, solids.extents(points, shape), every, every, nms_thresh)
    kept = points[settled.state == 1]
    assert not len(settled.edges)
    assert _as_set(kept["point"]) == _as_set(found[f"{name}/points{which}"])
    assert _same_objects(solids.painted(kept, Box.whole(shape)), found[f"{name}/labels{which}"])


def _described(ndim, n_rays, grid):
    rays = {"name": "Rays_GoldenSpiral", "kwargs": {"n": n_rays, "anisotropy": (2, 1, 1)}} if ndim == 3 else None
    backbone = Backbone(
        kind="unet", n_depth=1, kernel_size=(3,) * ndim, pool=(2,) * ndim, n_filter_base=1, n_conv=1,
        activation="relu", last_activation="relu", batch_norm=False, n_features=0,
    )  # fmt: skip
    return Description(n_dim=ndim, n_channels=1, n_rays=n_rays, grid=grid, rays=rays, backbone=backbone)


def _as_set(points):
    return set(map(tuple, points.tolist()))


def _same_objects(a, b):
    """Tell whether two label images are equal but for the numbers."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()], axis=1), axis=0)
    return len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) and ((a > 0) == (b > 0)).all()

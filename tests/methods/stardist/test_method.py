"""StarDist as a method: its contract, and its settings."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import numpy as np
import pytest

from spatialdata_segment import StarDist
from spatialdata_segment.testing.methods import MethodTests
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

torch = pytest.importorskip("torch")
pytest.importorskip("pyclipper")

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
FOLDER = Path(tempfile.mkdtemp(prefix="stardist-"))


class TestImages(MethodTests):
    method = StarDist(write_model(FOLDER / "images"), tile_size=32)
    n_plans = 10


class TestOnAGrid(MethodTests):
    method = StarDist(write_model(FOLDER / "grid", grid=(2, 2), n_rays=32, radius=8.0, n_classes=3), tile_size=32)


class TestVolumesOnAGrid(MethodTests):
    method = StarDist(
        write_model(FOLDER / "aniso", 3, n_rays=14, grid=(1, 2, 2), anisotropy=(2, 1, 1), radius=4.0, prob_thresh=0.9),
        tile_size=32,
    )
    ndim = 3
    n_plans = 10


def test_chains_across_many_shards(tmp_path):
    """Each candidate suppresses the next, from one end of the image to the other: the same for every plan."""
    method = StarDist(
        write_model(FOLDER / "chain", grid=(2, 2), radius=6.0, growth=0.0, gain=4.0, prob_thresh=0.05), normalize=False
    )
    ramp = np.linspace(0.9, 0.1, 120, dtype=np.float32)
    image = np.ascontiguousarray(np.broadcast_to(ramp, (1, 14, 120)))
    whole = tile(image, method, whole_plan(image.shape[1:]), tmp_path / "whole")
    assert len(whole.anchors) > 8
    rng = np.random.default_rng(1)
    for k in range(10):
        core = [int(rng.integers(5, 15)), int(rng.integers(8, 25))]
        plan = make_plan(image.shape[1:], core, (1, 1), first=[3, int(rng.integers(1, 8))])
        assert len(plan) > 5
        assert tile(image, method, plan, tmp_path / str(k)).same_as(whole), plan


def test_objects_larger_than_a_shard(tmp_path):
    """One object covers many cores, with the least halo."""
    method = StarDist(write_model(FOLDER / "large", grid=(2, 2), n_rays=32, radius=40.0, growth=0.0), normalize=False)
    image = np.zeros((1, 100, 90), np.float32)
    image[0, 47:53, 42:48] = 1
    whole = tile(image, method, whole_plan((100, 90)), tmp_path / "whole")
    assert len(whole.anchors) == 1
    assert (whole.labels > 0).sum() > 3500
    assert tile(image, method, make_plan((100, 90), (17, 20), (1, 1)), tmp_path / "cut").same_as(whole)

"""StarDist as a method: its contract, and its settings."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import pytest

from spatialdata_segment import StarDist
from spatialdata_segment.testing.methods import MethodTests

torch = pytest.importorskip("torch")
pytest.importorskip("pyclipper")

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
FOLDER = Path(tempfile.mkdtemp(prefix="stardist-"))


class TestImages(MethodTests):
    method = StarDist(write_model(FOLDER / "images"), tile_size=32)
    n_plans = 10


class TestOnAGrid(MethodTests):
    method = StarDist(write_model(FOLDER / "grid", grid=(2, 2), n_rays=32, radius=8.0, n_classes=3), tile_size=32)


class TestVolumes(MethodTests):
    method = StarDist(write_model(FOLDER / "volumes", 3, n_rays=12, radius=4.0, prob_thresh=0.97), tile_size=32)
    ndim = 3


class TestVolumesOnAGrid(MethodTests):
    method = StarDist(
        write_model(FOLDER / "aniso", 3, n_rays=14, grid=(1, 2, 2), anisotropy=(2, 1, 1), radius=4.0, prob_thresh=0.9),
        tile_size=32,
    )
    ndim = 3

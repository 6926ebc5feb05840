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

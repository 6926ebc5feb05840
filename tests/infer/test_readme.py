"""The commands of Turing Segment's README, with this program's name, and weights from a local server."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import spatialdata as sd
import yaml
from spatialdata.models import Image2DModel

from spatialdata_segment import Cellpose, polygons_to_labels, segment
from spatialdata_segment.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = """
pipeline:
  infer_size: 64
  overlap_margin: 8
  n_postprocess_processes: 32
  postprocess_queue_size: 128
  n_merge_tile_processes: 16
postprocess:
  niter: 150
  cellprob_threshold: 0.5
  flow_threshold: 0.4
  min_size: 20
  resample: false
"""


def run(*arguments):
    """Run a command as it stands, quietly."""
    return main(["infer", *map(str, arguments), "--quiet"])


def result(folder):
    """Return metadata, and labels drawn from the polygons."""
    metadata = json.loads((folder / "metadata.json").read_text())
    frame = gpd.read_parquet(folder / "polygons.parquet")
    return metadata, np.asarray(polygons_to_labels(frame, metadata["image-shape"]))


def labels_of(pixels, method):
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"))})
    return np.asarray(segment(sdata, "image", method, progress=False, n_jobs=1)["segmentation_cell_labels"])


@pytest.fixture(scope="session")
def files(weights):
    return {"model_path": weights[0], "size_model_path": weights[1]}


def test_single_image(image, tissue, server, files, tmp_path, capsys):
    assert run("--image-path", image, "--output-dir", tmp_path / "out") == 0
    assert server == ["cyto3", "size_cyto3.npy"]
    metadata, labels = result(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metadata.json", "polygons.parquet"]
    expected = labels_of(tissue[::-1], Cellpose(**files, channels=(0, 1)))
    assert len(np.unique(expected)) > 10
    assert np.array_equal(labels, expected)
    assert metadata["image-shape"] == list(expected.shape)
    assert (metadata["model-type"], metadata["z_index"], metadata["page"]) == ("cyto3", None, None)
    assert metadata["scale"] == pytest.approx(30 / metadata["diameter"])
    assert metadata["channels"] == {"cell": ["0", "1"]}
    assert f"{tmp_path / 'out'}: {expected.max()} cells" in capsys.readouterr().out


def test_folder(folder, server, tmp_path):
    assert run("--image-dir", folder, "--output-dir", tmp_path / "out", "--scale", "1") == 0
    names = ["plane1", "plane2", "plane10"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(["configs.yml", *names])
    for name in names:
        assert sorted(p.name for p in (tmp_path / "out" / name).iterdir()) == ["metadata.json", "polygons.parquet"]
    expected = "stitch:\n" + "".join(f"- image_name: {name}\n  z_index: null\n" for name in names)
    assert (tmp_path / "out/configs.yml").read_text() == expected


def test_channels(image, tissue, server, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--image-path", image, "--model-type", "cyto3", "--channels", "1", "--scale", "1") == 0
    assert run("--image-path", image, "--model-type", "cyto3", "--channels", "1,0", "--scale", "1") == 0
    alone, both = (result(tmp_path / f"slide_0_{c}_cyto3")[1] for c in ("1", "1-0"))
    at = {"model_path": files["model_path"], "rescale": 1.0}
    assert np.array_equal(alone, labels_of(tissue[::-1], Cellpose(**at, channels=(1,))))
    assert np.array_equal(both, labels_of(tissue[::-1], Cellpose(**at, channels=(1, 0))))
    assert not np.array_equal(alone, both)
    with_zeros = np.stack([tissue[0], np.zeros_like(tissue[0])])
    assert np.array_equal(alone, labels_of(with_zeros, Cellpose(**at, channels=(0, 1))))


def test_image_type(image, server, tmp_path):
    assert run("--image-path", image, "--image-type", "tiff", "--output-dir", tmp_path / "out", "--scale", "1") == 0
    assert result(tmp_path / "out")[0]["image-type"] == "tiff"


def test_config_file(image, tissue, server, files, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    options = ["--config-file", tmp_path / "config.yaml", "--scale", "1.5"]
    assert run("--image-path", image, "--output-dir", tmp_path / "out", *options) == 0
    method = Cellpose.from_turing(yaml.safe_load(CONFIG), model_path=files["model_path"], rescale=1.5, channels=(0, 1))
    metadata, labels = result(tmp_path / "out")
    assert np.array_equal(labels, labels_of(tissue[::-1], method))
    assert metadata["configuration"]["workflow"]["cell"]["min_size"] == 20
    assert metadata["scale"] == 1.5


def test_weights_of_ones_own(image, tissue, files, tmp_path):
    options = [
        "--model-type", "cyto", "--model-path", files["model_path"], "--size-model-path", files["size_model_path"],
    ]  # fmt: skip
    assert run("--image-path", image, *options, "--output-dir", tmp_path / "out") == 0
    metadata, labels = result(tmp_path / "out")
    assert np.array_equal(labels, labels_of(tissue[::-1], Cellpose(**files, channels=(0, 1))))
    assert metadata["model-type"] == "cyto"
    assert metadata["diameter"] > 5

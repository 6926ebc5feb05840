"""StarDist through the whole package: elements, tables, two phases, without torch where maps are kept."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from spatialdata_segment import StarDist, decode, predict, segment
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.stardist.export import export_candidates, export_labels
from spatialdata_segment.testing import Tissue

torch = pytest.importorskip("torch")
pytest.importorskip("pyclipper")

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
TABLE = "segmentation_table"
LABELS = "segmentation_cell_labels"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "spots", grid=(2, 2), n_rays=16, n_classes=2, radius=6.0, n_channels=2)


@pytest.fixture
def sdata():
    return Tissue((150, 170), seed=3, cell_diameter=18).to_spatialdata()


def run(sdata, method, **how):
    return segment(sdata, "image", method, progress=False, **how)


def test_labels_and_table(sdata, model):
    run(sdata, StarDist(model, channels=[0, 1], tile_size=64), shard_size=70 * 70)
    labels, table = np.asarray(sdata[LABELS]), sdata[TABLE]
    assert labels.dtype == np.uint32
    assert len(table) == len(np.unique(labels)) - 1 > 5
    assert ((table.obs["prob"] > 0.5) & (table.obs["prob"] <= 1)).all()
    assert np.array_equal(table.obsm["class_prob"].argmax(axis=1), table.obs["class_id"])
    assert np.allclose(table.obsm["class_prob"].sum(axis=1), 1, atol=1e-5)


def test_outlines_of_rays(sdata, model):
    run(sdata, StarDist(model, channels=[0, 1], tile_size=64, outlines="rays"))
    shapes, labels = sdata["segmentation_cell_boundaries"], np.asarray(sdata[LABELS])
    assert np.array_equal(shapes.index, sdata[TABLE].obs["cell_id"])
    assert not any(name.startswith("_") for name in sdata[TABLE].obs)
    areas = np.bincount(labels.ravel())[shapes.index]
    assert (shapes.geometry.area.to_numpy() > 0.6 * areas).all()


_DECODE = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow", "stardist", "csbdeep", "h5py_none"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refused())
from spatialdata_segment import decode
import numpy as np
if __name__ == "__main__":
    found = decode(sys.argv[1], progress=False, shard_size=4000)
    np.save(sys.argv[2], np.asarray(found["segmentation_cell_labels"]))
"""


def test_decoded_elsewhere(sdata, model, tmp_path):
    """From the store alone: no image, no model, no torch."""
    method = StarDist(model, channels=[0, 1], tile_size=64, keep_prob=0.3)
    predict(sdata, "image", method, tmp_path / "maps", progress=False)
    run(sdata, method)
    hidden = model.with_name("hidden")
    model.rename(hidden)
    try:
        (tmp_path / "run.py").write_text(_DECODE)
        subprocess.run(
            [sys.executable, tmp_path / "run.py", tmp_path / "maps", tmp_path / "labels.npy"],
            check=True,
            capture_output=True,
        )
        assert np.array_equal(np.load(tmp_path / "labels.npy"), np.asarray(sdata[LABELS]))
        settings = method.model_dump()
        fewer = decode(tmp_path / "maps", workflow=StarDist(**settings | {"prob_thresh": 0.9}), progress=False)
        assert 0 < len(fewer[TABLE]) < len(sdata[TABLE])
    finally:
        hidden.rename(model)


def test_exported_as_hdf5(sdata, model, tmp_path):
    predict(sdata, "image", StarDist(model, channels=[0, 1], tile_size=64), tmp_path / "maps", progress=False)
    with h5py.File(export_candidates(tmp_path / "maps", tmp_path / "candidates.h5")) as file:
        points, prob = file["points"][...], file["probabilities"][...]
        assert file["distances"].shape == (len(points), 16)
        assert file["classes"].shape == (len(points), 3)
    assert (prob > 0.5).all()
    assert len(np.unique(points, axis=0)) == len(points) > 100
    labels = decode(tmp_path / "maps", progress=False)[LABELS]
    with h5py.File(export_labels(labels.data, tmp_path / "labels.h5")) as file:
        assert file["labels"].dtype == np.uint32
        assert np.array_equal(file["labels"][...], np.asarray(labels))
    with pytest.raises(MissingError, match="expected maps that predict"):
        export_candidates(tmp_path, tmp_path / "none.h5")


def test_candidates_that_were_not_kept(model):
    """They cannot be asked for when maps are decoded."""
    method = StarDist(model).adapted(ImageInfo((9, 9), np.dtype("uint8"), n_channels=2), {})
    method.model_copy(update={"prob_thresh": 0.7}).check_decoding()
    with pytest.raises(InputError, match=r"prob_thresh=0.1, and candidates were kept above 0.5"):
        method.model_copy(update={"prob_thresh": 0.1}).check_decoding()


def test_what_is_wrong_is_said_before_anything_runs(sdata, model, tmp_path):
    with pytest.raises(InputError, match="takes 2 channels, and 1 are given"):
        run(sdata, StarDist(model, channels=[0]))
    with pytest.raises(MissingError, match="expected the folder of a StarDist model"):
        run(sdata, StarDist(tmp_path / "none"))
    with pytest.raises(MissingError, match="there are spots"):
        run(sdata, StarDist("spot", basedir=model.parent))
    volume = write_model(tmp_path / "volume", 3)
    with pytest.raises(InputError, match=r"stardist with the model .*volume works on 3D images, and this one is 2D"):
        run(sdata, StarDist(volume, channels=[0]))
    with pytest.raises(ValueError, match="candidates would be lost"):
        StarDist(model, prob_thresh=0.4, keep_prob=0.5)


def test_what_others_cover_is_listed(sdata, model, tmp_path):
    """With no suppression at all every candidate stays, and most are painted over: each has a row, and a reason."""
    method = StarDist(model, channels=[0, 1], tile_size=64, nms_thresh=1.0)
    predict(sdata, "image", method, tmp_path / "maps", progress=False)
    with h5py.File(export_candidates(tmp_path / "maps", tmp_path / "candidates.h5")) as file:
        points = file["points"][...]
    for shard_size in (None, 60 * 60):
        found = decode(tmp_path / "maps", progress=False, shard_size=shard_size, shapes=False)
        candidates, kept = found["segmentation_candidates"].obs, len(found[TABLE])
        assert len(candidates) == len(points) > kept == len(np.unique(found[LABELS])) - 1
        assert candidates["is_kept"].sum() == kept
        dropped = candidates[~candidates["is_kept"]]
        assert (dropped["drop_reason"] == "covered").all()
        assert (dropped["area"] == 0).all()

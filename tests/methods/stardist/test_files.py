"""What a model's files and kept candidates may hold that is wrong: told with the file, before anything runs."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from spatialdata_segment import StarDist
from spatialdata_segment.engine.points import packed_dtype, points_path, write_index, write_points
from spatialdata_segment.errors import InputError, MissingError, ScratchError
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.stardist import shapes
from spatialdata_segment.methods.stardist.description import describe, weights_of
from spatialdata_segment.methods.stardist.export import export_candidates, export_labels
from spatialdata_segment.methods.stardist.layers import layers_of
from spatialdata_segment.methods.stardist.weights import read_weights

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
VOLUME = ImageInfo((20, 30, 30), np.dtype("uint8"), n_channels=1)
IMAGE = ImageInfo((30, 30), np.dtype("uint8"), n_channels=1)


def reconfigured(folder, **change):
    """Change the configuration of a model that is there."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize("n", [13, 15, 96])
def test_as_many_rays_as_distances(tmp_path, n):
    """Else a kernel would read distances that are not there."""
    folder = write_model(tmp_path / "model", 3, n_rays=14)
    StarDist(folder).check(VOLUME)
    method = StarDist(reconfigured(folder, rays_json={"name": "Rays_GoldenSpiral", "kwargs": {"n": n}}))
    said = f"makes {n} rays .* n_rays is 14"
    with pytest.raises(InputError, match=said):
        method.check(VOLUME)
    with pytest.raises(InputError, match=said):
        method.check_decoding()
    with pytest.raises(InputError, match=said):
        shapes.of(method.said)


_POINTS = [[0, 0, 1], [0, 1, 0], [1, 0, 0], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("rays", "said"),
    [
        ({"name": "Rays_GoldenSpiral", "kwargs": None}, "kwargs None .* expected a JSON object"),
        ({"name": "Rays_GoldenSpiral", "kwargs": [14]}, r"kwargs \[14\] .* expected a JSON object"),
        ({"name": ["Rays_Octo"]}, "not known: expected one of"),
        ({"name": "Rays_GoldenSpiral", "kwargs": {"n": 14, "anisotropy": [0, 1, 1]}}, r"anisotropy is \[0, 1, 1\]"),
        ({"name": "Rays_GoldenSpiral", "kwargs": {"n": 14, "anisotropy": [2, 1]}}, "expected three numbers above 0"),
        ({"name": "Rays_GoldenSpiral", "kwargs": {"n": "14"}}, "cannot be made with"),
        ({"name": "Rays_Cartesian", "kwargs": {"n_rays_x": 0}}, "cannot be made with"),
        (
            {"name": "Rays_Explicit", "kwargs": {"vertices0": _POINTS, "faces0": [[0, 1, 4]]}},
            "vertices 0 to 4, .* 0 to 3",
        ),
        ({"name": "Rays_Explicit", "kwargs": {"vertices0": [], "faces0": []}}, "expected .n, 3."),
    ],
)
def test_rays_are_checked(tmp_path, rays, said):
    folder = reconfigured(write_model(tmp_path / "model", 3, n_rays=14), rays_json=rays)
    with pytest.raises(InputError, match=said):
        StarDist(folder).check(VOLUME)


@pytest.mark.parametrize("key", ["prob", "nms"])
@pytest.mark.parametrize("value", [-0.1, 1.5, 7, float("nan"), float("inf"), True, None, "high"])
def test_thresholds_are_checked(tmp_path, key, value):
    folder = write_model(tmp_path / "model")
    path = folder / "thresholds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=rf"thresholds\.json: {key} is .*, expected a number from 0 to 1"):
        describe(folder)


@pytest.mark.parametrize("value", [0, 0.25, 1])
def test_thresholds_from_0_to_1_are_taken(tmp_path, value):
    said = describe(write_model(tmp_path / "model", prob_thresh=value, nms_thresh=value))
    assert said.prob_thresh == said.nms_thresh == value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.attrs.__setitem__("layer_names", 5),
        lambda file: file.attrs.__setitem__("layer_names", np.array([b"\xff\xfe"])),
        lambda file: file["dist"].attrs.__setitem__("weight_names", 3),
        lambda file: (file.attrs.__delitem__("layer_names"), file.create_dataset("layers", data=np.zeros(3))),
        lambda file: (file.attrs.__delitem__("layer_names"), file.create_dataset("model_weights", data=np.zeros(3))),
        lambda file: (file.__delitem__("prob/prob/bias:0"), file.create_dataset("prob/prob/bias:0", data=[b"a"])),
    ],
    ids=["a number", "no text", "weights by number", "layers as numbers", "numbers", "letters"],
)
def test_weights_of_another_kind_are_told(tmp_path, spoil):
    folder = write_model(tmp_path / "model")
    with h5py.File(folder / "weights_best.h5", "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=r"weights_best\.h5"):
        read_weights(folder / "weights_best.h5", layers_of(describe(folder)))


def test_hidden_files_are_no_weights(tmp_path):
    """Such as macOS leaves beside what it copies."""
    folder = write_model(tmp_path / "model")
    hidden = folder / "._weights_best.h5"
    hidden.write_bytes(b"\x00\x05\x16\x07")
    os.utime(hidden, (2e9, 2e9))
    assert weights_of(folder).name == "weights_best.h5"
    (folder / "weights_best.h5").unlink()
    with pytest.raises(MissingError, match="no weights"):
        weights_of(folder)


def test_clipper_is_asked_for_beforehand(tmp_path, monkeypatch):
    """Images need it when they are decoded, volumes do not."""
    images, volumes = StarDist(write_model(tmp_path / "2d")), StarDist(write_model(tmp_path / "3d", 3, n_rays=14))
    monkeypatch.setitem(sys.modules, "pyclipper", None)
    for call in (lambda: images.check(IMAGE), images.check_decoding):
        with pytest.raises(MissingError, match=r"pyclipper .*spatialdata-segment\[stardist\]"):
            call()
    volumes.check(VOLUME)
    volumes.check_decoding()


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_labels_are_exported_as_elements(tmp_path, scale_factors):
    from spatialdata.models import Labels2DModel

    labels = np.kron(np.arange(12, dtype=np.uint32).reshape(3, 4), np.ones((16, 16), np.uint32))
    element = Labels2DModel.parse(labels, dims=("y", "x"), scale_factors=scale_factors)
    for given in (element, labels):
        with h5py.File(export_labels(given, tmp_path / "labels.h5")) as file:
            assert file["labels"].dtype == np.uint32
            assert np.array_equal(file["labels"], labels)
    volume = labels.reshape(3, 16, 64)
    with h5py.File(export_labels(volume, tmp_path / "labels.h5")) as file:
        assert np.array_equal(file["labels"], volume)
    with pytest.raises(InputError, match="expected integers"):
        export_labels(labels.astype(float), tmp_path / "labels.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["labels.h5"]


def test_damaged_candidates_leave_no_file(tmp_path):
    folder, rng = tmp_path / "maps/cell", np.random.default_rng(0)
    records = np.zeros(50, np.dtype([("point", "<i4", (2,)), ("prob", "<f4"), ("dist", "<f4", (16,))]))
    records["point"], records["prob"] = rng.integers(0, 99, (50, 2)), rng.uniform(size=50)
    records["dist"] = rng.uniform(size=(50, 16))
    zarr.open_group(folder, mode="w").attrs.update({"sparse": True, "dtype": packed_dtype(records.dtype)})
    write_points(folder, 0, records, np.c_[records["point"], records["point"] + 1])
    write_index(folder, [0])
    out = tmp_path / "out"
    out.mkdir()
    before = export_candidates(tmp_path / "maps", out / "candidates.h5").read_bytes()
    block = points_path(folder, 0)
    spoilt = bytearray(block.read_bytes())
    spoilt[len(spoilt) // 2] ^= 255
    block.write_bytes(spoilt)
    for name in ("candidates.h5", "more.h5"):
        with pytest.raises(ScratchError, match=r"damaged.*Call predict\(\) again"):
            export_candidates(tmp_path / "maps", out / name)
    assert [p.name for p in out.iterdir()] == ["candidates.h5"]
    assert (out / "candidates.h5").read_bytes() == before
    block.unlink()
    with pytest.raises(ScratchError, match="missing"):
        export_candidates(tmp_path / "maps", out / "more.h5")

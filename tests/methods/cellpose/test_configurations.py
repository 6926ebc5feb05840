"""Configurations of scPortrait and Turing Segment with networks: as they stand, and every parameter acts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import spatialdata as sd

from spatialdata_segment import Cellpose, Workflow, read_configuration, segment
from spatialdata_segment.cli import main
from spatialdata_segment.methods.cellpose.network import CPnet
from spatialdata_segment.testing import Tissue

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = 110, 130
FILES = {"nuclei": "nucleitorch_0", "cyto2": "cyto2torch_0", "cyto3": "cyto3"}

TWO_MASKS = """
ShardedCytosolSegmentationCellpose:
    shard_size: 2000000
    overlap_px: 100
    nGPUs: 1
    threads: 2
    cache: "."
    nucleus_segmentation:
        model: "nuclei"
    cytosol_segmentation:
        model: "cyto2"
    match_masks: True
    filter_masks_size: False
"""

NUCLEI = """
ShardedDAPISegmentationCellpose:
    input_channels: 2
    output_masks: 2
    shard_size: 120000000
    overlap_px: 100
    chunk_size: 50
    cache: "cache"
    nGPUs: 2
    lower_quantile_normalization:   0.001
    upper_quantile_normalization:   0.999
    median_filter_size: 6
    nucleus_segmentation:
        model: "nuclei"
"""

CELLS = """
ShardedCytosolOnlySegmentationCellpose:
    shard_size: 2000000
    overlap_px: 100
    nGPUs: 1
    threads: 2
    cache: "."
    cytosol_segmentation:
        model: "cyto2"
    match_masks: True
    filter_masks_size: False
"""

CUSTOM = """
CytosolOnlySegmentationCellpose:
    cytosol_segmentation:
        model: "cyto2"
        model_path: "path/to/a/custom/cellpose/model"
        normalize: True
        diameter: None
        resample: True
        rescale: None
        flow_threshold: 0.4
        cellprob_threshold: 0.0
"""

TURING = """
pipeline:
  infer_size: 1024              # px of a tile
  overlap_margin: 32
  n_postprocess_processes: 32
  postprocess_queue_size: 128
  n_merge_tile_processes: 16

postprocess:
  niter: 200
  cellprob_threshold: 0
  flow_threshold: 0.4
  min_size: 15
  resample: false
"""

EXPECTED = {
    TWO_MASKS: Workflow(nucleus=Cellpose("nuclei"), cell=Cellpose("cyto2"), match_masks=True),
    NUCLEI: Workflow(
        nucleus=Cellpose("nuclei"), lower_quantile_normalization=0.001, upper_quantile_normalization=0.999,
        median_filter_size=6, duplicate_mask=True,
    ),
    CELLS: Workflow(cell=Cellpose("cyto2"), match_masks=True),
    CUSTOM: Workflow(cell=Cellpose("cyto2", model_path="path/to/a/custom/cellpose/model")),
    TURING: Workflow(
        cell=Cellpose("cyto3", tile_size=1024, tile_overlap=0.05, niter=200, resample=False),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _models(cells_file, recipes, tmp_path_factory):
    """Put the network that finds bright spots, and size models that know the scale, where Cellpose looks."""
    folder = tmp_path_factory.mktemp("models")
    for name, file in FILES.items():
        shutil.copy(cells_file, folder / file)
        n = recipes["CELL_NBASE"][-1]
        size = {"A": np.zeros(n), "smean": np.zeros(n), "diam_mean": 17.0 if name == "nuclei" else 30.0, "ymean": 0.0}
        np.save(folder / f"size_{file}.npy", size, allow_pickle=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(folder))
        yield


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.zarr"
    Tissue(SHAPE, seed=3, cell_diameter=16, density=0.8).to_spatialdata(chunks=64).write(path)
    return path


@pytest.mark.parametrize("text", EXPECTED, ids=["two masks", "nuclei", "cells", "custom", "Turing Segment"])
def test_a_configuration_runs_as_it_stands(text, image, tmp_path, monkeypatch):
    """In tiny shards; the labels are those of the same workflow in Python."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image, "a.zarr")
    (tmp_path / "c.yml").write_text(text)
    assert read_configuration("c.yml").workflow == EXPECTED[text]
    smaller = ["--overlap-px", "60"] if text != TURING else []
    assert main(["run", "a.zarr", "--workflow", "c.yml", "--shard-size", "6000", *smaller, "--quiet"]) == 0
    sdata = sd.read_zarr("a.zarr")
    segment(sdata, "image", EXPECTED[text], key_added="wanted", n_jobs=1, table=False, shapes=False, progress=False)
    masks = [name.removeprefix("wanted_") for name in sdata.labels if name.startswith("wanted_")]
    assert len(masks) == 2 if text in (TWO_MASKS, NUCLEI) else 1
    for name in masks:
        np.testing.assert_array_equal(sdata[f"segmentation_{name}"], sdata[f"wanted_{name}"])
    assert sdata["segmentation_candidates"].n_obs > 3


BASE = {"model": "cyto2", "diameter": 24.0}


def labels(image, content) -> np.ndarray:
    found = read_configuration(content)
    sdata = segment(
        sd.read_zarr(image), "image", found.workflow, key_added="x", shapes=False, table=False, progress=False, n_jobs=1
    )  # fmt: skip
    return np.asarray(sdata["x_cell_labels"])


@pytest.fixture(scope="module")
def copied(image, tmp_path_factory):
    """Return the labels of a configuration of a copy of the image, with a diameter that is known."""
    count = iter(range(1000))
    folder = tmp_path_factory.mktemp("copies")

    def run(content, diameter=30.0):
        shutil.copytree(image, path := folder / f"{next(count)}.zarr")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cellpose, "estimate", lambda *_: diameter)
            return labels(path, content)

    return run


@pytest.fixture(scope="module")
def plain(copied):
    found = copied({"CytosolOnlySegmentationCellpose": {"cytosol_segmentation": BASE}})
    assert found.max() > 3
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "nuclei"), ("model_path", None), ("normalize", False), ("resample", False), ("rescale", 0.9),
        ("diameter", 34.0), ("flow_threshold", 0.05), ("cellprob_threshold", 2.0),
    ],
)  # fmt: skip
def test_every_parameter_of_a_network_acts(name, value, plain, copied, save_network):
    """On the field of the method, and on the labels."""
    changed = BASE | {name: value}
    if name == "model_path":
        value = changed["model_path"] = str(save_network(threshold=0.5, diameter=30.0))
        del changed["model"]
    if name == "rescale":
        del changed["diameter"]
    content = {"CytosolOnlySegmentationCellpose": {"cytosol_segmentation": changed}}
    method = read_configuration(content).workflow.cell
    assert str(getattr(method, name)) == str(value)
    assert str(getattr(Cellpose(**BASE), name)) != str(value)
    assert not np.array_equal(copied(content), plain)


SMALL = {"pipeline": {"infer_size": 64, "overlap_margin": 8}, "postprocess": {"min_size": 5}}


@pytest.fixture(scope="module")
def turing(copied):
    found = copied(SMALL)
    assert found.max() > 3
    return found


@pytest.mark.parametrize(
    ("name", "value"), [("niter", 3), ("cellprob_threshold", 2.0), ("flow_threshold", 0.05), ("min_size", 60)]
)
def test_every_parameter_of_the_paths_acts(name, value, turing, copied):
    content = SMALL | {"postprocess": SMALL["postprocess"] | {name: value}}
    assert getattr(read_configuration(content).workflow.cell, name) == value
    assert not np.array_equal(copied(content), turing)


def test_resample_acts_where_the_image_is_resized(copied):
    both = [copied(SMALL | {"postprocess": {"resample": value}}, diameter=20.0) for value in (False, True)]
    assert not np.array_equal(*both)


@pytest.mark.parametrize(("name", "value"), [("infer_size", 96), ("overlap_margin", 30)])
def test_every_parameter_of_the_tiles_acts(name, value, copied, monkeypatch):
    """On what the network is called with."""
    calls: list[tuple[int, ...]] = []
    forward = CPnet.forward

    def spy(self, x, *args):
        calls.append(tuple(x.shape))
        return forward(self, x, *args)

    monkeypatch.setattr(CPnet, "forward", spy)
    copied(SMALL)
    before = sorted(calls)
    calls.clear()
    copied(SMALL | {"pipeline": SMALL["pipeline"] | {name: value}})
    assert sorted(calls) != before
    assert {shape[-1] for shape in calls} == {value if name == "infer_size" else 64}

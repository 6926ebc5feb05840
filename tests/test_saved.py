"""The configuration of a result: complete, as a file, and running it gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from geopandas import GeoDataFrame
from shapely import box
from spatialdata.models import ShapesModel

from spatialdata_segment import (
    EqualizeHistogram,
    ExpandNuclei,
    SeededWatershed,
    SizeFilter,
    Step,
    SubtractBackground,
    ThresholdNuclei,
    Workflow,
    decode,
    predict,
    read_configuration,
    saved_configuration,
    segment,
)
from spatialdata_segment._table import read_metadata
from spatialdata_segment.cli import main
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(
    nucleus=ThresholdNuclei(threshold="otsu", min_distance=4, sigma=0.7),
    cell=SeededWatershed(max_distance=9, ridge=None),
    multinucleated="keep",
    filtering_threshold_mask_matching=0.8,
    filter_masks_size=True,
    cell_size=SizeFilter(min_size=12.5, unit="um2"),
    lower_quantile_normalization=(0.01, 0.02),
    upper_quantile_normalization=(0.99, 0.98),
    preprocess=(SubtractBackground(radius=20), EqualizeHistogram(tile_px=64)),
)
OPTIONS = {"channels": [1, "DAPI"], "pixel_size": 0.5, "bounding_box": (10, 20, 100, 90), "measure_channels": "WGA"}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.zarr"
    sdata = Tissue((110, 130), seed=3, cell_diameter=18).to_spatialdata(chunks=64)
    sdata["area"] = ShapesModel.parse(GeoDataFrame(geometry=[box(20, 20, 70, 90)]))
    sdata.write(path)
    return path


@pytest.fixture
def store(image, tmp_path):
    shutil.copytree(image, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def written(store: Path, *names: str) -> list[str]:
    """Return a checksum of the chunks of each labels element; its metadata bears its name."""
    chunks = [sorted(p for p in (store / "labels" / name).rglob("c/**/*") if p.is_file()) for name in names]
    assert all(chunks)
    return [hashlib.sha256(b"".join(p.read_bytes() for p in found)).hexdigest() for found in chunks]


@pytest.mark.parametrize(
    ("flow", "options"),
    [
        ("dapi", {}),
        ("wga", {}),
        (FLOW, OPTIONS),
        (Workflow(nucleus=ThresholdNuclei(channels=0), cell=ExpandNuclei(distance=3)), {"roi_key": "area"}),
        (Workflow(nucleus=ThresholdNuclei(), combine_nucleus_channels=["DAPI", 1], duplicate_mask=True), {}),
    ],
)
def test_running_it_gives_the_same_bytes(flow, options, store, capsys):
    """On the command line, through a file; and in Python."""
    sdata = sd.read_zarr(store)
    segment(sdata, "image", flow, key_added="first", shard_size=5000, progress=False, n_jobs=1, **options)
    assert main(["config", "--from", str(store)]) == 0
    text = capsys.readouterr().out
    assert "spatialdata-segment run STORE --image image --workflow FILE" in text
    (store.parent / "c.yaml").write_text(text)
    again = ["run", str(store), "--workflow", str(store.parent / "c.yaml"), "--key-added", "again", "--quiet"]
    assert main([*again, "--n-jobs", "1"]) == 0
    names = [name.removeprefix("first_") for name in sdata.labels]
    assert written(store, *(f"first_{n}" for n in names)) == written(store, *(f"again_{n}" for n in names)) != []
    back = sd.read_zarr(store)
    assert back["first_table"].uns["segmentation"] == back["again_table"].uns["segmentation"]
    assert np.array_equal(back["first_table"].X, back["again_table"].X)
    found = saved_configuration(back, "first_table")
    assert found == saved_configuration(back["again_table"])
    (store.parent / "d.yaml").write_text(found.to_yaml())
    read = read_configuration(store.parent / "d.yaml")
    assert (read.workflow, read.options) == (found.workflow, found.options)
    assert found.image_key == "image"


def test_every_way_says_the_same(store):
    """Calls that mean the same, in one phase and in two, leave the same words."""
    sdata, maps = sd.read_zarr(store), store.parent / "maps"
    segment(sdata, "image", FLOW, progress=False, **OPTIONS)
    predicted = {k: v for k, v in OPTIONS.items() if k != "measure_channels"}
    predict(sdata, "image", FLOW, maps, progress=False, **predicted)
    decode(maps, sdata=sdata, key_added="two", measure_channels=[1], progress=False)
    other = OPTIONS | {"channels": ["WGA", 0], "pixel_size": [0.5, 0.5], "measure_channels": [1]}
    segment(sdata, "image", FLOW, key_added="other", progress=False, **other)
    said = [sdata[f"{key}_table"].uns["segmentation"] for key in ("segmentation", "two", "other")]
    assert said[0] == said[1] == said[2]
    assert read_metadata(sdata["two_table"])["options"] == {
        "channels": ["WGA", "DAPI"], "pixel_size": [0.5, 0.5], "bounding_box": [10.0, 20.0, 100.0, 90.0],
        "measure_channels": ["WGA"],
    }  # fmt: skip


def test_a_result_without_tables_is_on_record(store, capsys):
    sdata = sd.read_zarr(store)
    segment(sdata, "image", "dapi", key_added="bare", table=False, pixel_size=0.3, progress=False)
    found = saved_configuration(sdata)
    assert (found.workflow.nucleus, found.options) == (ThresholdNuclei(), {"pixel_size": [0.3, 0.3]})
    segment(sdata, "image", "wga", progress=False)
    assert main(["config", "--from", str(store)]) == 2
    assert "2 results are there (bare_table, segmentation_table)" in capsys.readouterr().err
    assert main(["config", "--from", str(store), "--table", "bare_table"]) == 0
    assert main(["config", "--from", str(store), "--table", "no"]) == 2
    assert "no result has the table 'no': expected one of bare_table, segmentation_table" in capsys.readouterr().err
    (store / ".spatialdata_segment" / "bare.run.json").write_text("{")
    with pytest.raises(InputError, match=r"bare\.run\.json cannot be read"):
        saved_configuration(sdata, "bare_table")


def test_functions_are_in_no_file(store):
    sdata = sd.read_zarr(store)
    segment(sdata, "image", _labelled, progress=False)
    with pytest.raises(InputError, match=r"_labelled made this result, a function of Python"):
        saved_configuration(sdata)
    steps = Workflow(nucleus=ThresholdNuclei(), preprocess=(Step(function=np.sqrt),))
    segment(sdata, "image", steps, key_added="step", progress=False)
    with pytest.raises(InputError, match="'step' is a function of Python"):
        saved_configuration(sdata, "step_table")


def _labelled(image):
    return (image[0] > 100).astype(np.uint8)


def test_tables_of_others(store):
    sdata = sd.read_zarr(store)
    with pytest.raises(MissingError, match=r"0 results are there \(none\)"):
        saved_configuration(sdata)
    segment(sdata, "image", "dapi", progress=False)
    del sdata["segmentation_table"].uns["segmentation"]
    with pytest.raises(MissingError, match=r"no uns\['segmentation'\]"):
        saved_configuration(sdata["segmentation_table"])
    record = json.loads((store / ".spatialdata_segment" / "segmentation.run.json").read_text())
    assert saved_configuration(sdata).workflow.nucleus == ThresholdNuclei()
    assert record["parameters"]["options"] == {}

"""Several images in one call: what each would be by itself, and one failure loses no other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import spatialdata as sd

from spatialdata_segment import Function, ThresholdNuclei, Workflow, segment
from spatialdata_segment.engine.events import listen
from spatialdata_segment.errors import ExistsError, ImagesError, InputError, MissingError
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPES = {"a": (90, 120), "b": (100, 80), "c": (64, 200), "d": (50, 60)}
SMALL = {"progress": False, "shard_size": 2500}


def made() -> sd.SpatialData:
    images = {
        k: Tissue(s, seed=i, cell_diameter=14).to_spatialdata()["image"] for i, (k, s) in enumerate(SHAPES.items())
    }
    return sd.SpatialData(images=images)


def arrays(sdata, prefix):
    return {
        name: np.asarray(element["scale0"]["image"] if hasattr(element, "children") else element)
        for name, element in sdata.labels.items()
        if name.startswith(prefix)
    }


def bright(block):
    from scipy.ndimage import label

    return label(block[0] > 3000)[0]


def fails(block):
    raise RuntimeError("no")


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_as_each_by_itself(tmp_path, backed, n_jobs):
    sdata = made()
    if backed:
        sdata.write(tmp_path / "all.zarr")
        sdata = sd.read_zarr(tmp_path / "all.zarr")
    flows = {"a": "dapi", "b": ThresholdNuclei(threshold="otsu"), "c": Function(function=bright), "d": "wga"}
    assert segment(sdata, flows, n_jobs=n_jobs, **SMALL) is sdata
    for key, flow in flows.items():
        alone = segment(made(), key, flow, key_added=f"{key}_segmentation", n_jobs=1, **SMALL)
        found, expected = arrays(sdata, f"{key}_"), arrays(alone, f"{key}_")
        assert found.keys() == expected.keys() != set()
        for name, labels in expected.items():
            assert labels.any()
            assert np.array_equal(found[name], labels)
        for table in ("table", "candidates"):
            a, b = (o.tables[f"{key}_segmentation_{table}"] for o in (sdata, alone))
            assert a.obs.equals(b.obs)
            assert np.array_equal(a.X, b.X) or a.X is None
    if backed:
        again = sd.read_zarr(tmp_path / "all.zarr")
        assert sorted(again.labels) == sorted(sdata.labels)
        assert sorted(again.shapes) == sorted(sdata.shapes)


def test_a_failure_is_told_at_the_end(tmp_path):
    sdata = made()
    sdata.write(tmp_path / "all.zarr")
    with pytest.raises(
        ImagesError, match=r"1 of 3 images failed: 'b': ShardError: .*RuntimeError: no.*Done: 'a', 'c'"
    ) as told:
        segment(sdata, {"a": "dapi", "b": Function(function=fails), "c": "dapi"}, n_jobs=2, **SMALL)
    assert list(told.value.errors) == ["b"]
    assert sorted(sd.read_zarr(tmp_path / "all.zarr").labels) == [
        "a_segmentation_nucleus_labels",
        "c_segmentation_nucleus_labels",
    ]


def test_a_list_has_one_workflow_and_stages_have_names():
    sdata, stages = made(), set()
    with listen(lambda event: stages.add(event.stage)):
        segment(sdata, ["a", "d"], Workflow(nucleus=ThresholdNuclei()), n_jobs=2, **SMALL)
    assert sorted(sdata.tables) == [f"{k}_segmentation_{t}" for k in "ad" for t in ("candidates", "table")]
    assert {"a: nucleus shards", "d: writing"} <= stages


@pytest.mark.parametrize(
    ("images", "workflow", "error", "match"),
    [
        ([], "dapi", InputError, "image_key is empty"),
        (["a", "a"], "dapi", InputError, "names an image twice"),
        (["a", "nowhere"], "dapi", MissingError, "no image 'nowhere'"),
        ({"a": "dapi"}, "wga", InputError, "given as well"),
        ({"a": "no such"}, "dapi", MissingError, "image 'a': unknown workflow"),
        ({"a": "dapi", "b": ThresholdNuclei(channels=7)}, "dapi", InputError, "image 'b'.* 7"),
    ],
)
def test_bad_input_before_anything_runs(images, workflow, error, match):
    sdata = made()
    with pytest.raises(error, match=match):
        segment(sdata, images, workflow, **SMALL)
    assert not sdata.labels


def test_names_are_checked_for_all(tmp_path):
    sdata = segment(made(), ["b"], n_jobs=1, **SMALL)
    with pytest.raises(ExistsError, match="b_segmentation"):
        segment(sdata, ["a", "b"], n_jobs=1, **SMALL)
    assert not arrays(sdata, "a_")


def test_warnings_are_as_before():
    before = list(warnings.filters)
    segment(made(), ["a", "b", "c", "d"], n_jobs=4, **SMALL)
    assert warnings.filters == before


def test_an_interrupt_stops_all(monkeypatch):
    sdata, seen = made(), []

    def interrupts(block):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return bright(block)

    with pytest.raises(KeyboardInterrupt):
        segment(sdata, ["c", "a"], Function(function=interrupts), n_jobs=1, **SMALL)
    assert len(seen) == 2
    assert not sdata.labels

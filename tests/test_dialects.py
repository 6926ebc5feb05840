"""Configurations of scPortrait and Turing Segment, as they stand."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import yaml

from spatialdata_segment import (
    Cellpose,
    SeededWatershed,
    SizeFilter,
    ThresholdNuclei,
    Workflow,
    plan,
    predict,
    read_configuration,
    segment,
)
from spatialdata_segment.cli import main
from spatialdata_segment.engine import devices
from spatialdata_segment.engine.events import Event, listen
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyNetwork

CLASSICAL = """
ShardedWGASegmentation:
    shard_size: 15000  # pixels
    overlap_px: 60
    threads: 2
    cache: "{cache}"
    lower_quantile_normalization:   0.001
    upper_quantile_normalization:   0.999
    median_filter_size:   2
    nucleus_segmentation:
        lower_quantile_normalization:   0.01
        upper_quantile_normalization:   0.99
        median_block: 41
        median_step: 4
        threshold: 0.2
        min_distance: 8
        peak_footprint: 7
        speckle_kernel: 9
        dilation: 0
        min_size: 20
        max_size: 1000
        contact_filter: 0.5
    cytosol_segmentation:
        threshold: 0.05
        lower_quantile_normalization: 0.01
        upper_quantile_normalization: 0.99
        erosion: 2
        dilation: 7
        min_clip: 0
        max_clip: 0.2
        min_size: 20
        max_size: 6000
    filter_masks_size: True
"""

TWO_MASKS = """
ShardedCytosolSegmentationCellpose:
    shard_size: 2000000
    overlap_px: 100
    nGPUs: 1
    threads: 2
    cache: "."
    segmentation_channel_nuclei: [2]
    combine_cytosol_channels: [0, 1]
    nucleus_segmentation: {model: nuclei, diameter: 30, min_size: 5}
    cytosol_segmentation: {model: cyto2, flow_threshold: 0.6, cellprob_threshold: -1, rescale: None}
    match_masks: True
    filtering_threshold_mask_matching: 0.9
    filter_masks_size: False
"""

TURING = """
pipeline:
  infer_size: 512
  overlap_margin: 64
  n_postprocess_processes: 32
  postprocess_queue_size: 128
  n_merge_tile_processes: 1
postprocess:
  niter: 150
  cellprob_threshold: 0
  flow_threshold: 0.3
  min_size: 15
  resample: false
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Tissue((220, 260), seed=3, cell_diameter=44).to_spatialdata(chunks=64).write(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def test_a_classical_block_is_a_workflow(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(CLASSICAL.format(cache=tmp_path))
    found = read_configuration(tmp_path / "c.yml")
    assert found.options == {
        "shard_size": 15000, "overlap_px": 60, "n_jobs": 2, "scratch": str(tmp_path),
    }  # fmt: skip
    assert found.workflow == Workflow(
        nucleus=ThresholdNuclei.scportrait(),
        cell=SeededWatershed.scportrait(),
        lower_quantile_normalization=0.001,
        upper_quantile_normalization=0.999,
        median_filter_size=2,
        filter_masks_size=True,
        nucleus_size=SizeFilter(min_size=20, max_size=1000),
        cell_size=SizeFilter(min_size=20, max_size=6000),
    )


def test_every_parameter_of_a_method_arrives() -> None:
    content = yaml.safe_load(CLASSICAL)["ShardedWGASegmentation"]
    for key, method in (("nucleus_segmentation", "nucleus"), ("cytosol_segmentation", "cell")):
        for name, value in content[key].items():
            other = 0.1 if name == "min_clip" else value * 2 + 1 if type(value) is int else value * 0.9
            changed = {**content, key: content[key] | {name: other}}
            flow = read_configuration({"WGASegmentation": changed}).workflow
            if name in ("min_size", "max_size"):
                size = flow.nucleus_size if method == "nucleus" else flow.cell_size
                assert getattr(size, name) == changed[key][name]
            else:
                assert getattr(getattr(flow, method), name) == changed[key][name]


def test_no_threshold_is_otsus() -> None:
    content = yaml.safe_load(CLASSICAL)["ShardedWGASegmentation"]
    del content["nucleus_segmentation"]["threshold"]
    content["cytosol_segmentation"]["threshold"] = "None"
    flow = read_configuration({"WGASegmentation": content}).workflow
    assert isinstance(flow.nucleus, ThresholdNuclei)
    assert isinstance(flow.cell, SeededWatershed)
    assert (flow.nucleus.threshold, flow.nucleus.median_block, flow.nucleus.min_distance) == ("otsu", None, 8)
    assert flow.cell.threshold is None


def test_cellpose_of_two_masks() -> None:
    with pytest.warns(UserWarning, match=r"nucleus_segmentation\.min_size"):
        found = read_configuration(yaml.safe_load(TWO_MASKS))
    assert found.options == {
        "shard_size": 2000000, "overlap_px": 100, "n_jobs": 2, "devices": 1, "scratch": ".",
    }  # fmt: skip
    assert found.workflow == Workflow(
        nucleus=Cellpose("nuclei", diameter=30),
        cell=Cellpose("cyto2", flow_threshold=0.6, cellprob_threshold=-1),
        segmentation_channel_nuclei=2,
        combine_cytosol_channels=[0, 1],
        match_masks=True,
        filtering_threshold_mask_matching=0.9,
    )


def test_one_mask_and_storage() -> None:
    block = {"input_channels": 2, "output_masks": 2, "chunk_size": 50, "nucleus_segmentation": {"model": "nuclei"}}
    with pytest.warns(UserWarning, match=r"not used, .*: chunk_size, input_channels"):
        found = read_configuration({"ShardedDAPISegmentationCellpose": block})
    assert found.workflow == Workflow(nucleus=Cellpose("nuclei"), duplicate_mask=True)
    block = {"cytosol_segmentation": {"model_path": "x.pt", "resample": False, "normalize": False}}
    found = read_configuration({"CytosolOnlySegmentationCellpose": block})
    assert found.workflow == Workflow(cell=Cellpose(model_path="x.pt", resample=False, normalize=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_configuration({"DAPISegmentation": {"nucleus_segmentation": {"threshold": 0.3}}})
    assert found.workflow == Workflow(nucleus=ThresholdNuclei.scportrait(threshold=0.3))
    assert found.options == {}


def test_turing() -> None:
    found = read_configuration(yaml.safe_load(TURING))
    expected = {"tile_size": 512, "tile_overlap": 0.125, "niter": 150, "flow_threshold": 0.3, "resample": False}
    assert found.workflow == Workflow(cell=Cellpose("cyto3", min_size=15, cellprob_threshold=0, **expected))
    assert found.options == {"n_jobs": {"decode": min(32, cores()), "queue": 128, "write": 1}}


def test_its_own() -> None:
    flow = Workflow(nucleus=ThresholdNuclei(contrast=0.5))
    assert read_configuration(json.loads(flow.model_dump_json())).workflow == flow


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"WGASegmentatoin": {}}, r"WGASegmentatoin: unknown \(did you mean 'WGASegmentation'\?\)"),
        (
            {"DAPISegmentation": {"shardsize": 3}},
            r"DAPISegmentation.shardsize: unknown \(did you mean 'shard_size'\?\)",
        ),
        (
            {
                "WGASegmentation": {
                    "threads": "two",
                    "nGPUs": -1,
                    "cytosol_segmentation": {"erosoin": 2, "dilation": -1},
                }
            },
            r"nucleus_segmentation: missing; WGASegmentation.threads: expected a whole number from 1, .*, not 'two'; "
            r"WGASegmentation.nGPUs: expected a whole number from 0, .*, not -1; WGASegmentation.cytosol_segmentation."
            r"erosoin: unknown \(did you mean 'erosion'\?\); WGASegmentation.cytosol_segmentation.dilation: .*-1",
        ),
        ({"DAPISegmentationCellpose": {}}, "nucleus_segmentation: missing; .*: no model"),
        ({"DAPISegmentation": None}, "expected names and values, not None"),
        ({"DAPISegmentation": {"nucleus_segmentation": 3}}, "nucleus_segmentation: expected names and values, not 3"),
        ({"DAPISegmentation": {"cytosol_segmentation": {}}}, "cytosol_segmentation: unknown"),
        ({"DAPISegmentation": {"nucleus_segmentation": {}, "cache": 3}}, "cache: expected a folder, not 3"),
        (
            {"WGASegmentation": {"filter_masks_size": True, "nucleus_segmentation": {}, "cytosol_segmentation": {}}},
            "filter_masks_size=True without a bound",
        ),
        (
            {
                "CytosolSegmentationCellpose": {
                    "match_masks": "maybe",
                    "segmentation_channel_nuclei": [1, 2],
                    "nucleus_segmentation": {"diameter": 0},
                    "cytosol_segmentation": {"model": "cyto2", "normalize": {"percentil": [1, 2]}},
                }
            },
            r"nucleus_segmentation.diameter: is 0.*cytosol_segmentation.normalize.percentil: unknown \(did you mean "
            r"'percentile'\?\).*segmentation_channel_nuclei: \[1, 2\] are 2 channels.*match_masks: expected a valid "
            "boolean, not 'maybe'",
        ),
        ({"pipeline": {"n_merge_tile_processes": 0}}, "n_merge_tile_processes: expected a whole number from 1, not 0"),
        (
            {"pipeline": 3, "postproces": {}},
            r"postproces: unknown \(did you.*; pipeline: expected names and values, not 3",
        ),
        ({"pipeline": {"overlap_margin": -5}}, "overlap_margin=-5, expected a whole number from 0"),
        (
            {"postprocess": {"niter": "many", "min_size": "x"}, "pipeline": {"infer_size": 100}},
            r"infer_size=100, expected a multiple .*postprocess.niter: .*not 'many'; postprocess.min_size: .*not 'x'",
        ),
        ({"DAPISegmentation": {True: 2}}, "True: unknown"),
        ({1: {}}, "1: unknown, expected one of nucleus, cell"),
        ({"pipeline": {"infer_sizes": 3}}, r"infer_sizes: unknown \(did you mean 'infer_size'"),
        (
            {"nucleus": {"method": "threshold-nuclie"}},
            "nucleus.method: unknown method .*did you mean 'threshold-nuclei'",
        ),
        ({"nucleus": {"method": 3}}, "nucleus.method: expected a name"),
        ({"nucleus": 3}, "nucleus: expected names and values, not 3"),
        ({"nucleus": "threshold-nuclei", "preprocess": [{"name": "subtract"}]}, "preprocess.0: "),
        (
            {
                "nucleus": {"method": "threshold-nuclei", "thresold": 1, "contrast": 2},
                "nucleus_size": {"min": 3},
                "match_masks": [],
                "options": {"shard_size": 1.5, "chanels": 0},
            },
            r"options.chanels: unknown \(did you mean 'channels'\?\); options.shard_size: expected a valid integer, "
            r"not 1.5; nucleus.thresold: unknown \(did you mean 'threshold'\?\); nucleus.contrast: expected a number "
            r"less than 1, not 2; nucleus_size.min: unknown, expected one of min_size, max_size.*; match_masks: "
            "expected a valid boolean",
        ),
        ({"options": {"scale": "scale0"}}, "a workflow needs a nucleus or a cell method"),
    ],
)
def test_every_problem_is_told(content, said) -> None:
    with pytest.raises(InputError, match=said):
        read_configuration(content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"configuration .*x.yml is not there"):
        read_configuration(tmp_path / "x.yml")


def test_on_the_command_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file decides workflow and options; what the command line says goes before."""
    (store.parent / "c.yml").write_text(CLASSICAL.format(cache=store.parent / "cache"))
    file = str(store.parent / "c.yml")
    assert main(["run", str(store), "--workflow", file, "--quiet", "--n-jobs", "1"]) == 0
    said = "spatialdata-segment: warning: --overlap-px 60 is raised to 110, the minimum of threshold-nuclei"
    assert capsys.readouterr().err.startswith(said)
    record = json.loads((store / ".spatialdata_segment" / "segmentation.run.json").read_text())
    assert record["n_jobs"]["decode"] == 1
    assert record["plan"]["nucleus"].items() >= {"grid": [2, 2], "halo": [110, 110]}.items()
    assert list((store.parent / "cache").iterdir()) == []
    found = read_configuration(file)
    sdata = sd.read_zarr(store)
    segment(sdata, "image", found.workflow, key_added="b", progress=False, **found.options)
    np.testing.assert_array_equal(sdata["segmentation_cell_labels"], sdata["b_cell_labels"])
    assert sdata["b_table"].n_obs > 3
    shutil.copytree(store, store.parent / "b.zarr")
    assert main(["plan", str(store), str(store.parent / "b.zarr"), "--workflow", file]) == 0  # without the scratch
    out = capsys.readouterr().out
    assert out.count("threshold-nuclei, 4 shards of 110 x 130 px (halo 110") == 2, out
    configuration = read_configuration(file)
    assert plan(sdata, "image", configuration.workflow, **configuration.options).masks["nucleus"].n_shards == 4
    assert configuration.options_of(predict) == {k: v for k, v in found.options.items() if k != "scratch"}


def test_runs_share_a_cache(store: Path) -> None:
    """What one leaves in it stands in no other's way, and goes on where it stopped."""
    content = yaml.safe_load(CLASSICAL.format(cache=store.parent / "cache"))
    found, sdata = read_configuration(content), sd.read_zarr(store)
    (store.parent / "cache").mkdir()
    (store.parent / "cache" / "mine.txt").touch()

    def stop(event: Event) -> None:
        if event.stage == "nucleus shards" and event.done == 2:
            raise KeyboardInterrupt

    with listen(stop), pytest.raises(KeyboardInterrupt):
        segment(sdata, "image", found.workflow, progress=False, **found.options | {"n_jobs": 1})
    left = {p.name for p in (store.parent / "cache").iterdir()}
    assert len(left) == 2
    other = Tissue((150, 160), seed=1, cell_diameter=44).to_spatialdata(chunks=64)
    segment(other, "image", found.workflow, progress=False, **found.options)
    segment(sdata, "image", found.workflow, progress=False, **found.options)
    assert [p.name for p in (store.parent / "cache").iterdir()] == ["mine.txt"]


def test_a_project_of_scportrait(store: Path) -> None:
    """Other steps of a project stand beside the segmentation."""
    block = {"nucleus_segmentation": {"threshold": 0.2}}
    block["cytosol_segmentation"] = {}
    content = {"name": "p", "WGASegmentation": {}, "ShardedWGASegmentation": block, "HDF5CellExtraction": {"a": 1}}
    with pytest.warns(UserWarning, match=r"not used, .*: name, WGASegmentation, HDF5CellExtraction"):
        flow = read_configuration(content).workflow
    assert flow.nucleus == ThresholdNuclei.scportrait()
    with pytest.raises(InputError, match=r"of 3 workflows \(WGASegmentation, ShardedWGASegmentation, DAPISegmentation"):
        read_configuration(content | {"DAPISegmentation": {}})


def test_files_that_disagree(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a", 15000), ("b", 16000)):
        content = {"DAPISegmentation": {"shard_size": size, "nucleus_segmentation": {"threshold": 0.2}}}
        (store.parent / f"{name}.yml").write_text(yaml.safe_dump(content))
    images = [f"--image={key}={store.parent / name}.yml" for key, name in (("image", "a"), ("other", "b"))]
    assert main(["plan", str(store), *images]) == 2
    assert "differ in shard_size, 15000 and 16000" in capsys.readouterr().err
    assert main(["run", str(store), *images, "--shard-size", "9000"]) == 2
    assert "no image 'other'" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_told_and_on_record(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = sd.read_zarr(store)
    monkeypatch.setattr(devices, "_found", lambda: ("cpu",))
    with pytest.warns(UserWarning, match="2 GPUs may be used and none is there: networks run on the CPU"):
        segment(sdata, "image", DummyDevice(), devices=2, progress=False)
    record = json.loads((store / ".spatialdata_segment" / "segmentation.run.json").read_text())
    assert (record["devices"], record["parameters"]["device"]) == (["cpu"], "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment(sdata, "image", "dapi", key_added="b", devices=2, progress=False)  # no network


class DummyDevice(DummyNetwork):
    """Runs on a device."""

    name = "dummy-device"
    uses_device = True

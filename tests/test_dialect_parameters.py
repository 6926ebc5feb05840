"""The classical workflows of scPortrait: as they stand, and every parameter acts on a result or on the run."""

from __future__ import annotations

import json
import shutil
import warnings

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import yaml
from spatialdata.models import Image2DModel

from spatialdata_segment import read_configuration, segment
from spatialdata_segment._masks import match_label_arrays
from spatialdata_segment._scportrait import RULES, RUN, STORAGE, WORKFLOWS
from spatialdata_segment.cli import main
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine import devices
from spatialdata_segment.engine.events import Event, listen
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

NUCLEI = {
    "lower_quantile_normalization": 0.01, "upper_quantile_normalization": 0.99, "median_block": 41, "median_step": 4,
    "threshold": 0.2, "min_distance": 8, "peak_footprint": 7, "speckle_kernel": 9, "dilation": 0, "min_size": 200,
    "max_size": 1000, "contact_filter": 0.5,
}  # fmt: skip
CELLS = {
    "threshold": 0.05, "lower_quantile_normalization": 0.01, "upper_quantile_normalization": 0.99, "erosion": 2,
    "dilation": 7, "min_clip": 0, "max_clip": 0.2, "min_size": 200, "max_size": 6000,
}  # fmt: skip
ALL = {"lower_quantile_normalization": 0.001, "upper_quantile_normalization": 0.999, "median_filter_size": 4}
WGA = {
    **ALL, "nucleus_segmentation": NUCLEI, "cytosol_segmentation": CELLS, "chunk_size": 50, "filter_masks_size": True,
}  # fmt: skip
DAPI = {"input_channels": 3, "chunk_size": 50, **ALL, "nucleus_segmentation": NUCLEI | {"max_size": 5000}}
"""As documented: the second repeats ``chunk_size``."""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Touching cells of 40 px under uneven light, and a third channel that shows them mirrored."""
    path = tmp_path_factory.mktemp("image") / "image.zarr"
    tissue = Tissue((200, 210), seed=5, cell_diameter=40, uneven_light=0.3, density=0.9)
    nuclei, cells = tissue.block(Box.whole(tissue.shape)).image
    pixels = np.stack([nuclei, cells, np.maximum(nuclei, cells // 2)[:, ::-1]])
    names = ["DAPI", "WGA", "CD45"]
    image = Image2DModel.parse(da.from_array(pixels, chunks=(3, 128, 128)), dims=("c", "y", "x"), c_coords=names)
    sd.SpatialData(images={"image": image}).write(path)
    return path


def result(sdata, content, **options):
    """Return all labels of a configuration, end to end."""
    found = read_configuration({"WGASegmentation": content})
    segment(sdata, "image", found.workflow, overwrite=True, table=False, shapes=False, progress=False, **options)
    return np.stack([np.asarray(sdata[f"segmentation_{m}_labels"]) for m in ("nucleus", "cell")])


@pytest.fixture(scope="module")
def sdata(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a.zarr"
    shutil.copytree(image, path)
    return sd.read_zarr(path)


SMALL = WGA | {
    "median_filter_size": 1, "filter_masks_size": False, "nucleus_segmentation": NUCLEI | {"speckle_kernel": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(sdata):
    found = result(sdata, SMALL)
    assert len(np.unique(found[0])) > 5
    return found


@pytest.mark.parametrize("name", ["WGASegmentation", "DAPISegmentation"])
def test_a_configuration_runs_as_it_stands(name, image, tmp_path, capsys):
    shutil.copytree(image, tmp_path / "a.zarr")
    text = yaml.safe_dump({name: WGA if name == "WGASegmentation" else DAPI})
    if name == "DAPISegmentation":
        text += "  chunk_size: 50\n"
    (tmp_path / "c.yml").write_text(text)
    command = ["run", str(tmp_path / "a.zarr"), "--workflow", str(tmp_path / "c.yml"), "--quiet"]
    assert main([*command, "--shard-size", "15000", "--n-jobs", "1"]) == 0
    assert "not used, for they decide nothing here: " in capsys.readouterr().err
    assert sd.read_zarr(tmp_path / "a.zarr")["segmentation_table"].n_obs > 3


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("nucleus_segmentation", n, v) for n, v in (
        ("threshold", 0.35), ("lower_quantile_normalization", 0.3), ("upper_quantile_normalization", 0.7),
        ("median_block", 11), ("median_step", 1), ("min_distance", 30), ("peak_footprint", 30), ("speckle_kernel", 9),
        ("dilation", 3),
    )] + [("cytosol_segmentation", n, v) for n, v in (
        ("threshold", 0.3), ("lower_quantile_normalization", 0.3), ("upper_quantile_normalization", 0.6),
        ("erosion", 5), ("dilation", 3), ("min_clip", 0.1), ("max_clip", 0.9),
    )],
)  # fmt: skip
def test_every_parameter_of_a_mask_acts(part, name, value, sdata, plain):
    """On the field of the method, and on the labels."""
    content = SMALL | {part: SMALL[part] | {name: value}}
    flows = [read_configuration({"WGASegmentation": c}).workflow for c in (SMALL, content)]
    mask = "nucleus" if part == "nucleus_segmentation" else "cell"
    before, after = (getattr(getattr(flow, mask), name) for flow in flows)
    assert before != after == value
    assert not np.array_equal(result(sdata, content), plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lower_quantile_normalization", 0.3),
        ("upper_quantile_normalization", 0.7), ("median_filter_size", 5), ("segmentation_channel_nuclei", [2]),
        ("segmentation_channel_cytosol", [2]), ("combine_nucleus_channels", [0, 1]),
        ("combine_cytosol_channels", [1, 2]),
    ],
)  # fmt: skip
def test_every_rule_acts(name, value, sdata, plain):
    content = SMALL | {name: value}
    flow = read_configuration({"WGASegmentation": content}).workflow
    before = read_configuration({"WGASegmentation": SMALL}).workflow
    assert getattr(flow, name) != getattr(before, name)
    assert not np.array_equal(result(sdata, content), plain)


SIZED = SMALL | {
    "filter_masks_size": True, "nucleus_segmentation": SMALL["nucleus_segmentation"] | {"min_size": 350},
    "cytosol_segmentation": CELLS | {"min_size": 1},
}  # fmt: skip
WIDE = SMALL | {"nucleus_segmentation": SMALL["nucleus_segmentation"] | {"dilation": 7}}


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (SIZED, {"match_masks": False}),  # cells stay whose nuclei are too small
        (SIZED, {"filter_masks_size": False}),
        (WIDE, {"nucleus_segmentation": WIDE["nucleus_segmentation"] | {"contact_filter": 0.95}}),  # nuclei that touch
    ],
    ids=["match_masks", "filter_masks_size", "contact_filter"],
)
def test_what_acts_with_others_acts(base, changes, sdata):
    assert not np.array_equal(result(sdata, base), result(sdata, base | changes))


@pytest.mark.parametrize(("threshold", "kept"), [(0.95, 0), (0.76, 0), (0.75, 1)])
def test_the_threshold_of_matching_acts(threshold, kept):
    """On a nucleus of which three pixels of four lie in a cell; grown cells hold all of theirs."""
    content = SMALL | {"filtering_threshold_mask_matching": threshold}
    rules = read_configuration({"WGASegmentation": content}).workflow.rules(None)
    nuclei, cells = np.array([[1, 1, 1, 1, 0]]), np.array([[0, 2, 2, 2, 2]])
    assert match_label_arrays(nuclei, cells, rules).resolution.nucleus.is_kept.sum() == kept


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("nucleus", "min_size", 350), ("nucleus", "max_size", 350), ("cytosol", "min_size", 900),
     ("cytosol", "max_size", 900)],
)  # fmt: skip
def test_every_size_acts(part, name, value, sdata):
    wide = {"min_size": 1, "max_size": 100000}
    content = SMALL | {"filter_masks_size": True}
    content |= {f"{p}_segmentation": SMALL[f"{p}_segmentation"] | wide for p in ("nucleus", "cytosol")}
    other = content | {f"{part}_segmentation": content[f"{part}_segmentation"] | {name: value}}
    assert not np.array_equal(result(sdata, content), result(sdata, other))


@pytest.mark.parametrize(
    ("name", "value", "where", "expected"),
    [
        ("shard_size", 15000, ("plan", "nucleus", "grid"), [1, 3]),
        ("overlap_px", 160, ("plan", "nucleus", "halo"), [160, 160]),
        ("threads", 3, ("n_jobs", "decode"), 3),
    ],
)
def test_every_option_of_the_run_acts(name, value, where, expected, image, tmp_path):
    shutil.copytree(image, tmp_path / "a.zarr")
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"ShardedDAPISegmentation": DAPI | {name: value}}))
    assert main(["run", str(tmp_path / "a.zarr"), "--workflow", str(tmp_path / "c.yml"), "--quiet", "--no-table"]) == 0
    found = json.loads((tmp_path / "a.zarr" / ".spatialdata_segment" / "segmentation.run.json").read_text())
    for key in where:
        found = found[key]
    assert found == expected


def test_a_cache_is_used(image, tmp_path):
    shutil.copytree(image, tmp_path / "a.zarr")
    found = read_configuration({"DAPISegmentation": DAPI | {"cache": str(tmp_path / "cache")}})
    seen: set[bool] = set()

    def look(_: Event) -> None:
        seen.add(any((tmp_path / "cache").glob("*/run.json")))

    with listen(look):
        segment(sd.read_zarr(tmp_path / "a.zarr"), "image", found.workflow, progress=False, **found.options)
    assert seen == {True}


def test_so_many_gpus_are_used(monkeypatch):
    monkeypatch.setattr(devices, "_found", lambda: ("cuda:0", "cuda:1", "cuda:2"))
    block = {"nGPUs": 2, "nucleus_segmentation": {"model": "nuclei"}}
    options = read_configuration({"DAPISegmentationCellpose": block}).options
    assert Executor(1).devices(options["devices"], used=True) == ("cuda:0", "cuda:1")


def test_what_decides_nothing_is_said():
    """Names of storage are accepted; no other name is, and none is known that no test here is of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read_configuration({"DAPISegmentation": DAPI | dict.fromkeys(STORAGE, 3)})
    assert set(STORAGE) < set(str(told[0].message).rpartition(": ")[2].split(", "))
    assert set(SMALL) - set(RULES) == {"chunk_size", "nucleus_segmentation", "cytosol_segmentation"}
    assert set(RUN) == {"shard_size", "overlap_px", "threads", "nGPUs", "cache"}
    assert {"min_size", "max_size", *WORKFLOWS["WGASegmentation"]["nucleus_segmentation"][1]} == set(NUCLEI)
    assert {"min_size", "max_size", *WORKFLOWS["WGASegmentation"]["cytosol_segmentation"][1]} == set(CELLS)

"""The command `resegment`: what `resegment` does, and errors before anything runs."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import spatialdata as sd
import yaml
from geopandas import GeoDataFrame
from shapely import box
from spatialdata.models import ShapesModel

from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, _journal, resegment, segment
from spatialdata_segment.cli import main
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(nucleus=ThresholdNuclei(object_radius=7), cell=ExpandNuclei(distance=4))
FINER = Workflow(nucleus=ThresholdNuclei(object_radius=4, contrast=0.55), cell=ExpandNuclei(distance=4))
BOX = (20, 20, 90, 90)


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    path = tmp_path_factory.mktemp("begin") / "a.zarr"
    sdata = Tissue((130, 150), seed=3, cell_diameter=20, touching=0.6).to_spatialdata(chunks=64)
    sdata["fold"] = ShapesModel.parse(GeoDataFrame(geometry=[box(*BOX)]))
    segment(sdata, "image", FLOW, pixel_size=0.5, n_jobs=1, progress=False).write(path)
    path.with_name("finer.yaml").write_text(yaml.safe_dump(FINER.model_dump(mode="json")))
    return path


@pytest.fixture
def store(begin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begin, tmp_path / "a.zarr")
    shutil.copy(begin.with_name("finer.yaml"), tmp_path)
    return tmp_path / "a.zarr"


@pytest.fixture(scope="module")
def expected(begin):
    """What the function makes of it."""
    sdata = sd.deepcopy(sd.read_zarr(begin))
    return resegment(sdata, "image", FINER, bounding_box=BOX, n_jobs=1, progress=False)


def call(*arguments):
    return main(["resegment", "a.zarr", "--workflow", "finer.yaml", "--quiet", *arguments])


def same(store, expected) -> bool:
    found = sd.read_zarr(store)
    names = [n for n in expected.labels if n.startswith("segmentation")]
    return all(np.array_equal(found[n], expected[n]) for n in names) and found["segmentation_table"].obs.equals(
        expected["segmentation_table"].obs
    )


@pytest.mark.parametrize("region", ["20,20,90,90", "fold"])
def test_it_is_resegment(store, expected, region, capsys):
    assert call("--region", region, "--n-jobs", "1", "--report", "report.html") == 0
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("a.zarr: segmentation_candidates, segmentation_cell_boundaries, ")
    counts = json.loads(expected["segmentation_table"].uns["segmentation"])["updates"][0]["counts"]
    assert lines[1:3] == [f"{m}: {counts[m]['replaced']} went, {counts[m]['kept']} came" for m in counts]
    assert lines[3] == "report.html"
    page = re.sub(r"\s*<[^>]*>\s*", " ", (store.parent / "report.html").read_text())
    for mask, of in counts.items():
        words = {"nucleus": "nuclei", "cell": "cells"}
        assert re.search(rf"1 +{words[mask]} +{of['replaced']} +{of['kept']} +\d+", page)
    assert same(store, expected)


def test_options_act(store, expected, capsys):
    options = ["--channels", "DAPI", "--shard-size", "3600", "--overlap-px", "70", "--n-jobs", "2", "--devices", "cpu"]
    options += ["--pixel-size", "0.5", "--scratch", "work", "--no-resume", "--scale", "scale0", "--image", "image"]
    options += ["--to-coordinate-system", "global", "--key", "segmentation", "--json"]
    assert call("--region=20,20,90,90", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["command"], told["status"], told["exit_code"]) == ("resegment", "done", 0)
    (result,) = told["result"]["results"]
    assert result["store"] == "a.zarr"
    said = json.loads(sd.read_zarr(store)["segmentation_table"].uns["segmentation"])["updates"]
    assert result["update"] == said[0]["counts"]
    assert said[0]["pixel_size"] == [0.5, 0.5]
    assert (store.parent / "work.resegment.json").exists()
    names = [n for n in expected.labels if n.startswith("segmentation")]
    assert all(np.array_equal(sd.read_zarr(store)[n], expected[n]) for n in names)


def test_dry_run(store, begin, capsys):
    before = sorted(p for p in store.rglob("*") if p.is_file())
    assert call("--region", "20,20,90,90", "--dry-run", "--json", "--shard-size", "3600") == 0
    (plan,) = json.loads(capsys.readouterr().out)["result"]["plans"]
    assert plan["of"] == "a.zarr image"
    n = 1 + (130 - 1) // 60, 1 + (150 - 1) // 60
    assert 0 < plan["masks"]["nucleus"]["n_shards"] <= n[0] * n[1]
    assert set(plan["outputs"]) == {
        f"segmentation_{n}" for n in ("nucleus_labels", "cell_labels", "nucleus_boundaries", "cell_boundaries")
    } | {"segmentation_table", "segmentation_candidates"}
    assert sorted(p for p in store.rglob("*") if p.is_file()) == before
    assert call("--region", "20,20,90,90", "--dry-run") == 0
    assert "dry run: nothing was run or written" in capsys.readouterr().out


def test_on_workers(store, expected, tmp_path):
    (tmp_path / "c.yaml").write_text("cores: 1\nmemory: 2 GiB\njobs: 1\n")
    assert call("--region", "fold", "--cluster", "local", "--cluster-config", "c.yaml") == 0
    assert same(store, expected)


def test_a_batch_script(store, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("cores: 1\nmemory: 1 GiB\n")
    assert call("--region", "fold", "--cluster", "slurm", "--cluster-config", "c.yaml", "--sbatch", "job.sh") == 0
    assert "resegment a.zarr" in (tmp_path / "job.sh").read_text()
    assert "updates" not in sd.read_zarr(store)["segmentation_table"].uns["segmentation"]


def test_killed_in_the_exchange_and_called_again(store, expected, capsys, monkeypatch):
    """Whatever command opens the store next finishes the exchange; the same command does not do it again."""

    class Kill(BaseException):
        pass

    def stop(what):
        if what == "after segmentation_cell_labels":
            raise Kill

    with monkeypatch.context() as m:
        m.setattr(_journal, "step", stop)
        with pytest.raises(Kill):
            call("--region", "20,20,90,90")
    assert not same(store, expected)
    assert main(["report", "a.zarr", "--output", "report.html"]) == 0
    assert same(store, expected)
    capsys.readouterr()
    assert call("--region", "20,20,90,90") == 0
    assert "warning: the last change of 'segmentation' was this call" in capsys.readouterr().err
    assert same(store, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--region", "no"], "no"),
        (["--region", "7"], "'7'"),
        (["--region", "1,2,3"], "bounding_box"),
        (["--region", "900,900,950,950"], "misses the image"),
        (["--region", "fold", "--key", "mine"], "no result 'mine'"),
        (["--region", "fold", "--image", "other"], "no image 'other'"),
        (["--region", "fold", "--workflow", "dapi"], "has the mask nucleus and cell"),
        (["--region", "fold", "--report", "no/report.html"], "the folder no of --report is not there"),
        (["--region", "fold", "--sbatch", "job.sh"], "--sbatch without --cluster"),
        (["--region", "fold", "--shard-size", "0"], "--shard-size 0, expected"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_errors_are_one_line(store, arguments, message, dry, capsys):
    before = sd.read_zarr(store)["segmentation_table"].obs
    assert call(*arguments, *["--dry-run"] * dry) == 2
    error = capsys.readouterr().err
    assert error.startswith("spatialdata-segment: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sd.read_zarr(store)["segmentation_table"].obs.equals(before)


def test_a_report_needs_tables(store, capsys):
    sdata = sd.read_zarr(store)
    for name in ("segmentation_table", "segmentation_candidates"):
        sdata.delete_element_from_disk(name)
    assert call("--region", "fold", "--report", "report.html") == 2
    assert "a report is made of the tables" in capsys.readouterr().err
    assert call("--region", "fold") == 0
    assert "segmentation_table" not in sd.read_zarr(store)


@pytest.mark.parametrize("arguments", [["a.zarr"], ["a.zarr", "--region", "fold"], ["--region", "1,2,3,4"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["resegment", *arguments])
    assert raised.value.code == 2
    assert "required" in capsys.readouterr().err

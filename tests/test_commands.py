"""The commands run, predict, decode and plan: every option acts, and errors are one line."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys

import numpy as np
import pytest
import spatialdata as sd
import yaml
from spatialdata.models import Image2DModel

from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, decode, predict, segment
from spatialdata_segment._options import descriptions
from spatialdata_segment.cli import main
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(nucleus=ThresholdNuclei(threshold="otsu", min_distance=4), cell=ExpandNuclei(distance=4))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.zarr"
    Tissue((110, 130), seed=3, cell_diameter=18).to_spatialdata(chunks=64).write(path)
    return path


@pytest.fixture
def store(image, tmp_path):
    shutil.copytree(image, tmp_path / "a.zarr")
    (tmp_path / "flow.yaml").write_text(yaml.safe_dump(FLOW.model_dump(mode="json")))
    return tmp_path / "a.zarr"


def labels(store, name="segmentation_cell_labels"):
    element = sd.read_zarr(store)[name]
    return np.asarray(element["scale0"]["image"] if hasattr(element, "children") else element)


def wanted(store, workflow=FLOW, **options):
    return segment(sd.read_zarr(store), "image", workflow, key_added="wanted", progress=False, n_jobs=1, **options)


def test_run_is_segment(store, capsys):
    expected = wanted(store)
    flow = str(store.with_name("flow.yaml"))
    assert main(["run", str(store), "--image", "image", "--workflow", flow, "--n-jobs", "1", "--quiet"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.startswith(f"{store}: segmentation_candidates, segmentation_cell_boundaries, ")
    found = sd.read_zarr(store)
    assert np.array_equal(labels(store), labels(store, "wanted_cell_labels"))
    assert np.array_equal(found["segmentation_table"].X, expected["wanted_table"].X)


def test_options_act(store):
    options = [
        "--channels", "DAPI", "--bounding-box", "20,30,90,80", "--key-added", "mine", "--measure-channels", "1,DAPI",
        "--pixel-size", "0.5", "--shard-size", "4000", "--overlap-px", "70", "--n-jobs", "2", "--devices", "cpu",
        "--scratch", str(store.with_name("scratch")), "--no-resume", "--no-shapes", "--keep-maps", "--quiet",
        "--scale", "scale0", "--to-coordinate-system", "global",
    ]  # fmt: skip
    assert main(["run", str(store), *options]) == 0
    expected = wanted(
        store, "dapi", channels="DAPI", bounding_box=(20, 30, 90, 80), measure_channels=[1, "DAPI"], pixel_size=0.5
    )
    found = sd.read_zarr(store)
    assert np.array_equal(labels(store, "mine_nucleus_labels"), labels(store, "wanted_nucleus_labels"))
    assert list(found["mine_table"].var_names) == list(expected["wanted_table"].var_names)
    assert found["mine_table"].obs["area_um2"].equals(expected["wanted_table"].obs["area_um2"])
    assert "mine_nucleus_boundaries" not in found
    assert (store / ".spatialdata_segment" / "mine.maps").is_dir()
    assert (store.parent / "scratch.run.json").is_file()
    assert (
        main(
            [
                "run",
                str(store),
                "--key-added",
                "mine",
                "--no-table",
                "--overwrite",
                "--quiet",
                "--roi-key",
                "mine_nucleus_labels",
            ]
        )
        == 0
    )
    assert "mine_table" not in sd.read_zarr(store)


def test_predict_then_decode(store, tmp_path, capsys):
    wanted(store)
    maps, flow = str(tmp_path / "maps"), str(tmp_path / "flow.yaml")
    assert main(["predict", str(store), "--workflow", flow, "--maps", maps, "--shard-size", "3000", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{maps}\n"
    expected = labels(store, "wanted_cell_labels")
    shutil.rmtree(store / "images")
    for target in (["--output", str(tmp_path / "new.zarr")], ["--output", str(tmp_path / "new.zarr"), "--overwrite"]):
        assert main(["decode", maps, *target, "--quiet"]) == 0
    assert np.array_equal(labels(tmp_path / "new.zarr"), expected)


def test_decode_into_the_image_s_store(store, tmp_path):
    """With the image intensities are measured; another workflow changes what predict does not read."""
    maps = str(tmp_path / "maps")
    assert main(["predict", str(store), "--maps", maps, "--quiet", "--workflow", str(tmp_path / "flow.yaml")]) == 0
    other = FLOW.model_dump(mode="json")
    other["cell"]["distance"] = 2.0
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert main(["decode", maps, "--store", str(store), "--workflow", str(tmp_path / "other.yaml"), "--quiet"]) == 0
    expected = wanted(store, other)
    assert np.array_equal(labels(store), labels(store, "wanted_cell_labels"))
    assert np.array_equal(sd.read_zarr(store)["segmentation_table"].X, expected["wanted_table"].X)


def test_several_images_and_folders(image, tmp_path, capsys):
    tissue = sd.read_zarr(image)
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in "ab":
        sd.SpatialData(images={"one": tissue["image"], "two": tissue["image"]}).write(folder / f"{name}.zarr")
    sd.SpatialData(images={"one": tissue["image"]}).write(folder / "c.zarr")
    assert main(["run", str(folder), "--image", "one", "--image", "two=wga", "--quiet"]) == 2
    told = capsys.readouterr()
    assert "1 of 3 stores failed" in told.err
    assert "no image 'two'" in told.err
    *lines, last = told.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(folder / f"{n}.zarr") for n in "ab"]
    assert last.endswith(f"report {folder / 'a.zarr'} --key one_segmentation")
    for name in "ab":
        found = sd.read_zarr(folder / f"{name}.zarr")
        assert {"one_segmentation_nucleus_labels", "two_segmentation_cell_labels"} < set(found.labels)
        assert "one_segmentation_cell_labels" not in found.labels


def test_plan_runs_nothing(store, capsys):
    assert main(["plan", str(store), "--shard-size", "4000", "--n-jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{store} image: image 110 x 130 px\nnucleus: threshold-nuclei, ")
    assert not sd.read_zarr(store).labels


def test_options_are_those_of_the_functions(capsys):
    """Every parameter of a function is an option with a text, and no other."""
    for name, function in (("run", segment), ("predict", predict), ("decode", decode)):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        out = capsys.readouterr().out
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "sdata":
                option = {"progress": "quiet"}.get(parameter.name, parameter.name).replace("_", "-")
                assert (
                    f"--no-{option}" in out if parameter.default is True and option != "quiet" else f"--{option}" in out
                )
        for option in ("--cluster", "--cluster-config", "--sbatch"):
            assert option in out


def test_descriptions_of_a_docstring():
    def function(a, *, b, c):
        """Do it.

        Parameters
        ----------
        a
            The ``first``:
            two lines.
        b, c
            Both.

        Returns
        -------
        d
            Nothing.
        """

    assert descriptions(function) == {"a": "The first: two lines.", "b": "Both.", "c": "Both."}
    assert descriptions(lambda: None) == {}


def test_one_store_that_cannot_be_opened_loses_no_other(store, tmp_path, capsys):
    blank = Image2DModel.parse(np.zeros((1, 60, 60), np.uint8), dims=("c", "y", "x"))
    for name in ("c", "d"):
        sd.SpatialData(images={"image": blank}).write(tmp_path / f"{name}.zarr")
    (tmp_path / "b.zarr").mkdir()
    assert main(["run", str(tmp_path), "--quiet", "--n-jobs", "1"]) == 2
    told = capsys.readouterr()
    assert "1 of 4 stores failed" in told.err
    assert f"{tmp_path / 'b.zarr'} cannot be read" in told.err
    assert labels(store, "segmentation_nucleus_labels").max() > 3
    for name in ("c", "d"):
        assert f"warning: {tmp_path / name}.zarr: the segmentation of 'image' is empty" in told.err
    assert main(["plan", str(tmp_path), "--n-jobs", "1"]) == 2
    assert capsys.readouterr().out.count("image 110 x 130 px") == 1


def test_python_m(store):
    command = [sys.executable, "-m", "spatialdata_segment", "plan", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert "110 x 130 px" in done.stdout


def test_a_batch_script_of_the_command(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("cores: 1\nmemory: 1 GiB\n")
    common = ["run", "a.zarr", "--cluster", "slurm", "--cluster-config", "c.yaml"]
    for sbatch in (["--sbatch", "job.sh"], ["--sbatch=job.sh"]):
        assert main([*common[:2], *sbatch, *common[2:]]) == 0
        assert capsys.readouterr().out == "sbatch job.sh\n"
        assert f"-m spatialdata_segment {' '.join(common)} &\n" in (tmp_path / "job.sh").read_text()
        assert (tmp_path / "slurm-logs").is_dir()
    assert not sd.read_zarr(store).labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.zarr"], "there is no store nowhere.zarr"),
        (["run", "."], "the folder . is no store and holds none"),
        (["run", "text.zarr"], "text.zarr cannot be read as a SpatialData store"),
        (["run", "two.zarr"], "two.zarr has 2 images (x, y): name those to work on with --image"),
        (["run", "a.zarr", "--image", "no"], "no image 'no'"),
        (["run", "a.zarr", "--image", "image", "--image", "image=wga"], "--image names 'image' twice"),
        (["run", "a.zarr", "two.zarr", "--scratch", "s"], "--scratch s with 2 stores"),
        (["run", "a.zarr", "--workflow", "dap"], "did you mean 'dapi'"),
        (["run", "a.zarr", "--workflow", "no.yaml"], "configuration no.yaml is not there"),
        (["run", "a.zarr", "--workflow", "bad.yaml"], "configuration bad.yaml not valid: line 1: core: unknown"),
        (["run", "a.zarr", "--shard-size", "0"], "--shard-size 0, expected"),
        (["run", "a.zarr", "--devices", "gpu"], "'gpu' is no device"),
        (["run", "a.zarr", "--cluster-config", "c.yaml"], "--cluster-config without --cluster"),
        (["run", "a.zarr", "--sbatch", "job.sh"], "--sbatch without --cluster"),
        (["run", "a.zarr", "--cluster", "slurm"], "cluster template"),
        (["run", "a.zarr", "--cluster", "slurm", "--sbatch", "job.sh"], "--sbatch needs --cluster-config"),
        (["run", "a.zarr", "--cluster", "local", "--n-jobs", "2"], "--n-jobs 2 with --cluster"),
        (["run", "a.zarr", "--cluster", "slurm", "--cluster-config", "no.yaml"], "no.yaml is not there"),
        (
            ["run", "a.zarr", "--cluster", "slurm", "--cluster-config", "c.yaml", "--sbatch", "job.sh", "--no-resume"],
            "--sbatch with --no-resume",
        ),
        (["decode", "nowhere", "--output", "new.zarr"], "no maps in nowhere"),
        (["predict", "a.zarr", "--maps", "full"], "is not empty"),
    ],
)
def test_errors_are_one_line(arguments, message, store, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.zarr").write_text("no store")
    (tmp_path / "bad.yaml").write_text("core: 4")
    (tmp_path / "c.yaml").write_text("cores: 1\nmemory: 1 GiB\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    if "two.zarr" in arguments:
        tissue = sd.read_zarr(image)
        sd.SpatialData(images={"x": tissue["image"], "y": tissue["image"]}).write("two.zarr")
    if "." in arguments:
        shutil.rmtree(store)
        (tmp_path / "text.zarr").unlink()
    assert main([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("spatialdata-segment: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "new.zarr").exists()
    assert not (tmp_path / "job.sh").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "required: STORE"),
        (["run", "a.zarr", "--shard-size", "big"], "'big', expected a whole number"),
        (["run", "a.zarr", "--bounding-box", "1,2,a,4"], "'a', expected a number"),
        (["run", "a.zarr", "--over"], "unrecognized arguments: --over"),
        (["decode", "maps"], "one of the arguments --store --output is required"),
        (["decode", "maps", "--store", "a", "--output", "b"], "not allowed with"),
        (["predict", "a.zarr"], "required: --maps"),
        (["cluster"], "required: action"),
        (["run", "a.zarr", "--cluster", "pbs"], "invalid choice"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err

"""What scripts rely on: exit codes, one JSON object, dry runs that write nothing, errors without a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import spatialdata as sd

from spatialdata_segment import _commands, cli
from spatialdata_segment._options import as_options
from spatialdata_segment.cli import _parser, main
from spatialdata_segment.errors import SegmentationWarning
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.zarr"
    Tissue((100, 120), seed=3, cell_diameter=18).to_spatialdata(chunks=64).write(path)
    return path


@pytest.fixture
def store(image, tmp_path):
    shutil.copytree(image, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def tree(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in files}


def outcome(capsys) -> dict:
    """Return the one JSON object on stdout."""
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


# JSON


def test_json_of_a_run(store, capsys):
    assert main(["run", str(store), "--workflow", "wga", "--n-jobs", "1", "--json"]) == 0
    said = outcome(capsys)
    assert (said["command"], said["status"], said["exit_code"], said["error"]) == ("run", "done", 0, None)
    assert said["seconds"] > 0
    (result,) = said["result"]["results"]
    table = sd.read_zarr(store)["segmentation_table"]
    assert result["counts"]["segmentation_table"]["cell"]["kept"] == table.n_obs > 3
    assert "segmentation_cell_labels" in result["elements"]
    assert main(["run", str(store), "--workflow", "wga", "--json"]) == 2
    said = outcome(capsys)
    assert (said["status"], said["error"]["type"]) == ("failed", "ExistsError")
    assert list(said["result"]["failed"]) == [str(store)]


def test_json_of_two_phases(store, tmp_path, capsys):
    maps, new = str(tmp_path / "maps"), str(tmp_path / "new.zarr")
    assert main(["predict", str(store), "--maps", maps, "--json", "--quiet"]) == 0
    assert outcome(capsys)["result"] == {"store": str(store), "image": "image", "maps": maps}
    assert main(["decode", maps, "--output", new, "--json", "--quiet"]) == 0
    (result,) = outcome(capsys)["result"]["results"]
    assert result["store"] == new
    assert result["counts"]["segmentation_table"]["nucleus"]["kept"] > 3
    assert main(["plan", str(store), "--shard-size", "4000", "--n-jobs", "1", "--json"]) == 0
    (planned,) = outcome(capsys)["result"]["plans"]
    assert planned["masks"]["nucleus"]["n_shards"] == 3
    assert planned["outputs"]["segmentation_nucleus_labels"] == "labels"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["models", "list"], "models"),
        (["config", "--list"], "workflows"),
        (["config", "dapi"], "yaml"),
        (["cluster", "template"], "yaml"),
    ],
)
def test_json_of_what_is_listed(arguments, key, capsys):
    assert main([*arguments, "--json"]) == 0
    said = outcome(capsys)
    assert said["result"][key]
    assert said["command"] == arguments[0] + (f" {arguments[1]}" if arguments[0] in ("models", "cluster") else "")


def test_json_of_a_demo(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", "--size", "128", "--output", str(folder), "--workflow", "dapi", "--quiet", "--json"]) == 0
    result = outcome(capsys)["result"]
    assert [Path(name).exists() for name in result["files"]] == [True, True]
    assert result["counts"]["nucleus"]["kept"] > 3
    assert 0 < result["f1"]["nucleus"]["0.5"] <= 1


def test_warnings_are_listed(store, capsys):
    content = "DAPISegmentation:\n  chunk_size: 50\n  nucleus_segmentation: {threshold: 0.2}\n"
    (store.parent / "c.yaml").write_text(content)
    assert main(["plan", str(store), "--workflow", str(store.parent / "c.yaml"), "--json"]) == 0
    said = outcome(capsys)
    assert [w for w in said["warnings"] if "not used" in w and "chunk_size" in w]


# exit codes


def _broken(_):
    raise ZeroDivisionError("of all things")


def test_an_error_that_nobody_foresaw(store, monkeypatch, capsys):
    monkeypatch.setattr(_commands, "do_plan", _broken)
    assert main(["plan", str(store)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("spatialdata-segment: error: unexpected ZeroDivisionError: of all things")
    assert error.endswith("--debug for the traceback\n")
    assert "Traceback" not in error
    assert main(["plan", str(store), "--debug"]) == 1
    assert "_broken" in capsys.readouterr().err
    assert main(["plan", str(store), "--json"]) == 1
    assert outcome(capsys)["status"] == "crashed"


def test_interrupted(store, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_commands, "do_run", stop)
    assert main(["run", str(store)]) == 130
    assert "interrupted: the same command goes on from what is finished" in capsys.readouterr().err
    monkeypatch.setattr(_commands, "do_plan", stop)
    assert main(["plan", str(store), "--json"]) == 130
    assert outcome(capsys)["status"] == "interrupted"


def test_other_exits_pass(store, monkeypatch):
    monkeypatch.setattr(_commands, "do_plan", lambda _: sys.exit(7))
    with pytest.raises(SystemExit, match="7"):
        main(["plan", str(store)])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped(sent, code, tmp_path):
    script = (
        "import signal, sys, time\nfrom spatialdata_segment import _config_command, cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored, where a shell's & started the tests
        "def wait(args):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "_config_command.do_config = wait\nsys.exit(cli.main(['config', 'dapi']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.kill(process.pid, sent)
        _, error = process.communicate(timeout=50)
    assert process.returncode == code
    assert "Traceback" not in error
    assert "nothing half-written is left" in error


def test_signals_are_as_before(store):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["config", "dapi"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


# dry runs


@pytest.mark.parametrize("json_too", [False, True])
def test_a_dry_run_prints_the_plan_and_writes_nothing(store, json_too, capsys):
    before = tree(store.parent)
    options = ["--shard-size", "4000", "--n-jobs", "1", "--keep-maps", "--scratch", str(store.parent / "scratch")]
    assert main(["run", str(store), "--workflow", "wga", "--dry-run", *options, *["--json"] * json_too]) == 0
    said = capsys.readouterr()
    shown = said.err if json_too else said.out
    assert "nucleus: threshold-nuclei, 3 shards" in shown
    assert "dry run: nothing was run or written" in shown
    assert tree(store.parent) == before


def test_dry_runs_of_two_phases(store, tmp_path, capsys):
    maps, new = tmp_path / "maps", tmp_path / "new.zarr"
    predicting = ["predict", str(store), "--maps", str(maps), "--quiet"]
    assert main([*predicting, "--dry-run"]) == 0
    assert f"writes {maps}" in capsys.readouterr().out
    assert not maps.exists()
    assert main(predicting) == 0
    before = tree(tmp_path)
    assert main([*predicting, "--dry-run"]) == 0
    assert main([*predicting, "--dry-run", "--shard-size", "3000"]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert main([*predicting, "--dry-run", "--shard-size", "3000", "--overwrite"]) == 0
    for where in (["--output", str(new)], ["--store", str(store)]):
        assert main(["decode", str(maps), *where, "--dry-run", "--quiet"]) == 0
        assert "writes segmentation_nucleus_labels" in capsys.readouterr().out
    assert tree(tmp_path) == before
    assert (
        main(["decode", str(maps), "--store", str(store), "--dry-run", "--key-added", "", "--scratch", str(maps)]) == 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{store}", "--image", "no"], "no image 'no'"),
        (["run", "{store}", "--channels", "no"], "has no channel 'no'"),
        (["run", "{store}", "--overlap-px", "1"], "--overlap-px 1"),
        (["run", "{store}", "--scratch", "{file}"], "is a file"),
        (["run", "{store}", "--scratch", "{full}"], "is not empty"),
        (["predict", "{store}", "--maps", "{full}"], "is not empty"),
        (["predict", "{store}", "--maps", "{store}/maps"], "lies among the elements"),
        (["decode", "{full}", "--output", "new.zarr"], "no maps in"),
        (
            ["run", "{store}", "--cluster", "local", "--sbatch", "job.sh", "--cluster-config", "{config}"],
            "leave one out",
        ),
    ],
)
def test_dry_runs_find_what_is_wrong(arguments, message, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {n: tmp_path / n for n in ("file", "full", "config")} | {"store": store}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "config").write_text("cores: 1\nmemory: 2 GiB\n")
    before = tree(tmp_path)
    assert main([a.format(**names) for a in arguments] + ["--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_result_that_is_there_is_found(store, capsys):
    assert main(["run", str(store), "--quiet"]) == 0
    assert main(["run", str(store), "--dry-run"]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main(["run", str(store), "--dry-run", "--overwrite"]) == 0


def test_a_dry_run_for_a_cluster_starts_none(store, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("cores: 1\nmemory: 2 GiB\npredict: {gpus: 1}\n")
    arguments = ["--cluster", "slurm", "--cluster-config", str(tmp_path / "c.yaml"), "--dry-run"]
    assert main(["run", str(store), *arguments]) == 0
    assert "dry run" in capsys.readouterr().out


# help


@pytest.mark.parametrize("name", ["run", "predict", "decode", "resegment", "plan", "config"])
def test_help_pages(name, capsys):
    """Options under headings, in the words of the command line; examples that parse."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    out = capsys.readouterr().out
    assert f"usage: spatialdata-segment {name} " in out
    assert "exit codes: 0 done, 2 " in out
    if name != "config":
        assert "\nhow it runs:\n" in out
        assert "None:" not in out
        assert not re.search(r"(?<![{_\w])(roi_key|key_added|to_coordinate_system)\b", out)
    assert out.rindex("--debug") > out.rindex("-h, --help")
    examples = [line.split(">")[0] for line in out.splitlines() if line.startswith("  spatialdata-segment ")]
    assert examples
    for example in examples:
        assert cli._parser().parse_args(example.split()[1:]).command == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("give overwrite=True", "give --overwrite"),
        ("another key_added=, or", "another --key-added, or"),
        ("resume=False does it", "--no-resume does it"),
        ("shard_size=0, expected", "--shard-size 0, expected"),
        ("overlap_px=(1, 2): no", "--overlap-px 1,2: no"),
        ("devices='cpu'. Then", "--devices cpu. Then"),
        ("pixel_size=0.5.", "--pixel-size 0.5."),
        ("n_jobs={'decode': 2}", "--n-jobs decode=2"),
        ("bounding_box=[0, 0, 1.5, 2]", "--bounding-box 0,0,1.5,2"),
        ("no image_key=", "no --image"),
        # what no option says stays as it is
        ("overwrite=False, table=True", "overwrite=False, table=True"),
        ("pixel_size=None", "pixel_size=None"),
        ("Workflow(nucleus=...)", "Workflow(nucleus=...)"),
        ("'scale=2' and method.channels=3", "'scale=2' and method.channels=3"),
        ("the channels of a scale", "the channels of a scale"),
    ],
)
def test_parameters_are_told_as_options(text, expected):
    options = _parser().parse_args(["run", "a.zarr"]).spelled
    assert as_options(text, options) == expected


def test_errors_and_warnings_speak_of_options(store, monkeypatch, capsys):
    """On stderr and in JSON; a command of a command has its own options too."""
    arguments = ["run", str(store), "--quiet", "--json"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr()
    for text in (told.err, json.loads(told.out)["error"]["message"]):
        assert "exist already; choose another --key-added, or give --overwrite" in text

    def run(*_):
        warnings.warn("resume=False does it again", SegmentationWarning, stacklevel=2)

    monkeypatch.setattr("spatialdata_segment._commands.do_run", run)
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["warnings"] == ["--no-resume does it again"]
    assert "--no-resume does it again" in told.err
    assert set(_parser().parse_args(["models", "fetch", "nuclei"]).spelled) == {"help", "quiet", "json", "debug"}

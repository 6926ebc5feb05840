"""The command line: what the demo writes and prints, and errors without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from skimage.io import imread, imsave

from spatialdata_segment._demo import OVERLAY, STORE, demo_tissue, demo_workflow, read_picture
from spatialdata_segment.cli import main
from spatialdata_segment.errors import InputError

SIZE = 192


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One demo, and what it printed, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-c", "import sys; from spatialdata_segment.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "demo", "--size", str(SIZE), "--output", str(folder), "--quiet"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return folder, done


def test_demo_writes_a_store_that_opens(made):
    sdata = sd.read_zarr(made[0] / STORE)
    assert sdata["image"].shape == (2, SIZE, SIZE)
    assert sdata["segmentation_cell_labels"].shape == (SIZE, SIZE)
    table = sdata["segmentation_table"]
    assert len(table) > 10
    assert len(table) == len(sdata["segmentation_nucleus_boundaries"])


def test_demo_prints_counts_time_memory_score(made):
    out = made[1].stdout
    for text in ("192 x 192 px", "nucleus", "cell", "found", "kept", "s to segment", "peak memory", "F1", str(made[0])):
        assert text in out
    assert made[1].stderr == ""


def test_demo_finds_the_cells(made):
    from spatialdata_segment.testing import match_scores

    found = sd.read_zarr(made[0] / STORE)["segmentation_cell_labels"].data
    assert match_scores(demo_tissue(SIZE).cells(), found, (0.5,)).f1[0] > 0.8


def test_overlay_is_a_picture_with_both_outlines(made):
    picture = imread(made[0] / OVERLAY)[..., :3].astype(int)
    assert max(picture.shape) >= 1000
    for colour in ((255, 212, 0), (255, 79, 216)):
        assert (abs(picture - colour).sum(axis=-1) < 120).mean() > 0.003


def test_an_existing_folder_stays_without_overwrite(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["demo", "--size", str(SIZE), "--output", str(tmp_path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert str(tmp_path) in error
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["demo", "--size", str(SIZE), "--output", str(tmp_path), "--quiet", "--overwrite"]) == 0
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert {p.name for p in tmp_path.iterdir()} == {"mine.txt", STORE, OVERLAY}


def test_an_image_file_is_segmented_like_the_tissue_it_holds(tmp_path, capsys):
    pixels = demo_tissue(SIZE).image().compute()
    imsave(tmp_path / "a.tif", pixels[::-1], check_contrast=False)
    args = ["demo", "--image", str(tmp_path / "a.tif"), "--channel", "1", "--shard-size", "10000", "--n-jobs", "2"]
    assert main([*args, "--output", str(tmp_path / "out"), "--quiet"]) == 0
    assert "F1" not in capsys.readouterr().out
    from spatialdata_segment import segment

    expected = segment(demo_tissue(SIZE).to_spatialdata(), "image", demo_workflow(), progress=False)
    found = sd.read_zarr(tmp_path / "out" / STORE)
    np.testing.assert_array_equal(found["segmentation_cell_labels"].values, expected["segmentation_cell_labels"].values)


def test_a_workflow_by_name(tmp_path, capsys):
    args = ["demo", "--size", str(SIZE), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*args, "--workflow", "dapi"]) == 0
    out = capsys.readouterr().out
    assert "nucleus against the truth" in out
    assert "cell" not in out
    assert "segmentation_cell_labels" not in sd.read_zarr(tmp_path / "out" / STORE)
    assert (tmp_path / "out" / OVERLAY).is_file()


def test_a_network_by_name(tmp_path, capsys):
    pytest.importorskip("torch")
    from spatialdata_segment.testing import match_scores

    args = ["demo", "--size", str(SIZE), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*args, "--workflow", "nuclei-small"]) == 0
    assert "nucleus against the truth" in capsys.readouterr().out
    found = sd.read_zarr(tmp_path / "out" / STORE)["segmentation_nucleus_labels"].data
    assert match_scores(demo_tissue(SIZE).nuclei(), found, (0.5,)).f1[0] > 0.8


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("grey.png", (80, 90), (1, 80, 90)),
        ("colour.png", (80, 90, 3), (3, 80, 90)),
        ("alpha.png", (80, 90, 4), (3, 80, 90)),
        ("last.tif", (80, 90, 4), (4, 80, 90)),
        ("first.tif", (5, 80, 90), (5, 80, 90)),
        ("single.tif", (1, 1, 80, 90), (1, 80, 90)),
    ],
)
def test_axes_are_guessed(tmp_path, name, shape, expected):
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    imsave(tmp_path / name, pixels, check_contrast=False)
    assert read_picture(tmp_path / name).shape == expected


@pytest.mark.parametrize(("shape", "message"), [((20, 80, 90), "channels"), ((30, 90), "at least 64")])
def test_pictures_that_are_refused(tmp_path, shape, message):
    imsave(tmp_path / "a.tif", np.zeros(shape, np.uint8), check_contrast=False)
    with pytest.raises(InputError, match=message):
        read_picture(tmp_path / "a.tif")


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "text.tif").write_text("no image")
    imsave(tmp_path / "a.png", np.zeros((80, 90), np.uint8), check_contrast=False)
    output = tmp_path / "out"
    cases = {
        ("--image", "nowhere.tif"): "nowhere.tif",
        ("--image", str(tmp_path / "text.tif")): "cannot be read",
        ("--image", str(tmp_path / "a.png"), "--channel", "1"): "expected 0 to 0",
        ("--size", "8"): "at least 64",
        ("--workflow", "nuclei-smal"): "unknown workflow 'nuclei-smal' (did you mean 'nuclei-small'?)",
        ("--workflow", "wga"): "takes more than a nuclear stain (seeded-watershed, cell)",
        ("--workflow", "cytosol_only_cellpose"): "takes more than a nuclear stain (cellpose, cell)",
        ("--shard-size", "0", "--size", str(SIZE)): "--shard-size 0, expected",
        ("--channel", "2", "--size", str(SIZE)): "expected 0 to 1",
    }
    for args, message in cases.items():
        assert main(["demo", "--quiet", "--output", str(output), *args]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert not output.exists()
    assert main(["demo", "--output", str(tmp_path / "a.png"), "--size", str(SIZE)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["demo", "--debug", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "ExistsError" in error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["demo", "--size", str(SIZE), "--output", str(Path(tmp_path) / "out")]) == 2
    assert "Permission" in capsys.readouterr().err


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "models"))
    return tmp_path / "models"


def test_models_are_listed(models_folder, capsys):
    from spatialdata_segment.methods.cellpose.models import BUILT_IN

    models_folder.mkdir()
    (models_folder / "cyto3").write_bytes(bytes(2_500_000))
    (models_folder / "gui_models.txt").write_text("mine\n")
    assert main(["models", "list"]) == 0
    out, _, stardist = capsys.readouterr().out.partition("StarDist\n")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert all(f"\n{name} " in stardist for name in ("2D_versatile_fluo", "2D_versatile_he", "3D_demo"))
    assert lines["name"].split() == ["name", "generation", "there", "size", "description"]
    assert set(BUILT_IN) | {"mine"} < set(lines)
    assert lines["cyto3"].split()[1:5] == ["3", "yes", "2.5", "MB"]
    assert lines["cpsam_v2"].split()[1:4] == ["4", "no", "-"]
    assert lines["mine"].split()[1:3] == ["-", "no"]
    column = lines["name"].index("description")
    assert {name: lines[name][column:] for name in BUILT_IN} == {e.name: e.description for e in BUILT_IN.values()}
    assert str(models_folder) in out


def test_models_are_fetched(models_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pooch")
    from spatialdata_segment.methods.cellpose import models

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "remote").mkdir()
    for name, start in {"cyto3": b"PK\x03\x04", "size_cyto3.npy": b"\x93NUMPY", "CP": b"\x80"}.items():
        (tmp_path / "remote" / name).write_bytes(start + bytes(1000))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "remote")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(models, "CPNET_URL", f"http://127.0.0.1:{server.server_port}/")
    try:
        assert main(["models", "fetch", "cyto3", "CP", "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for name in ("cyto3", "size_cyto3.npy", "CP"):
            assert f"{models_folder / name} (0.0 MB)" in out
        assert "CC-BY-NC" in out
        assert main(["models", "fetch", "cyto", "--quiet"]) == 2
        assert "404" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()


def test_no_model_is_fetched_where_one_is_unknown(models_folder, capsys):
    assert main(["models", "fetch", "cyto3", "cyto33"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("spatialdata-segment: error: no model 'cyto33': did you mean 'cyto3'?")
    assert "Traceback" not in error
    assert not models_folder.exists()
    assert main(["models", "fetch", "cyto33", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["demo", "--size", "big"], ["segment"], ["models"], ["models", "fetch"]])
def test_wrong_arguments_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    out = capsys.readouterr().out
    for option in ("--size", "--image", "--workflow", "--output", "--shard-size", "--n-jobs", "--quiet", "--overwrite"):
        assert option in out

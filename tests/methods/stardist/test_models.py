"""Models in folders, and pretrained ones from a server of this machine."""

from __future__ import annotations

import json
import runpy
import zipfile
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import h5py
import numpy as np
import pytest

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.stardist import models
from spatialdata_segment.methods.stardist.description import describe, weights_of
from spatialdata_segment.methods.stardist.layers import layers_of
from spatialdata_segment.methods.stardist.weights import read_weights

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
NAME = "2D_demo"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve an archive of a model under the name of a pretrained one; count what is asked for."""
    folder, asked = write_model(tmp_path / "made"), []
    served = tmp_path / "served"
    served.mkdir()
    archive = served / f"python_{NAME}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in folder.iterdir():
            packed.write(path, path.name)
        packed.writestr("../outside.json", "{}")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    monkeypatch.setenv(models.FOLDER_VARIABLE, str(tmp_path / "keras"))
    entry = models.Pretrained(NAME, "for tests", sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(models.PRETRAINED, NAME, entry)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served))
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/", asked, archive
    http.shutdown()


def test_fetched_once(server, tmp_path):
    pytest.importorskip("pooch")
    url, asked, _ = server
    with pytest.raises(MissingError, match="fetch it on a machine with a connection"):
        models.find_folder(NAME)
    folder = models.fetch_model(NAME, base_url=url)
    assert models.fetch_model(NAME, base_url=url) == folder == models.find_folder(NAME)
    assert len(asked) == 1
    assert describe(folder).n_rays == 8
    assert not list(tmp_path.rglob("outside.json")) or (folder / "outside.json").exists()


def test_another_archive_is_refused(server):
    pytest.importorskip("pooch")
    url, _, archive = server
    archive.write_bytes(archive.read_bytes() + b"more")
    with pytest.raises(MissingError, match="sha256"):
        models.fetch_model(NAME, base_url=url)
    with pytest.raises(MissingError):
        models.find_folder(NAME)


def test_nothing_is_left_of_a_download_that_fails(server, tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    url, _, archive = server
    with pytest.raises(MissingError, match=r"cannot download http://127.0.0.1:9/python_2D_demo.zip.*copy the file to"):
        models.fetch_model(NAME, base_url="http://127.0.0.1:9/")
    full = archive.read_bytes()
    archive.write_bytes(b"<html>a page of a proxy</html>")
    with pytest.raises(MissingError, match="what came is no model"):
        models.fetch_model(NAME, base_url=url)
    archive.write_bytes(full)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed as it unpacks
        with pytest.raises(KeyboardInterrupt):
            models.fetch_model(NAME, base_url=url)
    with pytest.raises(MissingError):
        models.find_folder(NAME)
    left = [p.name for p in models.cache_folder().rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert left == [f"{NAME}.zip"]
    assert models.fetch_model(NAME, base_url=url) == models.find_folder(NAME)


def test_listed(server):
    pytest.importorskip("pooch")
    before = models.overview().splitlines()
    models.fetch_model(NAME, base_url=server[0])
    line = next(line for line in models.overview().splitlines() if line.startswith(NAME))
    assert line.split()[:3] == [NAME, "2D", "yes"]
    assert all(line.split()[2] == "no" for line in before[1:6])


def test_found_where_keras_leaves_it(server, tmp_path):
    for place in (NAME, f"{NAME}/{NAME}_extracted"):
        folder = models.cache_folder() / "StarDist2D" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        assert models.find_folder(NAME) == folder
        (folder / "config.json").unlink()


def test_the_best_weights_are_taken(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "weights_last.h5").write_bytes(b"later")
    assert weights_of(folder).name == "weights_best.h5"
    (folder / "weights_best.h5").unlink()
    assert weights_of(folder).name == "weights_last.h5"
    (folder / "weights_last.h5").unlink()
    with pytest.raises(MissingError, match="no weights"):
        weights_of(folder)


def changed(folder, change):
    with h5py.File(folder / "weights_best.h5", "r+") as file:
        change(file)
    return read_weights(folder / "weights_best.h5", layers_of(describe(folder)))


def test_layers_are_checked(tmp_path):
    def add(file):
        file.attrs["layer_names"] = np.append(np.array(file.attrs["layer_names"], "S"), b"attention_3")
        group = file.create_group("attention_3")
        group.attrs["weight_names"] = [b"w"]
        group["w"] = np.zeros(3)

    def drop(file):
        names = np.array(file.attrs["layer_names"], "S")
        file.attrs["layer_names"] = names[names != b"middle_0"]

    def resize(file):
        del file["dist/dist/bias:0"]
        file["dist/dist/bias:0"] = np.zeros(5)

    def spoil(file):
        file["prob/prob/bias:0"][...] = np.nan

    for k, (change, said) in enumerate(
        ((add, "'attention_3' is not known"), (drop, "no layer 'middle_0'"), (resize, "'dist' has"), (spoil, "NaN"))
    ):
        with pytest.raises(InputError, match=said):
            changed(write_model(tmp_path / str(k)), change)


def test_configurations_are_checked(tmp_path):
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"backbone": "transformer"}, "transformer"),
        ({"grid": [3, 3]}, "powers of two"),
        ({"n_rays": 1}, "n_rays"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=said):
            describe(folder)
    (folder / "config.json").write_text("no json")
    with pytest.raises(InputError, match="cannot be read"):
        describe(folder)

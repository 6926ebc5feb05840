"""Models by name: which there are, where they lie, and that they arrive whole, once, or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.cellpose import models
from spatialdata_segment.methods.cellpose.models import (
    BUILT_IN,
    cache_folder,
    check_name,
    ensure_model,
    fetch_model,
    find_model,
    own_models,
    size_beside,
)

WEIGHTS = b"PK\x03\x04" + bytes(range(256)) * 9000
SIZE = b"\x93NUMPY" + bytes(100)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, in a folder that is not there yet."""
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "new" / "models"))
    return tmp_path / "new" / "models"


@dataclass
class Server:
    """What a server gives, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    missing_bytes: int = 0
    chunked: bool = False
    asked: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server(files={"cyto3": WEIGHTS, "size_cyto3.npy": SIZE, "CP": WEIGHTS})
    state.ready.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            name = self.path.removeprefix("/models/")
            state.asked.append(name)
            state.ready.wait(30)
            self.close_connection = True
            if name not in state.files:
                self.send_error(404)
                return
            body = state.files[name]
            self.send_response(200)
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body[: len(body) - state.missing_bytes]
            if state.chunked:
                self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n0\r\n\r\n")
            else:
                self.wfile.write(sent)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/models/"
    monkeypatch.setattr(models, "CPNET_URL", state.url)
    monkeypatch.setattr(models, "CELLPOSE4_URL", state.url)
    yield state
    http.shutdown()
    http.server_close()


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_names_of_cellpose():
    expected = {
        "cyto3": ("cyto3", "size_cyto3.npy", 30, 3),
        "nuclei": ("nucleitorch_0", "size_nucleitorch_0.npy", 17, 1),
        "cyto2": ("cyto2torch_0", "size_cyto2torch_0.npy", 30, 1),
        "cyto": ("cytotorch_0", "size_cytotorch_0.npy", 30, 1),
        "tissuenet_cp3": ("tissuenet_cp3", None, 30, 3),
        "LC4": ("LC4", None, 30, 2),
        "cpsam_v2": ("cpsam_v2", None, 30, 4),
        "cpdino-vitb": ("cpdino-vitb", None, 30, 4),
    }
    for name, facts in expected.items():
        entry = BUILT_IN[name]
        assert (entry.file, entry.size_file, entry.diam_mean, entry.generation) == facts
        assert entry.description
        assert "https://" in entry.terms
    assert BUILT_IN["cyto"].url == "https://www.cellpose.org/models/cytotorch_0"
    assert BUILT_IN["cyto"].size_url == "https://www.cellpose.org/models/size_cytotorch_0.npy"
    assert BUILT_IN["CP"].size_url is None
    assert BUILT_IN["cpsam"].url == "https://huggingface.co/mouseland/cellpose-sam/resolve/main/cpsam"
    assert BUILT_IN["nuclei-small"].url is None
    assert BUILT_IN["nuclei-small"].size_url is None


def test_nothing_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from spatialdata_segment.methods.cellpose.models import overview, own_models\n"
        "print(overview()); assert 'pooch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cpsam_v2" in done.stdout


def test_the_folder_is_read_when_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("CELLPOSE_LOCAL_MODELS_PATH")
        else:
            monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", value)
        assert cache_folder() == tmp_path / "home" / ".cellpose" / "models"


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n != "nuclei-small"])
def test_found_where_cellpose_puts_it(folder, name):
    entry = BUILT_IN[name]
    with pytest.raises(MissingError) as raised:
        find_model(name)
    assert f"spatialdata-segment models fetch {name}`" in str(raised.value)
    assert str(folder) in str(raised.value)
    folder.mkdir(parents=True)
    (folder / entry.file).write_bytes(WEIGHTS)
    assert find_model(name) == models.ModelFiles(name, folder / entry.file, None)
    if entry.size_file is not None:
        (folder / entry.size_file).write_bytes(SIZE)
        assert find_model(name).size == folder / entry.size_file


def test_the_shipped_model_is_in_the_package(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_SHIPPED", tmp_path)
    for call in (find_model, fetch_model, ensure_model):
        with pytest.raises(MissingError, match="install spatialdata-segment again"):
            call("nuclei-small")
    (tmp_path / "nuclei-small").mkdir()
    for file in ("weights", "size.npz"):
        (tmp_path / "nuclei-small" / file).write_bytes(b"PK")
    for call in (find_model, fetch_model, ensure_model):
        files = call("nuclei-small")
        assert files.weights == tmp_path / "nuclei-small" / "weights"
        assert files.size == tmp_path / "nuclei-small" / "size.npz"
    assert not folder.exists()


@pytest.mark.parametrize("call", [check_name, find_model, fetch_model, ensure_model])
def test_unknown_names(folder, call):
    with pytest.raises(
        MissingError, match=r"no model 'cyto33': did you mean 'cyto3'\? known are nuclei-small, cyto3, "
    ):
        call("cyto33")
    for name in ("", "..", "../cyto3", "weights of a collaborator"):
        with pytest.raises(MissingError, match="known are"):
            call(name)
    with pytest.raises(MissingError, match="'transformer_cp3' is a transformer"):
        call("transformer_cp3")
    assert not folder.exists()


def test_models_of_the_user(folder):
    folder.mkdir(parents=True)
    (folder / "gui_models.txt").write_text("mine\n\n  gone \n../outside\ncyto3\nmine\n")
    (folder.parent / "outside").write_bytes(WEIGHTS)
    (folder / "mine").write_bytes(WEIGHTS)
    assert own_models() == ("mine", "gone")
    assert size_beside(folder / "mine") is None
    for call in (find_model, fetch_model, ensure_model):
        assert call("mine") == models.ModelFiles("mine", folder / "mine", None)
        with pytest.raises(MissingError, match=r"gui_models\.txt lists it and the file is gone"):
            call("gone")
        with pytest.raises(MissingError, match="known are"):
            call("../outside")
    (folder / "mine_size.npy").write_bytes(SIZE)
    assert find_model("mine").size == folder / "mine_size.npy"
    assert find_model("mine").size == size_beside(folder / "mine")
    with pytest.raises(MissingError, match="did you mean 'mine'"):
        find_model("mime")
    (folder / "unlisted").write_bytes(WEIGHTS)
    with pytest.raises(MissingError, match="pass its path"):
        find_model("unlisted")


def test_fetched_once(folder, server):
    files = fetch_model("cyto3")
    assert files == models.ModelFiles("cyto3", folder / "cyto3", folder / "size_cyto3.npy")
    assert files.weights.read_bytes() == WEIGHTS
    assert files.size.read_bytes() == SIZE
    assert names_in(folder) == ["cyto3", "size_cyto3.npy"]
    assert fetch_model("cyto3") == ensure_model("cyto3", size=True) == find_model("cyto3") == files
    assert server.asked == ["cyto3", "size_cyto3.npy"]


def test_only_what_is_missing_is_fetched(folder, server):
    folder.mkdir(parents=True)
    (folder / "cyto3").write_bytes(b"mine")
    assert ensure_model("cyto3").size is None
    assert server.asked == []
    assert ensure_model("cyto3", size=True).size == folder / "size_cyto3.npy"
    assert (folder / "cyto3").read_bytes() == b"mine"
    assert server.asked == ["size_cyto3.npy"]
    assert ensure_model("CP", size=True).size is None


def test_from_a_mirror(folder, server, monkeypatch):
    monkeypatch.setattr(models, "CPNET_URL", "http://127.0.0.1:1/")
    assert fetch_model("CP", base_url=server.url.rstrip("/")).weights.read_bytes() == WEIGHTS


def test_progress_goes_to_stderr(folder, server, capfd):
    fetch_model("CP", progress=True)
    out, err = capfd.readouterr()
    assert "B/s" in err
    assert out == ""


def test_without_a_promised_length(folder, server):
    server.chunked = True
    assert fetch_model("CP").weights.read_bytes() == WEIGHTS


def assert_refused(folder, name, *texts):
    with pytest.raises(MissingError) as raised:
        ensure_model(name)
    message = str(raised.value)
    for text in (*texts, str(folder), f"spatialdata-segment models fetch {name}`", "copy the file to"):
        assert text in message
    assert names_in(folder) == []


def test_not_on_the_server(folder, server):
    assert_refused(folder, "cyto2", "404", f"{server.url}cyto2torch_0")


def test_cut_off(folder, server):
    server.missing_bytes = 1000
    assert_refused(folder, "CP", server.url)
    server.missing_bytes = 0
    assert ensure_model("CP").weights.read_bytes() == WEIGHTS


def test_cut_off_and_nobody_noticed(folder, server, monkeypatch):
    """Older versions of urllib3 take a body for whole that is shorter than promised."""
    import pooch

    class Careless:
        def __init__(self, *, hooks, **options):
            self.note = hooks["response"]

        def __call__(self, url, file, _):
            import requests

            response = requests.get(url, timeout=30)
            self.note(response)
            file.write(response.content[:-1])

    monkeypatch.setattr(pooch, "HTTPDownloader", Careless)
    assert_refused(folder, "CP", f"{len(WEIGHTS) - 1:,} bytes came of {len(WEIGHTS):,}")


@pytest.mark.parametrize("body", [b"", b"<html>Please log in</html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_something_else(folder, server, body):
    server.files["CP"] = body
    assert_refused(folder, "CP", "no model")


def test_offline(folder, server, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(models, "CPNET_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        assert_refused(folder, "CP", models.CPNET_URL)


def test_without_pooch(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingError, match=r"pip install 'spatialdata-segment\[cellpose\]'"):
        fetch_model("CP")
    assert names_in(folder) == []


def test_a_folder_that_cannot_be_written(tmp_path, server, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "file" / "models"))
    with pytest.raises(InputError, match="Set CELLPOSE_LOCAL_MODELS_PATH to a folder that can be written"):
        fetch_model("CP")


def test_old_remains_of_killed_downloads_are_removed(folder, server):
    folder.mkdir(parents=True)
    for name, age in {".CP.old.part": 10**6, ".CP.new.part": 60, ".CPx.old.part": 10**6}.items():
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (time.time() - age,) * 2)
    fetch_model("CP")
    assert names_in(folder) == [".CP.new.part", ".CPx.old.part", "CP"]


def test_threads_download_once(folder, server):
    server.ready.clear()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(fetch_model, "cyto3") for _ in range(4)]
        time.sleep(0.2)
        server.ready.set()
        assert len({f.result() for f in found}) == 1
    assert server.asked == ["cyto3", "size_cyto3.npy"]
    assert names_in(folder) == ["cyto3", "size_cyto3.npy"]


@pytest.mark.skipif(os.name != "posix", reason="advisory locks are POSIX's")
def test_processes_download_once(folder, server, tmp_path):
    server.ready.clear()
    code = (
        "import sys, pathlib\n"
        "from spatialdata_segment.methods.cellpose.models import fetch_model\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "print(fetch_model('cyto3', base_url=sys.argv[1]).weights)"
    )
    started = [tmp_path / f"started-{k}" for k in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-c", code, server.url, str(mark)], stdout=subprocess.PIPE, text=True)
        for mark in started
    ]
    until = time.time() + 60
    while not all(mark.exists() for mark in started) and time.time() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    server.ready.set()
    out = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert out == [f"{folder / 'cyto3'}\n"] * 2
    assert server.asked == ["cyto3", "size_cyto3.npy"]
    assert (folder / "cyto3").read_bytes() == WEIGHTS
    assert names_in(folder) == ["cyto3", "size_cyto3.npy"]


@pytest.mark.skipif(os.name != "posix", reason="advisory locks are POSIX's")
def test_the_next_goes_on_where_one_was_killed(folder, server):
    server.ready.clear()
    code = "import sys; from spatialdata_segment.methods.cellpose.models import fetch_model as f\n"
    code += "f('CP', base_url=sys.argv[1])"
    first = subprocess.Popen([sys.executable, "-c", code, server.url])
    until = time.time() + 60
    while not server.asked and time.time() < until:
        time.sleep(0.02)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(fetch_model, "CP")
        time.sleep(0.1)
        assert not second.done()
        first.kill()
        first.wait()
        server.ready.set()
        assert second.result().weights.read_bytes() == WEIGHTS

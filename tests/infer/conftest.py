"""Images in files, and a small network that a local server gives for ``cyto3``."""

from __future__ import annotations

import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.methods.cellpose import models
from spatialdata_segment.testing import Tissue

RECIPES = Path(__file__).parents[1] / "parity/cellpose3/networks.py"
SHAPE = 90, 110


@pytest.fixture(scope="session")
def tissue():
    """(c, y, x) of DAPI and WGA."""
    return Tissue(SHAPE, seed=3, cell_diameter=20, density=0.8).block(Box.whole(SHAPE)).image


@pytest.fixture
def image(tissue, tmp_path):
    """A TIFF with a membrane and a nuclear stain, in this order."""
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, tissue[::-1], tile=(32, 32), photometric="minisblack", compression="zlib")
    return path


@pytest.fixture
def folder(tissue, tmp_path):
    """Three pictures of a nuclear stain, and a file that is none."""
    path = tmp_path / "planes"
    path.mkdir()
    for k in (1, 2, 10):
        Image.fromarray(np.roll(tissue[0], k, axis=0)).save(path / f"plane{k}.png")
    (path / "notes.txt").write_text("mine")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A network of two channels that finds bright spots of some 8 px, and its size model, as files."""
    torch = pytest.importorskip("torch")
    from spatialdata_segment.methods.cellpose.network import CPnet

    recipes = runpy.run_path(str(RECIPES))
    net = CPnet(recipes["CELL_NBASE"], nout=3, size=recipes["CELL_SIZE"], diameter=30.0)
    state = net.state_dict()
    made = recipes["cell_weights"]({n: tuple(v.shape) for n, v in state.items()})
    state |= {n: torch.from_numpy(v).to(state[n].dtype) for n, v in made.items()}
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "mine")
    n = recipes["CELL_NBASE"][-1]
    np.save(
        folder / "mine_size.npy",
        {"A": np.zeros(n), "smean": np.zeros(n, np.float32), "diam_mean": 30.0, "ymean": np.float32(0.1)},
    )
    return folder / "mine", folder / "mine_size.npy"


@pytest.fixture
def server(weights, tmp_path, monkeypatch):
    """A server that gives these files as cyto3 and its size model; returns the names it was asked for."""
    pytest.importorskip("pooch")
    files = {"cyto3": weights[0].read_bytes(), "size_cyto3.npy": weights[1].read_bytes()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append(name)
            if name not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(models.FOLDER_VARIABLE, str(tmp_path / "models"))
    for name in ("CPNET_URL", "CELLPOSE4_URL"):
        monkeypatch.setattr(models, name, f"http://127.0.0.1:{http.server_port}/")
    yield asked
    http.shutdown()
    http.server_close()

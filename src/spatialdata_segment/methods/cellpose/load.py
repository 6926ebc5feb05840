"""Networks from their files, on a device: of Cellpose 1 to 3 our own, of Cellpose 4 that of its package."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from spatialdata_segment.errors import MissingError, require
from spatialdata_segment.methods.cellpose.run import Network
from spatialdata_segment.methods.cellpose.weights import load_cpnet

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata_segment.methods.cellpose.weights import Description

_loaded: dict[tuple[object, ...], Network] = {}
_loading = threading.Lock()


def load_network(
    path: Path, said: Description, device: str, *, precision: str | None = None, batch_size: int | None = None
) -> Network:
    """Load a network once a process.

    Parameters
    ----------
    path, said
        The file, and what it holds.
    device
        "cpu", "cuda:0", "mps".
    precision
        "float32", "float16" or "bfloat16"; None: "float16" on CUDA, else "float32".
    batch_size
        Tiles that run at once; None: 1 on a CPU, 64 on a GPU.
    """
    kind = device.partition(":")[0]
    dtype = getattr(torch, precision or ("float16" if kind == "cuda" else "float32"))
    size = batch_size or (1 if kind == "cpu" else 64)
    key = (said.sha256, device, dtype, size)
    with _loading:
        if key not in _loaded:
            net = load_cpnet(path) if said.generation == "cpnet" else _vision(path, said, dtype)
            net = net.to(device, dtype).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = None if said.nbase is None else said.nbase[0]
            _loaded[key] = Network(net, said.generation, torch.device(device), dtype, inputs, size)
        return _loaded[key]


def _vision(path: Path, said: Description, dtype: torch.dtype) -> torch.nn.Module:
    """Load a network of Cellpose 4, by its package."""
    vit = require("cellpose.vit", "cellpose4")
    name = "CPSAM" if said.generation == "cpsam" else "CPDINO"
    if not hasattr(vit, name):
        raise MissingError(
            f"the cellpose package has no {name}: it needs dinov3 for {path.name}, see its documentation"
        )
    arguments = {} if name == "CPSAM" else {"model_name": "vitl" if said.size == 1024 else "vitb"}
    net: torch.nn.Module = getattr(vit, name)(dtype=dtype, **arguments)
    net.load_model(str(path), device=torch.device("cpu"))  # type: ignore[operator]
    return net

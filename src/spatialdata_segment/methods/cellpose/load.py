"""Networks from their files, on a device: of Cellpose 1 to 3 our own, of Cellpose 4 that of its package."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import threading
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.cellpose.run import Network
from spatialdata_segment.methods.cellpose.weights import DIAMETER, load_cpnet, read_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from spatialdata_segment.methods.cellpose.weights import Description

_BATCH = {"cpnet": 64, "cpsam": 8, "cpdino": 8}
"""Tiles at once on a GPU. A vision transformer takes 270 MB a tile in float32."""
_VITS = {1024: "vitl", 768: "vitb"}
_INSTALL = "pip install 'spatialdata-segment[cellpose4]'"
_DINOV3 = "pip install git+https://github.com/facebookresearch/dinov3"

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
        "float32", "float16" or "bfloat16"; None: on CUDA "float16", of Cellpose 4 "bfloat16", else "float32".
    batch_size
        Tiles that run at once; None: 1 on a CPU, on a GPU 64, of Cellpose 4 8.

    Raises
    ------
    MissingError
        If the file is not there, or code that a network of Cellpose 4 needs.
    InputError
        If the file does not fit its network.
    """
    kind = device.partition(":")[0]
    dtype: torch.dtype = getattr(torch, precision or usual_precision(said.generation, kind))
    size = batch_size or (1 if kind == "cpu" else _BATCH[said.generation])
    key = (said.sha256, device, dtype, size)
    with _loading:
        if key not in _loaded:
            net = _convolutions(path) if said.generation == "cpnet" else _vision(path, said, device, dtype)
            inputs = None if said.nbase is None else said.nbase[0]
            net = net.to(device, dtype).eval()
            _loaded[key] = Network(net, said.generation, torch.device(device), dtype, inputs, size)
        return _loaded[key]


def usual_precision(generation: str, kind: str) -> str:
    """Return the precision that is taken on a kind of device where none is given.

    Cellpose 4 takes bfloat16 everywhere: float16 has a range that activations of a vision transformer may leave. On the
    CPU either saves no time.
    """
    if kind != "cuda":
        return "float32"
    return "float16" if generation == "cpnet" else "bfloat16"


def _convolutions(path: Path) -> torch.nn.Module:
    return load_cpnet(path).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _vision(path: Path, said: Description, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load a network of Cellpose 4: its weights are in memory once, on the device, in the precision that is asked for.

    They are copied, since who trains a model writes over its file.
    """
    vit = import_vision(path, said.generation)
    diameter = torch.tensor([DIAMETER])
    state = {"diam_mean": diameter, "diam_labels": diameter} | read_state(path, mapped=True)
    with torch.device("meta"):
        if said.generation == "cpsam":
            net: torch.nn.Module = vit.CPSAM()
        else:
            net = vit.CPDINO(_VITS[state["encoder.patch_embed.proj.weight"].shape[0]])
    _fit(path, net, {n: v.to(device, dtype if v.is_floating_point() else v.dtype, copy=True) for n, v in state.items()})
    return net.requires_grad_(False)


def _fit(path: Path, net: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Fill a network; what a file holds besides is left out, as in Cellpose."""
    try:
        missing = net.load_state_dict(state, strict=False, assign=True).missing_keys
    except RuntimeError as error:  # shapes differ
        said = " ".join(str(error).split())
        raise InputError(f"{path} does not fit its network, {type(net).__name__} of cellpose: {said}") from error
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} of the tensors of its network, {type(net).__name__} of cellpose, such as "
            f"{missing[0]}: expected the whole state dict, as cellpose saves it"
        )


def import_vision(path: Path, generation: str) -> ModuleType:
    """Import the networks of Cellpose 4, and what those of one generation stand on.

    Raises
    ------
    MissingError
        If something is not installed, or does not work: says what to install.
    """
    try:
        vit = import_module("cellpose.vit")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # torchvision raises any of them
        raise MissingError(
            f"{path.name} is a network of Cellpose 4, with code of its package. {_why(error)}"
        ) from error
    if generation == "cpdino":
        try:
            import_module("dinov3.hub.backbones")
        except ImportError as error:
            raise MissingError(
                f"{path.name} is a network on DINOv3, whose code cannot be imported ({error}): {_DINOV3} (see its "
                "licence), and start Python again; or take 'cpsam_v2', which does without"
            ) from error
    return vit


def _why(error: Exception) -> str:
    """Tell why cellpose cannot be imported, and what to do."""
    lacks = error.name if isinstance(error, ModuleNotFoundError) else None
    if lacks == "cellpose":
        return f"It is not installed: {_INSTALL}"
    if lacks == "cellpose.vit":
        return f"cellpose {_version('cellpose')} is installed, expected 4.2 or later: {_INSTALL} --upgrade"
    if "torchvision" in str(error) and lacks is None:
        return (
            f"torchvision {_version('torchvision')} does not work with torch {_version('torch')} ({error}): install "
            "both from one place, as pytorch.org/get-started says it for your machine"
        )
    return f"It cannot be imported ({error}): {_INSTALL}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of no known version"

"""The weights of Cellpose models, read and checked. Nothing in a file is executed.

Where files come from is left to `models`, what networks do to `network`, size models to `size`; their names are
here as well.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spatialdata_segment.errors import InputError, require
from spatialdata_segment.methods.cellpose.models import FETCH_AGAIN, check_file
from spatialdata_segment.methods.cellpose.size import SizeModel, read_size_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from spatialdata_segment.methods.cellpose.network import CPnet

__all__ = ["Description", "SizeModel", "describe", "load_cpnet", "read_size_model", "read_state"]

DIAMETER = 30.0
"""px; what Cellpose takes where a file does not say."""
_DIAMETERS = "diam_mean", "diam_labels"
_DAMAGED = f"{{}} is damaged, cut off, or no file of torch; {FETCH_AGAIN}"
_HOLDS_MORE = (
    "{} holds more than tensors and is not loaded, since that could run any code: save the network's state_dict() "
    "with torch.save"
)
_REFUSED = "unsupported global", "unsupported class"
"""What torch says of a pickle that names anything else than tensors."""
_WIDTHS = {1024: "large", 768: "base"}
"""Features of the vision transformers on which ``cpdino`` models are built."""


@dataclass(frozen=True)
class Description:
    """What a file of weights says of its network.

    Attributes
    ----------
    generation
        ``"cpnet"``: Cellpose 1 to 3; ``"cpsam"``, ``"cpdino"``: Cellpose 4.
    nbase
        Channels of a CPnet's input, then of its levels; None for the others.
    nout
        Channels of the output: 3 in networks that segment.
    size
        Side of a CPnet's convolutions, px; None for the others.
    diam_mean
        px, of the cells to which training images were rescaled.
    diam_labels
        px, mean of the cells in the training images.
    sha256
        Of the file.
    """

    generation: Literal["cpnet", "cpsam", "cpdino"]
    nbase: tuple[int, ...] | None
    nout: int
    size: int | None
    diam_mean: float
    diam_labels: float
    sha256: str


def read_state(path: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """Read a state dict, ``module.`` prefixes stripped.

    Parameters
    ----------
    path
        Of the weights.
    mapped
        Leave the numbers in the file until they are used, which then must not change. Else they are in memory.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged, or holds anything else than named tensors.
    """
    return _named(path, _load(path, mapped=mapped))


def describe(path: Path, *, diameter: float = DIAMETER) -> Description:
    """Tell what network a file holds; every key and shape, and every number, is checked.

    What was told once is remembered until the file changes.

    Parameters
    ----------
    path
        Of the weights.
    diameter
        px; ``diam_mean`` where the file does not say, as those of Cellpose 1.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged, or no network of Cellpose.
    """
    path = Path(path).absolute()
    check_file(path)
    stat = path.stat()
    return _describe(path, diameter, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _describe(path: Path, diameter: float, mtime_ns: int, size: int) -> Description:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state = _named(path, _load(path, mapped=True))
    if "W2" in state:
        return _vision(path, state, diameter, sha256)
    net, checked = _checked(path, state, diameter)
    mean, labels = (float(checked[name]) for name in _DIAMETERS)
    return Description("cpnet", net["nbase"], net["nout"], net["size"], mean, labels, sha256)


def load_cpnet(path: Path, *, diameter: float = DIAMETER) -> CPnet:
    """Load a network of Cellpose 1 to 3, in float32, on the CPU, for prediction.

    Parameters
    ----------
    path
        Of the weights.
    diameter
        px; ``diam_mean`` where the file does not say.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged, or no such network.
    """
    state = read_state(path)
    if "W2" in state:
        raise InputError(f"{path} holds a network of Cellpose 4: expected one of Cellpose 1 to 3, such as 'cyto3'")
    arguments, checked = _checked(path, state, diameter)
    net = _on_meta(arguments)
    net.load_state_dict(checked, assign=True)
    return net.requires_grad_(False).eval()


def _load(path: Path, *, mapped: bool) -> object:
    """Read what torch saved, with its reader that executes nothing; ``mapped``: read pages when they are used."""
    path = Path(path)
    check_file(path)
    require("torch", "cellpose")
    import torch

    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except (InputError, PermissionError, MemoryError):
        raise
    except Exception as error:  # torch and pickle raise whatever broken bytes lead them to
        sound = zipped and isinstance(error, pickle.UnpicklingError)
        if sound or any(text in str(error).lower() for text in _REFUSED):
            raise InputError(_HOLDS_MORE.format(path)) from error
        raise InputError(_DAMAGED.format(path)) from error


def _check_archive(path: Path) -> None:
    """Check what torch does not: the checksums, and that the archive is no program."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
        if wrong is not None:
            raise InputError(f"{_DAMAGED.format(path)}: the checksum of {wrong} in it is wrong")
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(_HOLDS_MORE.format(path))


def _named(path: Path, found: object) -> dict[str, torch.Tensor]:
    """Check that tensors with names were read."""
    import torch

    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}: expected a state dict, names and tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path} holds a {type(value).__name__} under {name!r}: expected a state dict, names and tensors only"
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise InputError(
                f"{path}: tensor {name} is sparse, quantised, complex or empty of numbers: expected a plain one"
            )
    prefixed = bool(found) and all(name.startswith("module.") for name in found)
    return {name.removeprefix("module.") if prefixed else name: value for name, value in found.items()}


def _checked(
    path: Path, state: dict[str, torch.Tensor], diameter: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the arguments of a CPnet and a state that fits it, in float32."""
    import torch

    from spatialdata_segment.methods.cellpose.network import architecture

    try:
        arguments = architecture(state)
        if min(*arguments["nbase"], arguments["nout"]) < 1 or arguments["size"] % 2 == 0:
            raise ValueError(f"no such network: {arguments}")
        expected = _on_meta(arguments).state_dict()
    except (LookupError, ValueError, RuntimeError) as error:
        raise InputError(_none(path, state, f"reading its sizes failed with {error!r}")) from error
    mean, labels = _diameters(path, state, diameter)
    full = {n: torch.zeros((), dtype=torch.int64) for n in expected if n.endswith(".num_batches_tracked")}
    full |= state | {"diam_mean": torch.tensor([mean]), "diam_labels": torch.tensor([labels])}
    _compare(path, full, expected)
    counts = {n for n, value in expected.items() if not value.is_floating_point()}
    full = {n: value if n in counts else value.float().contiguous() for n, value in full.items()}
    _check_finite(path, full)
    return arguments, full


def _on_meta(arguments: Mapping[str, Any]) -> CPnet:
    """Return a network of which only names and shapes exist."""
    import torch

    from spatialdata_segment.methods.cellpose.network import CPnet

    with torch.device("meta"):
        return CPnet(**arguments)


def _compare(path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise where keys, shapes or kinds differ from those of the network."""
    wrong = {
        "missing": [n for n in expected if n not in found],
        "unexpected": [n for n in found if n not in expected],
        "misshaped": [
            f"{n} {tuple(found[n].shape)} instead of {tuple(value.shape)}"
            for n, value in expected.items()
            if n in found and found[n].shape != value.shape
        ],
        "not of the expected kind": [
            f"{n} {found[n].dtype}"
            for n, value in expected.items()
            if n in found and found[n].is_floating_point() != value.is_floating_point()
        ],
    }
    if any(wrong.values()):
        text = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in wrong.items() if names)
        raise InputError(f"{path} holds no network of Cellpose 1 to 3 as it is expected. Tensors {text}")


def _check_finite(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    import torch

    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise InputError(f"{path}: tensor {name} holds NaN or infinite values; the file is spoilt, {FETCH_AGAIN}")


def _diameters(path: Path, state: Mapping[str, torch.Tensor], diameter: float) -> tuple[float, float]:
    """Return mean diameters, of the rescaled and of the original training images; px."""
    found: list[float] = []
    for name in _DIAMETERS:
        value = state.get(name)
        if value is not None and value.numel() != 1:
            raise InputError(f"{path}: {name} has shape {tuple(value.shape)}: expected one number")
        found.append((found or [diameter])[0] if value is None else float(value))
        if not (math.isfinite(found[-1]) and found[-1] > 0):
            raise InputError(f"{path}: {name} is {found[-1]}: expected a positive diameter in px")
    return found[0], found[1]


def _vision(path: Path, state: Mapping[str, torch.Tensor], diameter: float, sha256: str) -> Description:
    """Tell a network of Cellpose 4 by its keys."""
    readout, patches = state["W2"], state.get("encoder.patch_embed.proj.weight")
    if patches is None or patches.ndim != 4 or readout.ndim != 4 or "out.weight" not in state:
        raise InputError(_none(path, state, "neither those of Cellpose 4 nor of a CPnet"))
    dino = "encoder.cls_token" in state
    if dino and patches.shape[0] not in _WIDTHS:
        sizes = " or ".join(f"{width} ({name})" for width, name in _WIDTHS.items())
        raise InputError(f"{path} is on DINOv3 with {patches.shape[0]} features: expected {sizes}")
    _check_finite(path, state)
    mean, labels = _diameters(path, state, diameter)
    generation: Literal["cpsam", "cpdino"] = "cpdino" if dino else "cpsam"
    return Description(generation, None, int(readout.shape[1]), None, mean, labels, sha256)


def _none(path: Path, state: Mapping[str, torch.Tensor], why: str) -> str:
    return (
        f"{path} holds no network of Cellpose: its tensors are {_some(state)} ({why}). Expected the weights of "
        "Cellpose's own models, or of a model trained with Cellpose"
    )


def _some(names: Iterable[str], most: int = 3) -> str:
    """List the first names."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") if names else "none"

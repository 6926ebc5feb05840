"""The weights of a StarDist model from a file of Keras: every layer by its name, every shape checked. Without torch.

Two layouts are known: that of Keras' ``save_weights`` up to version 2, which StarDist keeps (``layer_names``), and that
of Keras 3 (``*.weights.h5``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError, MissingError, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.methods.stardist.layers import Layer

    Held = dict[str, list[NDArray[Any]]]

_AUTO = re.compile(r"(conv[23]d|batch_normalization)(?:_(\d+))?$")
"""Names that Keras gives."""
_AGAIN = "copy it again, or take the weights that belong to the config.json beside them"


def read_weights(path: Path, layers: Sequence[Layer]) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Read the weights of some layers.

    Parameters
    ----------
    path
        HDF5.
    layers
        All that have weights, in the order in which Keras made them.

    Returns
    -------
    By the layers' keys, the weights by their Keras names.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is no such file, or if a layer is missing, has another shape, or is not known.
    """
    if not path.is_file():
        raise MissingError(f"no file {path}: expected the weights of a StarDist model")
    held = _read(path)
    named = {layer.name for layer in layers}
    automatic: dict[str, list[str]] = {"conv": [], "batch_normalization": []}
    for name in sorted(set(held) - named, key=_number):
        found = _AUTO.match(name)
        if found is None:
            raise InputError(f"{path}: layer {name!r} is not known; expected {_some(named)}: {_AGAIN}")
        automatic["conv" if found[1].startswith("conv") else found[1]].append(name)
    for kind, names in automatic.items():
        wanted = sum(layer.kind == kind and layer.name is None for layer in layers)
        if len(names) != wanted:
            raise InputError(
                f"{path} has {len(names)} layers of the kind {kind} without a name of StarDist ({_some(names)}), and "
                f"config.json makes {wanted}: {_AGAIN}"
            )
    made: dict[str, dict[str, NDArray[np.float32]]] = {}
    for layer in layers:
        name = layer.name if layer.name is not None else automatic[layer.kind].pop(0)
        made[layer.key] = _checked(path, layer, name, held)
    return made


def _number(name: str) -> int:
    found = _AUTO.match(name)
    return int(found[2] or 0) if found else -1


def _some(names: Iterable[str | None]) -> str:
    known = sorted(n for n in names if n is not None)
    return ", ".join(known[:4]) + (", ..." if len(known) > 4 else "") if known else "none"


def _checked(path: Path, layer: Layer, name: str, held: Held) -> dict[str, NDArray[np.float32]]:
    if name not in held:
        raise InputError(f"{path} has no layer {name!r}, which config.json makes: {_AGAIN}")
    found = [tuple(array.shape) for array in held[name]]
    if found != list(layer.shapes.values()):
        raise InputError(
            f"{path}: layer {name!r} has weights of shapes {found}, and config.json makes "
            f"{list(layer.shapes.values())}: {_AGAIN}"
        )
    for array in held[name]:
        if array.dtype.kind not in "fiu":
            raise InputError(f"{path}: layer {name!r} holds weights of dtype {array.dtype}, expected numbers: {_AGAIN}")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: layer {name!r} holds NaN or infinite weights; the file is spoilt: {_AGAIN}")
    return {n: np.asarray(a, np.float32) for n, a in zip(layer.shapes, held[name], strict=True)}


def _read(path: Path) -> Held:
    """Return what each layer holds, by its name in the network."""
    h5py = require("h5py", "stardist")
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" in root.attrs:
                return _legacy(root)
            if "layers" in root:
                return _keras3(root["layers"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # of a file that is none
        raise InputError(f"{path} cannot be read: {error}: {_AGAIN}") from error
    raise InputError(f"{path} holds no weights of Keras: expected what StarDist's training wrote, weights_best.h5")


def _legacy(root: Any) -> Held:
    names = [_text(n) for n in root.attrs["layer_names"]]
    held = {n: [np.asarray(root[n][_text(w)]) for w in root[n].attrs["weight_names"]] for n in names}
    return {n: arrays for n, arrays in held.items() if arrays}


def _keras3(layers: Any) -> Held:
    held: Held = {}
    for group in layers.values():
        variables = group.get("vars")
        if variables is None or not len(variables):
            continue
        held[_text(variables.attrs["name"])] = [np.asarray(variables[k]) for k in sorted(variables, key=int)]
    return held


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

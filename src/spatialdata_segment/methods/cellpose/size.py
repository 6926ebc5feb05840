"""Size models of Cellpose: the regression from styles to diameters, and its files.

Cellpose pickles them. Here a reader of our own takes arrays and numbers from a pickle, and executes nothing.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.cellpose.models import FETCH_AGAIN, check_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class SizeModel:
    """Cellpose's linear regression from an image's style to the diameter of its cells.

    Attributes
    ----------
    A
        ``(1, k)`` float64: change of the logarithm of the diameter with the style.
    smean
        ``(k,)`` float64: mean style of the training images.
    diam_mean
        px, of the cells to which training images were rescaled.
    ymean
        Mean logarithm of the diameters over ``diam_mean``.
    """

    A: NDArray[np.float64]
    smean: NDArray[np.float64]
    diam_mean: float
    ymean: float

    def __post_init__(self) -> None:
        if self.smean.ndim != 1 or self.A.shape != (1, len(self.smean)) or not len(self.smean):
            raise InputError(f"size model: A has shape {self.A.shape}, smean {self.smean.shape}: expected (1, k), (k,)")
        numbers = np.concatenate([self.A[0], self.smean, [self.diam_mean, self.ymean]])
        if not np.isfinite(numbers).all() or self.diam_mean <= 0:
            raise InputError(
                f"size model: values that are not finite, or diam_mean={self.diam_mean}, which must be positive"
            )

    def check(self, n_style: int) -> None:
        """Raise `InputError` where the network's style has another length."""
        if n_style != len(self.smean):
            raise InputError(
                f"the size model takes styles of length {len(self.smean)}, the network gives {n_style}: it was trained "
                "with another network; give a diameter instead"
            )

    def diameter(self, style: ArrayLike) -> float:
        """Return the diameter, px, at least 5, for a style ``(k,)``; `diam_mean` where the style says nothing.

        An image without any signal has a style of NaN; Cellpose then takes its mean diameter, too.
        """
        values = np.asarray(style, np.float64).ravel()
        self.check(len(values))
        exponent = float((self.A @ (values - self.smean))[0]) + self.ymean
        if not math.isfinite(exponent):
            return self.diam_mean
        return max(5.0, self.diam_mean * math.exp(min(exponent, 100.0)))


def read_size_model(path: Path) -> SizeModel:
    """Read a size model: ``.npz`` with the arrays A, smean, diam_mean, ymean, or the ``.npy`` that Cellpose writes.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is damaged, or holds something else.
    """
    path = Path(path)
    check_file(path)
    data = path.read_bytes()
    try:
        found = _read_npz(data) if data.startswith(b"PK") else _read_npy(data)
    except _RefusedError as error:
        raise InputError(f"{path} is no size model and is not loaded, since it could run any code: {error}") from error
    except Exception as error:  # numpy, zip and pickle raise whatever broken bytes lead them to
        raise InputError(f"{path} is damaged, cut off, or no size model ({error}); {FETCH_AGAIN}") from error
    return _size_model(path, found)


def _size_model(path: Path, found: object) -> SizeModel:
    names = "A", "smean", "diam_mean", "ymean"
    if not isinstance(found, dict) or any(name not in found for name in names):
        what = f"{sorted(map(str, found))[:5]}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InputError(f"{path} is no size model: it holds {what}; expected {', '.join(names)}")
    try:
        arrays = [np.array(found[name], np.float64) for name in names]
        weights, mean, diameter, offset = (
            arrays[0].reshape(1, -1),
            arrays[1].ravel(),
            *(float(a.item()) for a in arrays[2:]),
        )
        return SizeModel(weights, mean, diameter, offset)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no size model: {error}") from error


def _read_npz(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _read_npy(data: bytes) -> object:
    """Read the object that ``numpy.save`` pickled into an array of no dimensions."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not dtype.hasobject or shape not in ((), (1,)):
        raise ValueError(f"an array of shape {shape} and type {dtype}, where a dictionary was expected")
    found = _plain(_Unpickler(file).load())
    return found[0] if isinstance(found, list) and len(found) == 1 else found


class _RefusedError(Exception):
    """A pickle that names something else than arrays, numbers and containers."""


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle: numbers, and arrays of objects."""

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or spec not in {"b1", "O8", *(f"{k}{n}" for k in "fiu" for n in (1, 2, 4, 8))}:
            raise _RefusedError(f"it holds an array of type {spec!r}")
        self.spec = spec
        self.order = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.spec}")


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle, so that numpy never sees a state that was made up."""

    value: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.value = data if isinstance(data, list) else _numbers(data, kind, shape, "F" if fortran else "C")


def _numbers(data: Any, kind: Any, shape: Any = (), order: Any = "C", *_: object) -> NDArray[Any]:
    if kind.spec == "O8" or not isinstance(data, bytes | bytearray):
        raise _RefusedError(f"it holds a {type(data).__name__} as the bytes of {kind.spec}")
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Dtype, data: object = b"") -> object:
    return _numbers(data, kind).item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand for ``_codecs.encode``, by which old protocols write bytes."""
    return text.encode(encoding)


_STANDS_FOR: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _STANDS_FOR |= {
        (f"{_core}.multiarray", "_reconstruct"): _reconstruct,
        (f"{_core}.multiarray", "scalar"): _scalar,
        (f"{_core}.numeric", "_frombuffer"): _numbers,
    }


class _Unpickler(pickle.Unpickler):
    """Reads arrays, numbers, text and containers; anything else is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _STANDS_FOR:
            raise _RefusedError(f"it names {module}.{name}")
        stand = _STANDS_FOR[module, name]
        # pickles can set attributes of what they name: hand out copies
        return type(stand.__name__, (stand,), {}) if isinstance(stand, type) else lambda *given: stand(*given)

    def persistent_load(self, pid: object) -> object:
        raise _RefusedError("it names something outside of the file")


def _plain(found: object) -> object:
    """Replace what stands for arrays by the arrays."""
    if isinstance(found, _Array):
        return _plain(found.value)
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    return [_plain(value) for value in found] if isinstance(found, list) else found

"""The errors of the package: each names the value, what was expected and the next step."""

from __future__ import annotations

from importlib import import_module
from numbers import Integral
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from types import ModuleType


class SegmentationError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(SegmentationError, ValueError):
    """An argument, an element or a pixel that cannot be worked with."""


class MissingError(InputError, KeyError):
    """A key, channel or scale that is not there; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ExistsError(InputError, FileExistsError):
    """An output that exists already, where ``overwrite=True`` was not given."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MethodError(SegmentationError):
    """A method that broke its contract: wrong shape, dtype, or negative labels."""


class ShardError(SegmentationError):
    """A shard that failed; names the shard, its box and the cause. The finished shards are kept."""


class ScratchError(SegmentationError):
    """A scratch folder that cannot be used: not writable, full, or of another run."""


class ClusterError(SegmentationError):
    """Workers that do not start, or do not stay."""


class ImagesError(SegmentationError):
    """Some of several images failed; the others are done.

    Attributes
    ----------
    errors
        What was raised, by image.
    """

    def __init__(self, message: str, errors: dict[str, Exception]) -> None:
        super().__init__(message)
        self.errors = errors


class SegmentationWarning(UserWarning):
    """Of this package: something may not be what was wanted."""


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value that was given is a whole number (True and False are none)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require(module: str, extra: str) -> ModuleType:
    """Import a package that only an extra brings.

    Raises
    ------
    MissingError
        If it cannot be imported; names the extra to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingError(
            f"{module} is needed and cannot be imported ({error}): pip install 'spatialdata-segment[{extra}]'"
        ) from error

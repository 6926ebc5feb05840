"""Whether a worker can load what tasks carry: dask sends a task that it cannot load again and again, without end."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any, NamedTuple

from spatialdata_segment.errors import InputError


class Missing(NamedTuple):
    """A class or function that a process cannot import.

    Attributes
    ----------
    module, name
        Where it is looked for.
    error
        What Python said.
    """

    module: str
    name: str
    error: str


def packed(value: Any, what: str) -> bytes:
    """Return a value as dask sends it: by the names of its classes and functions, those of ``__main__`` whole.

    Raises
    ------
    InputError
        If it cannot be sent at all.
    """
    from distributed.protocol.pickle import dumps

    try:
        data: bytes = dumps(value)
    except Exception as error:
        raise InputError(
            f"{what} cannot be sent to the workers: {type(error).__name__}: {error}. Keep what cannot be pickled "
            "(locks, open files, models) out of parameters and closures, and make it where it is used"
        ) from error
    return data


def missing(data: bytes) -> Missing | None:
    """Return what this process lacks to load a value, if anything."""
    loader = _Loader(io.BytesIO(data))
    try:
        loader.load()
    except Exception as error:  # noqa: BLE001 (modules may raise anything as they are imported)
        return Missing(*loader.asked, f"{type(error).__name__}: {error}")
    return None


class _Loader(pickle.Unpickler):
    """Remembers what was looked for last."""

    asked = ("", "")

    def find_class(self, module: str, name: str, /) -> Any:
        self.asked = module, name
        return super().find_class(module, name)


def told(lacks: Missing, what: str, where: list[str]) -> InputError:
    """Return the error that names what workers lack, and what to do."""
    root = lacks.module.partition(".")[0]
    file = getattr(sys.modules.get(lacks.module), "__file__", None)
    send = f"send its file (client.upload_file({file!r}))" if file and root == lacks.module else "send it as a file"
    return InputError(
        f"{what} needs {lacks.module}.{lacks.name}, which {', '.join(where[:3])} cannot load: {lacks.error}. Expected "
        f"a class or function that workers can import, or one of __main__, which is sent along: install {root} where "
        f"the workers run, {send}, or add it with client.register_plugin"
    )

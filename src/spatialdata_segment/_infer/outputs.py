"""The folder of one image's result: what lies in it, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from spatialdata_segment._lock import Lock
from spatialdata_segment.engine.scratch import write_json
from spatialdata_segment.errors import ExistsError, InputError, ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

METADATA, POLYGONS = "metadata.json", "polygons.parquet"
WORK = ".spatialdata_segment"


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's metadata say; None where no run was finished there."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{folder / METADATA} cannot be read: {error}; remove it, or take another folder") from error
    return found if isinstance(found, dict) else {}


class Output:
    """A folder that gets a result, with a folder for work in progress in it.

    Use it as a context manager. What is written into `new` comes to its place by :meth:`publish`, the metadata last: a
    folder that has them is complete. When a run fails, only work that a later run can go on from is left.

    Parameters
    ----------
    folder
        Where the result goes; made where it is not there.
    wanted
        What decides the result, JSON-like: work of another one is discarded.
    resume
        False discards what an earlier run left.

    Raises
    ------
    InputError
        If the folder is a file, or another run is at work there.
    """

    def __init__(self, folder: Path, wanted: dict[str, Any], *, resume: bool = True) -> None:
        self.folder, self.work = folder, folder / WORK
        self._wanted, self._resume = wanted, resume
        self._lock = Lock(self.work / ".lock")
        self._done = False

    @property
    def new(self) -> Path:
        """The folder for files that are to be published."""
        return self.work / "new"

    @property
    def store(self) -> Path:
        """Where the SpatialData store lies while it is being filled."""
        return self.work / "store.zarr"

    def __enter__(self) -> Self:
        self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if not self._lock.acquire(wait=False):
                raise InputError(f"{self.folder} is in use by another run: take another folder, or wait for it")
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{self.folder} cannot be a folder, a file is in the way: take another one") from error
        except OSError as error:
            raise ScratchError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        request = self.work / "request.json"
        before = json.loads(request.read_text()) if request.exists() else None
        if before != self._wanted or not self._resume:
            self._clear(self.work)
            write_json(request, self._wanted)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = (f"{WORK}/scratch/*/*/*/*.shard", f"{WORK}/scratch/*/*/maps/done/c", "tables/*")
        if not self._done and any(any(self.store.glob(pattern)) for pattern in left):
            self._lock.release()  # the next run goes on from there
            return
        self._clear(self.work)
        self._lock.release()
        self.work.rmdir()
        for folder in self._made:
            if not folder.exists() or any(folder.iterdir()):
                break
            folder.rmdir()

    def _clear(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self, metadata: dict[str, Any], before: Iterable[str] = ()) -> None:
        """Put what lies in `new` in its place, then the metadata; files of an earlier result go.

        Parameters
        ----------
        metadata
            Its ``files`` are the names of what was written.
        before
            Names of the earlier result's files.
        """
        (self.folder / METADATA).unlink(missing_ok=True)
        names = [path.name for path in self.new.iterdir()]
        for name in {*before, *names}:
            path = self.folder / name
            if path.is_dir():
                path.rename(self.work / f"old-{name}")
            elif name not in names:
                path.unlink(missing_ok=True)
        for name in names:
            (self.new / name).replace(self.folder / name)
        temporary = self.work / METADATA
        temporary.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / METADATA)
        self._done = True


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise `ExistsError` where a folder has a result that may not be replaced, or holds a file of its names."""
    if overwrite or not folder.is_dir():
        return
    names = (METADATA,) if (folder / WORK).is_dir() else (METADATA, POLYGONS)  # a killed run may have written the rest
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ExistsError(f"{folder} has {' and '.join(there)} already: pass --overwrite, or another --output-dir")

"""The folder of one image's result: what lies in it, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._journal import DOT
from spatialdata_segment._lock import Lock
from spatialdata_segment.engine.scratch import write_json
from spatialdata_segment.errors import ExistsError, InputError, ScratchError
from spatialdata_segment.formats._folders import METADATA, POLYGONS, read_metadata

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import Self

NUCLEI = "nucleus_polygons.parquet"
"""Outlines of the nuclei, where a workflow finds nuclei and cells."""
FILES = {"sdata": "sdata.zarr", "geojson": "polygons.geojson", "imagej": "rois.zip", "tiff": "labels.tif"}
"""What formats are written into; `seg_npy` is the file of "npy"."""
WORK = ".spatialdata_segment_infer"
"""Work in progress; another name than that of the folder which `segment` has in a store."""
_PUBLISHED = "published.json"
_ZARR = "zarr.json", ".zgroup", ".zarray"


def seg_npy(image: Path) -> str:
    """Return the name of the file for Cellpose's GUI."""
    return f"{image.stem}_seg.npy"


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
        left = (f"{DOT}/scratch/*/*/*/*.shard", f"{DOT}/scratch/*/*/maps/done/c", "tables/*")
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
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def publish(self, metadata: dict[str, Any], before: Collection[str] = ()) -> None:
        """Put what lies in `new` in its place, then the metadata; files of an earlier result go.

        Parameters
        ----------
        metadata
            Its ``files`` are the names of what was written.
        before
            Names of the earlier result's files, as `written_before` tells them.
        """
        names = [path.name for path in self.new.iterdir()]
        write_json(self.work / _PUBLISHED, sorted({*before, *names}))
        (self.folder / METADATA).unlink(missing_ok=True)
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


def written_before(folder: Path) -> set[str]:
    """Return the names of what an earlier run wrote into a folder, also one that was killed while it did.

    Names that are none of a result are left out, whatever the files say: what they name is not ours to remove.
    """
    said = (read_metadata(folder) or {}).get("files")
    return {name for names in (said, _published(folder)) if isinstance(names, list) for name in names if _is_ours(name)}


def check_place(folder: Path) -> None:
    """Raise `InputError` where a folder is a Zarr, or lies in one: an image or a store is no place for a result."""
    place = folder.resolve()
    for at in (place, *place.parents):
        if any((at / name).is_file() for name in _ZARR):
            where = "is" if at == place else "lies in"
            raise InputError(f"{folder} {where} a Zarr, an image or a store ({at}): expected a folder of its own; pass "
                             "another --output-dir")  # fmt: skip


def check_free(folder: Path, names: Collection[str], image: Path, *, overwrite: bool) -> None:
    """Check that a result may be written into a folder.

    Parameters
    ----------
    folder
        Where the result goes.
    names
        What is written there besides the metadata.
    image
        What is segmented: it is not written over, whatever is asked for.
    overwrite
        Whether what is there may be replaced.

    Raises
    ------
    InputError
        If the folder is a Zarr or lies in one, or the image itself would be replaced or removed.
    ExistsError
        If there is something of these names, and it may not be replaced.
    """
    check_place(folder)
    if not folder.is_dir():
        return
    ours = written_before(folder)
    source = image.resolve()
    for name in sorted({METADATA, *names, *ours}):
        path = folder / name
        if path.exists() and any(path.samefile(p) for p in (source, *source.parents)):
            raise InputError(f"{path} is the image, and a result would replace it: pass another --output-dir")
    killed = {name for name in _published(folder) if _is_ours(name)}  # by a run that did not come to its metadata
    there = [name for name in sorted({METADATA, *names}) if name not in killed and _is_there(folder / name)]
    if there and not overwrite:
        raise ExistsError(f"{folder} has {' and '.join(there)} already: pass --overwrite, or another --output-dir")


def _published(folder: Path) -> list[Any]:
    """Return what a run that was killed was about to write or remove."""
    try:
        found = json.loads((folder / WORK / _PUBLISHED).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _is_ours(name: Any) -> bool:
    """Tell whether a name is that of a file of a result."""
    if not isinstance(name, str) or Path(name).name != name:
        return False
    return name in (POLYGONS, NUCLEI, *FILES.values()) or name.endswith("_seg.npy")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()

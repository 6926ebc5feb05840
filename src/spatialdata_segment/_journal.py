"""Elements put in place on disk, each the complete old or the complete new one at every moment.

Pure file system and zarr metadata: what an element holds is ``_staging.py``'s business. The new elements lie
ready in ``STORE/.spatialdata_segment/STAGE/new.zarr`` when the journal that names them is written; from then
on the exchange is rolled forward, by this run or, where it was killed, by the next one (:func:`recover`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore

from spatialdata_segment._documents import Pairs, drop_consolidated, dumped, list_labels
from spatialdata_segment._lock import UNSUPPORTED, Lock
from spatialdata_segment.errors import ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

DOT = ".spatialdata_segment"
"""The folder of a store that is ours; zarr and spatialdata ignore it."""
NEW = "new.zarr"
"""The staged elements, laid out as a SpatialData store of their own."""
_MARK = ".spatialdata_segment"  # lies in a staged element until it is in its place: tells new from old
_JOURNAL = "journal.json"


def step(what: str) -> None:
    """Do nothing: the tests kill the process here, at ``what``."""


@dataclass(frozen=True)
class Journal:
    """What is to be exchanged: ``(kind, name)`` pairs, kind one of ``labels``, ``shapes``, ``tables``..."""

    stage: str
    consolidated: bool
    put: Pairs
    remove: Pairs


@contextlib.contextmanager
def locked(store: Path) -> Iterator[Path]:
    """Hold the store's exchange; give its dot-folder, removed afterwards where nothing is left in it."""
    lock = Lock(store / DOT / "lock")
    try:
        lock.acquire(wait=True)
    except OSError as e:
        msg = (
            f"the store {store} cannot be written to ({e.strerror}); make it writable, or write the object "
            "to another place first: sdata.write(...)"
        )
        raise ScratchError(msg) from e
    try:
        yield store / DOT
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            (store / DOT).rmdir()


def new_stage(dot: Path) -> Lock:
    """Make a stage folder in ``dot`` and hold its lock; call under :func:`locked`."""
    k = 0
    while (dot / f"stage-{k}").exists():
        k += 1
    stage = dot / f"stage-{k}"
    stage.mkdir()
    lock = Lock(stage / "lock")
    lock.acquire(wait=False)
    return lock


def mark(element: Path) -> None:
    """Mark a staged element as new."""
    (element / _MARK).touch()


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder below is on the disk itself."""
    paths = [folder]
    for root, folders, files in os.walk(folder):
        paths += [type(folder)(root, name) for name in (*files, *folders)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:  # pragma: no cover - some file systems cannot sync folders
        if not path.is_dir() or e.errno not in UNSUPPORTED | {errno.EBADF}:
            raise
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, dot: Path) -> None:
    """Replace a file at once; the partial one lies in ``dot``, on the same file system."""
    partial = dot / f"partial-{path.name}"
    with open(partial, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    step(f"write {path.name}")
    partial.replace(path)
    _sync(path.parent)


def exchange(a: Path, b: Path) -> None:
    """Exchange two folders' names: at once where the system can, else by two renames."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            at_cwd, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            if libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), both) == 0:
                return
            if (e := ctypes.get_errno()) not in UNSUPPORTED:
                raise OSError(e, os.strerror(e), str(a), None, str(b))
    aside = a.with_name(f".{a.name}.old")
    b.rename(aside)
    step(f"aside {b.name}")
    a.rename(b)


def write(store: Path, journal: Journal) -> None:
    """Write the journal: from here on the exchange will be finished, whatever happens; call under a lock."""
    dot = store / DOT
    if (earlier := _load(dot)) is not None:  # of a run that was killed while ours was staging
        roll_forward(store, earlier)
    write_atomic(dot / _JOURNAL, dumped(asdict(journal)), dot)
    step("journal")


def waits(store: Path) -> bool:
    """Tell whether an exchange has begun on a store, and is not finished."""
    return (store / DOT / _JOURNAL).exists()


def awaits(store: Path, stage: str) -> bool:
    """Tell whether the exchange of that stage has begun and is not finished."""
    journal = _load(store / DOT)
    return journal is not None and journal.stage == stage


def roll_forward(store: Path, journal: Journal) -> None:
    """Bring the store to the state that the journal names; any step may have been done before."""
    dot = store / DOT
    stage, documents = dot / journal.stage, LocalDocuments(store, dot)
    if journal.consolidated:  # it names what is about to change
        drop_consolidated(documents)
        step("not consolidated")
    for kind in dict(journal.put):
        _make_group(stage / NEW / kind, store / kind, dot)
        step(f"group {kind}")
    pairs = [(stage / NEW / kind / name, store / kind / name) for kind, name in journal.put]
    away = [(store / kind / name, stage / f"removed-{kind}-{name}") for kind, name in journal.remove]
    for src, dst in pairs:  # one right after the other: what is read in between is old in part
        _put(src, dst)
    for dst, aside in away:
        _take_away(dst, aside)
    for folder in {path.parent for pair in pairs for path in pair} | {dst.parent for dst, _ in away}:
        if folder.exists():
            _sync(folder)
    step("exchanged")
    for _, dst in pairs:  # now that the names are on the disk itself
        (dst / _MARK).unlink(missing_ok=True)
        step(f"put {dst.name}")
    list_labels(documents, journal.put, journal.remove)
    step("labels listed")
    if journal.consolidated:
        _consolidate(store)
        step("consolidated")
    (dot / _JOURNAL).unlink()
    _sync(dot)
    step("no journal")


def recover(store: Path) -> Journal | None:
    """Finish what a killed run began, discard what it only staged; return the journal that was finished."""
    if not (store / DOT).is_dir():
        return None
    with locked(store) as dot:
        journal = _load(dot)
        if journal is not None:
            roll_forward(store, journal)
        for stage in sorted(dot.glob("stage-*")):
            lock = Lock(stage / "lock")
            if lock.acquire(wait=False):
                shutil.rmtree(stage)
                lock.abandon()
        for partial in dot.glob("partial-*"):
            partial.unlink()
    return journal


def _load(dot: Path) -> Journal | None:
    try:
        raw = json.loads((dot / _JOURNAL).read_text())
    except FileNotFoundError:
        return None
    pairs = {k: tuple((kind, name) for kind, name in raw[k]) for k in ("put", "remove")}
    return Journal(raw["stage"], raw["consolidated"], **pairs)


def _put(src: Path, dst: Path) -> None:
    if (src / _MARK).exists():  # still the new one
        step(f"before {dst.name}")
        if dst.exists():
            exchange(src, dst)
        else:
            src.rename(dst)
        step(f"after {dst.name}")


def _take_away(dst: Path, aside: Path) -> None:
    if dst.exists():
        dst.rename(aside)
    step(f"removed {dst.name}")


def _make_group(like: Path, group: Path, dot: Path) -> None:
    group.mkdir(exist_ok=True)
    for name in (".zattrs", ".zgroup", "zarr.json"):
        if (like / name).exists() and not (group / name).exists():
            write_atomic(group / name, (like / name).read_bytes(), dot)


@dataclass(frozen=True)
class LocalDocuments:
    """The documents of a store on this machine, replaced at once; partial ones lie in ``dot``."""

    store: Path
    dot: Path

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is no such file."""
        path = self.store / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file at once."""
        write_atomic(self.store / name, content, self.dot)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            (self.store / name).unlink()


class _AtomicStore(LocalStore):
    """A local store whose files are replaced at once and synced, in every version of zarr."""

    async def set(self, key: str, value: Any) -> None:
        write_atomic(self.root / key, value.to_bytes(), self.root / DOT)


def _consolidate(store: Path) -> None:
    with warnings.catch_warnings():  # parquet files and dot-folders are no zarr nodes, nor meant to be
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(_AtomicStore(store))

"""The scratch folder of a run: where it lies, what it belongs to, and what an earlier run left in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

from spatialdata_segment._lock import Lock
from spatialdata_segment.engine.entries import scratch_error
from spatialdata_segment.errors import ScratchError

logger = logging.getLogger(__name__)

LOCK = ".lock"

SCRATCH = "scratch folder"
_PASS = "pass scratch= with a folder"

PROGRAM = "spatialdata-segment"
"""Marks the manifest of a folder that may be cleared."""


def digest(fingerprint: dict[str, Any]) -> str:
    """Return a short text that differs whenever the fingerprint does."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:20]


class Shared(str):
    """A folder in which each run has a scratch folder of its own, as in a store."""

    __slots__ = ()


class Scratch:
    """A folder of entries that belongs to one fingerprint.

    Parameters
    ----------
    folder
        Where to work.
    fingerprint
        All that decides the content of the entries, JSON-like.
    given
        The user named the folder: one that holds another run is refused, with what differs.
    resume
        False discards what an earlier run left.
    resumable
        False: nobody can go on from this run, nor this one from another.
    what, discards
        How errors name the folder, and the argument that discards what another run left in it.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Any],
        *,
        given: bool,
        resume: bool,
        resumable: bool = True,
        what: str = SCRATCH,
        discards: str = "resume=False",
    ) -> None:
        self.given, self.what, self.discards = given, what, discards
        self._lock: Lock | None = None
        self.folder = folder
        if not given:
            unique = "" if resumable else f"-{os.getpid()}-{uuid4().hex[:8]}"
            self.folder = folder / f"{digest(fingerprint)}{unique}"
        self._take(folder, fingerprint)
        manifest = self.folder / "run.json"
        try:
            self._open(manifest, fingerprint, resume, resumable)
        except OSError as error:
            self.close()
            raise scratch_error(manifest, error, 4096) from error
        except ScratchError:
            self.close()
            raise

    def _take(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        """Lock the folder for this run; where another is at work in it, take one beside it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.folder / LOCK)
            if lock.acquire(wait=False):
                self._lock = lock
                return
        except FileExistsError as error:
            where = _PASS if self.what == SCRATCH else "pass a folder"
            raise ScratchError(f"{self.what} {self.folder} is a file: {where}") from error
        except OSError as error:
            raise scratch_error(self.folder, error) from error
        if self.given:
            raise ScratchError(f"{self.what} {self.folder} is in use by another run: pass another one")
        self.folder = folder / f"{digest(fingerprint)}-{os.getpid()}-{uuid4().hex[:8]}"

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open(self, manifest: Path, fingerprint: dict[str, Any], resume: bool, resumable: bool) -> None:
        for left in self.folder.glob(f".{manifest.name}.*"):  # of a run that was killed as it began
            left.unlink(missing_ok=True)
        if self.given:
            before = check_free(self.folder, fingerprint, resume=resume, what=self.what, discards=self.discards)
        else:
            before = fingerprint  # the folder's name says it, whatever became of the manifest
        if before is not None and (before != fingerprint or not resume or not resumable):
            self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(manifest, {"program": PROGRAM, **fingerprint})

    def part(self, name: str) -> Path:
        """Return the folder of one kind of entries."""
        return self.folder / name

    def holds_entries(self) -> bool:
        """Whether a run left something here that another could go on from."""
        return any(self.folder.glob("*/*/*.shard")) or any(self.folder.glob("*/maps/done/c"))

    def clear(self) -> None:
        """Remove everything in the folder; the folder itself stays if the user named it."""
        if not self.given:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.iterdir():
            if path.name == LOCK:
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def check_free(
    folder: Path, fingerprint: dict[str, Any], *, resume: bool, what: str = SCRATCH, discards: str = "resume=False"
) -> dict[str, Any] | None:
    """Return the fingerprint of the run that a folder belongs to, which a user named; None of a new one.

    Raises
    ------
    ScratchError
        If it is a file, holds something else, or another run while ``resume``.
    """
    if folder.is_file():
        raise ScratchError(f"{what} {folder} is a file: {_PASS if what == SCRATCH else 'pass a folder'}")
    before = _read(folder / "run.json") if folder.is_dir() else None
    foreign = before is None or before.pop("program", None) != PROGRAM
    if foreign and folder.is_dir() and any(p.name != LOCK for p in folder.iterdir()):
        raise ScratchError(
            f"{what} {folder} is not empty and holds no run of this package (or its run.json is damaged): pass an "
            "empty or a new folder"
        )
    if before is not None and before != fingerprint and resume:
        raise ScratchError(
            f"{what} {folder} belongs to another run; different: {_difference(before, fingerprint)}. Pass another "
            f"folder, or {discards} to discard what it holds"
        )
    return before


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    temporary.replace(path)


def _read(manifest: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(manifest.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("scratch manifest damaged: %s", manifest)
        return {}
    return content if isinstance(content, dict) else {}


def _difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for key in sorted(a.keys() | b.keys()):
        before, now = a.get(key), b.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            parts.append(_difference(before, now, f"{prefix}{key}."))
        else:
            parts.append(f"{prefix}{key} ({_short(before)} then, {_short(now)} now)")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

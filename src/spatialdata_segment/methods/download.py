"""Files from the network: whole or not at all, and once where many processes want the same."""

from __future__ import annotations

import contextlib
import glob
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from spatialdata_segment._lock import Lock
from spatialdata_segment.errors import require

if TYPE_CHECKING:
    from pathlib import Path

_DAY = 24 * 3600.0


class DownloadError(Exception):
    """A download that did not bring the file."""


def download(url: str, path: Path, *, starts: tuple[bytes, ...], extra: str, progress: bool = False) -> None:
    """Write what is at an address to a file, unless the file is there.

    The file appears under its name when it is complete. Of many processes one downloads, and the others wait for it.

    Parameters
    ----------
    url
        HTTP or HTTPS.
    path
        Of the file; its folder is made.
    starts
        What the file may begin with: anything else is no such file, but a page of a proxy.
    extra
        Which brings what downloads take.
    progress
        Show a bar on stderr.

    Raises
    ------
    DownloadError
        If the server cannot be reached, refuses, or sends less or something else.
    OSError
        If the file cannot be written.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path.with_name(f".{path.name}.lock"))
    lock.acquire(wait=True)
    try:
        if not path.is_file():
            _clear(path)
            _download(url, path, starts, extra, progress)
    finally:
        lock.release()


def _clear(path: Path) -> None:
    """Remove what killed downloads left behind; a younger one may go on, where the file system has no locks."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:
                left.unlink()


def _download(url: str, path: Path, starts: tuple[bytes, ...], extra: str, progress: bool) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            expected = _receive(url, file, extra, progress)
            file.flush()
            os.fsync(file.fileno())
        _check_received(temporary, expected, starts)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _receive(url: str, file: Any, extra: str, progress: bool) -> int | None:
    """Copy the body at an address into an open file; return the bytes that the server promised, if it did."""
    pooch, requests = require("pooch", extra), require("requests", extra)
    headers: dict[str, str] = {}

    def note(response: Any, *args: object, **kwargs: object) -> None:
        headers.clear()
        headers.update({name.lower(): value for name, value in response.headers.items()})

    download = pooch.HTTPDownloader(
        progressbar=progress, chunk_size=1 << 20, headers={"Accept-Encoding": "identity"}, hooks={"response": note}
    )
    try:
        download(url, file, None)
    except requests.RequestException as error:
        raise DownloadError(str(error)) from error
    plain = headers.get("content-encoding", "identity") == "identity"
    length = headers.get("content-length", "")
    return int(length) if plain and length.isdigit() else None


def _check_received(path: Path, expected: int | None, starts: tuple[bytes, ...]) -> None:
    """Raise where a body is shorter than promised, or is something else, such as a proxy's page."""
    found = path.stat().st_size
    if expected is not None and found != expected:
        raise DownloadError(f"{found:,} bytes came of {expected:,}")
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(starts):
        raise DownloadError(f"what came is no model; its {found:,} bytes begin with {head!r}")

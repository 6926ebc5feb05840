"""Advisory locks on files; nothing of what they guard."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What a file system says that does not know an operation."""


class Lock:
    """An advisory lock on a file, freed by the system when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock; without ``wait`` return False where another holds it."""
        while True:
            self.path.parent.mkdir(exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the folder went away just now
                continue
            if not _flock(fd, wait):
                os.close(fd)
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    self._fd = fd
                    return True
            os.close(fd)  # the holder before us removed the file

    def release(self) -> None:
        """Free the lock and remove its file."""
        if self._fd is not None:
            self.path.unlink(missing_ok=True)
            self.abandon()

    def abandon(self) -> None:
        """Free the lock as the death of the process would, its file left behind."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _flock(fd: int, wait: bool) -> bool:
    if fcntl is None:  # pragma: no cover
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as e:  # a file system without locks: one run at a time is then the user's care
        if e.errno not in UNSUPPORTED | {errno.ENOLCK}:
            raise
    return True

"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a free name beside a path; what the block writes there takes the place of what is at the path.

    After an error nothing has changed.

    Raises
    ------
    MissingError
        The folder is not there.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise MissingError(f"there is no folder {target.parent} to write {target.name} into: make it first")
    new = _hidden(target)
    try:
        yield new
        if target.is_dir() and not target.is_symlink():
            old = _hidden(target)
            target.rename(old)
            new.rename(target)
            shutil.rmtree(old)
        elif new.is_dir() and target.exists():
            old = _hidden(target)
            target.rename(old)
            new.rename(target)
            old.unlink()
        else:
            new.replace(target)
    finally:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}")


def existing(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path, which must be there."""
    found = Path(path)
    if not found.exists():
        raise MissingError(f"there is no {what} {found}: check the path")
    return found


def unreadable(path: Path, error: Exception, expected: str) -> InputError:
    """Return what is raised where a reader fails on a file, whatever it raised, in one line."""
    said = " ".join(str(error).split())
    return InputError(f"{path} cannot be read ({type(error).__name__}: {said}): expected {expected}")

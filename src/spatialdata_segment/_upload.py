"""Elements put in place on a remote store, which knows no rename: invisible until they are whole.

What an element holds is ``_staging.py``'s business; ``_journal.py`` does the same on this machine. An element is
there for zarr and spatialdata when it has a metadata document of its own. The documents of what is replaced are
removed first and those of what is new are written last, so that an upload that stops half way leaves elements that
are whole, or none: never old and new ones together. The next run of the same names removes what is left of it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import zarr

from spatialdata_segment._documents import Pairs, drop_consolidated, is_consolidated, list_labels
from spatialdata_segment._fsspec import METADATA
from spatialdata_segment._journal import DOT
from spatialdata_segment.errors import ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from spatialdata_segment._fsspec import Remote

CONSOLIDATE = f"{DOT}/consolidate"
"""Lies in a store whose consolidated metadata was taken away for an upload, and is to come again."""


def upload(remote: Remote, new: Path, put: Pairs, remove: Pairs) -> None:
    """Bring the elements of a local store to a remote one, and take others away.

    Raises
    ------
    ScratchError
        The upload failed; says what is to be found on the store now.
    """
    try:
        _dissolve(remote)
        _take_away(remote, [*put, *remove])
        _bring(remote, new, put)
        list_labels(remote, put, remove)
        _consolidate(remote)
    except ScratchError as error:
        names = ", ".join(name for _, name in put)
        raise ScratchError(
            f"{error}. The upload of {names} is not finished: those of them that can be seen in {remote} are whole. "
            "Run again, with overwrite=True if there are any; shards are kept for that where scratch= was given"
        ) from error


def _dissolve(remote: Remote) -> None:
    """Take the consolidated metadata away, which names what is about to change."""
    if is_consolidated(remote):
        remote.write(CONSOLIDATE, b"")
        drop_consolidated(remote)


def _take_away(remote: Remote, elements: Iterable[tuple[str, str]]) -> None:
    names = [name for kind, element in elements for name in remote.find(f"{kind}/{element}")]
    for layer in reversed(_layers(names)):
        remote.remove(layer)


def _bring(remote: Remote, new: Path, put: Pairs) -> None:
    kinds, elements = {kind for kind, _ in put}, [new / kind / name for kind, name in put]
    files = [p.relative_to(new).as_posix() for element in elements for p in element.rglob("*") if p.is_file()]
    documents = [f"{kind}/{d}" for kind in kinds for d in METADATA if (new / kind / d).exists()]
    missing = [name for name in documents if remote.read(name) is None]
    for layer in _layers([*files, *missing]):
        remote.upload(new, layer)


def _layers(names: Iterable[str]) -> list[list[str]]:
    """Sort files: the data, the documents inside of elements, those of the kinds, those of the elements themselves.

    Of these come the attributes before what makes them seen, and the tables last, which annotate the others.
    """
    layers: dict[tuple[int, str], list[str]] = {}
    for name in names:
        kind, _, rest = name.partition("/")
        document = name.rpartition("/")[2]
        if document not in METADATA:
            key = (0, "")
        elif rest.count("/") > 1:
            key = (1, "")
        elif rest.count("/") == 0:
            key = (2, "")
        else:
            key = (3, "") if document == ".zattrs" else (4, kind)
        layers.setdefault(key, []).append(name)
    return [layers[key] for key in sorted(layers)]


def _consolidate(remote: Remote) -> None:
    if remote.read(CONSOLIDATE) is None and not is_consolidated(remote):
        return
    with warnings.catch_warnings():  # parquet files are no zarr nodes, nor meant to be
        warnings.simplefilter("ignore")
        try:
            zarr.consolidate_metadata(remote.store)
        except Exception as e:
            raise ScratchError(f"the metadata of {remote} cannot be consolidated ({type(e).__name__}: {e})") from e
    remote.remove([CONSOLIDATE])

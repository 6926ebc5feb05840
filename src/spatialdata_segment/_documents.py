"""The documents of a store that name its elements: the list of its labels, the consolidated metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

Pairs = tuple[tuple[str, str], ...]
"""Kinds and names of elements."""


class Documents(Protocol):
    """Where the documents lie; names are relative to the store."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is no such file."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a file at once."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that are there."""


def dumped(metadata: dict[str, Any]) -> bytes:
    """Return a document in zarr's own layout."""
    return json.dumps(metadata, indent=2).encode()


def list_labels(store: Documents, put: Pairs, remove: Pairs) -> None:
    """Keep the list of names that NGFF wants in the labels group."""
    new = [name for kind, name in put if kind == "labels"]
    gone = {name for kind, name in remove if kind == "labels"}
    for file in ("labels/zarr.json", "labels/.zattrs"):
        raw = store.read(file) if new or gone else None
        if raw is None:
            continue
        attributes = metadata = json.loads(raw)
        if file.endswith("zarr.json"):
            attributes = metadata.setdefault("attributes", {}).setdefault("ome", {})
        old = attributes.get("labels", [])
        names = [n for n in old if n not in gone] + [n for n in new if n not in old]
        if names != old:
            attributes["labels"] = names
            store.write(file, dumped(metadata))


def is_consolidated(store: Documents) -> bool:
    """Tell whether the store's root carries the metadata of all that is in it."""
    root = store.read("zarr.json")
    if root is not None and json.loads(root).get("consolidated_metadata") is not None:
        return True
    return store.read(".zmetadata") is not None


def drop_consolidated(store: Documents) -> None:
    """Take the metadata of all away; every element then speaks for itself."""
    if store.read(".zmetadata") is not None:
        store.remove([".zmetadata"])
    if is_consolidated(store):
        metadata = json.loads(store.read("zarr.json") or b"{}")
        del metadata["consolidated_metadata"]
        store.write("zarr.json", dumped(metadata))

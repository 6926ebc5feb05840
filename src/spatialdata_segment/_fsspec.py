"""A folder that is not on this machine: listed, read and written by way of fsspec. Knows nothing of SpatialData."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fsspec.registry import known_implementations
from zarr.core.sync import _get_loop
from zarr.storage import FsspecStore

from spatialdata_segment.errors import InputError, MissingError, ScratchError, SegmentationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

T = TypeVar("T")
METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
"""The documents of zarr, of both its formats."""
_AT_ONCE = 32
"""Transfers under way."""
_STAMPS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""What a listing says of a file's content, or of when it was written: the first that there is."""


class Remote:
    """A folder of an fsspec file system. Names are relative to it, with ``/`` between their parts.

    Everything runs on zarr's event loop, where the file system of its store is at home.

    Parameters
    ----------
    store
        The folder, as zarr knows it.

    Raises
    ------
    InputError
        By whatever lists or reads, when that fails for another reason than that nothing is there.
    ScratchError
        By whatever writes or removes.
    """

    def __init__(self, store: FsspecStore) -> None:
        self.store = store
        self._fs = store.fs
        self._root = store.path.rstrip("/")

    def __str__(self) -> str:
        return self.url()

    def url(self, name: str = "") -> str:
        """Return the address of a file or folder, with its protocol."""
        url: str = self._plain.unstrip_protocol(self._at(name))
        return url

    @property
    def _plain(self) -> Any:
        """The file system itself, where zarr wraps one that knows no async."""
        return getattr(self._fs, "sync_fs", self._fs)

    def find(self, folder: str = "", depth: int | None = None) -> dict[str, str]:
        """Return the names of all files below a folder, each with what changes when the file does."""
        self._plain.invalidate_cache()
        try:
            found = self._read(self._fs._find(self._at(folder), maxdepth=depth, detail=True))
        except FileNotFoundError:
            return {}
        infos = found.items()
        return {n.removeprefix(f"{self._root}/"): _stamp(i) for n, i in infos if i.get("type", "file") == "file"}

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is no such file."""
        try:
            content: bytes = self._read(self._fs._cat_file(self._at(name)))
        except FileNotFoundError:
            return None
        return content

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copy files into a folder of this machine, under their names."""

        async def get(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            await self._fs._get_file(self._at(name), str(target))

        try:
            self._read(_each(names, get))
        except FileNotFoundError as e:
            raise InputError(f"{self} was changed while it was read ({e}): read it again") from e

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole."""
        self._write(self._fs._pipe_file(self._at(name), content))

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files from a folder of this machine, under their names there."""

        async def put(name: str) -> None:
            await self._fs._put_file(str(folder / name), self._at(name))

        self._write(_each(names, put))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that are there; one by one, for S3 keeps silent about what it refuses to remove in bulk."""
        self._write(_each((self._at(name) for name in names), self._fs._rm_file))

    def check_writable(self, name: str) -> None:
        """Write a file and remove it, to find out whether that is allowed."""
        if self.store.read_only:
            raise ScratchError(f"{self} is opened read-only; open it for writing")
        self.write(name, b"")
        self.remove([name])

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _read(self, call: Coroutine[Any, Any, T]) -> T:
        return self._told(call, InputError, "read")

    def _write(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._told(call, ScratchError, "written to")
        except FileNotFoundError as e:
            raise ScratchError(f"{self} cannot be written to: {e}. Make the bucket or container first") from e

    def _told(self, call: Coroutine[Any, Any, T], error: type[SegmentationError], what: str) -> T:
        try:
            return _wait(call)
        except FileNotFoundError:
            raise
        except Exception as e:
            cause = e.exceptions[0] if isinstance(e, ExceptionGroup) else e
            if isinstance(cause, FileNotFoundError):
                raise cause from e
            raise error(
                f"{self} cannot be {what} ({type(cause).__name__}: {cause}); check the address, the rights and the "
                "credentials (storage_options=, or the environment), and run again"
            ) from e


def open_remote(store: Any, storage_options: Mapping[str, Any] | None = None) -> Remote:
    """Return a remote folder that is given as a URL, a ``UPath`` or a ``zarr.storage.FsspecStore``.

    Raises
    ------
    MissingError
        No package is installed for that kind of file system; names it.
    InputError
        An unknown protocol, or a folder of this machine.
    """
    if isinstance(store, str):
        store = _from_url(store, dict(storage_options or {}))
    elif storage_options is not None:
        raise InputError(f"storage_options go with a URL only; {store!r} carries its own")
    elif not isinstance(store, FsspecStore) and hasattr(store, "fs"):
        store = FsspecStore.from_mapper(store.fs.get_mapper(store.path))
    if not isinstance(store, FsspecStore) or "file" in store.fs.protocol:
        raise InputError(
            f"store={store!r}, expected an address such as 's3://bucket/name.zarr', a UPath or a FsspecStore; "
            "a store on this machine is read with spatialdata.read_zarr"
        )
    return Remote(store)


def _from_url(url: str, storage_options: dict[str, Any]) -> FsspecStore:
    try:
        return FsspecStore.from_url(url, storage_options=storage_options)
    except ImportError as e:
        protocol = url.partition(":")[0]
        package = known_implementations[protocol]["class"].partition(".")[0]
        raise MissingError(f"{protocol}:// needs a package that is not installed ({e}): pip install {package}") from e
    except ValueError as e:
        raise InputError(
            f"store={url!r} cannot be opened ({e}), expected an address such as 's3://bucket/a.zarr'"
        ) from e


def _wait(call: Coroutine[Any, Any, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(call, _get_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # interrupted: nothing may arrive there any more


async def _each(items: Iterable[str], do: Callable[[str], Awaitable[None]]) -> None:
    """Do something with each item, a few at a time; the first error cancels what is under way."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await do(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work())


def _stamp(info: Mapping[str, Any]) -> str:
    stamp = next((info[key] for key in _STAMPS if info.get(key) is not None), "")
    return f"{info.get('size')}\0{stamp}"

"""StarDist's pretrained models: their names, where their folders lie, and how they get there. Nothing needs torch.

Names, addresses, checksums and the folder are those of StarDist and Keras, so that both share one cache.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from spatialdata_segment._lock import Lock
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.download import DownloadError, download

URL = "https://github.com/stardist/stardist-models/releases/download/v0.1/"
"""Where StarDist fetches its models."""
FOLDER_VARIABLE = "KERAS_HOME"
"""The environment variable by which Keras, StarDist and this package find another cache folder."""


@dataclass(frozen=True)
class Pretrained:
    """A model that is known by its name.

    Attributes
    ----------
    name
        As StarDist calls it.
    description
        What it was trained for, in a line.
    sha256
        Of the archive.
    """

    name: str
    description: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the archive at its address."""
        return f"python_{self.name}.zip"

    @property
    def folder(self) -> Path:
        """Where Keras keeps it."""
        return cache_folder() / f"StarDist{self.name[:2]}" / self.name


_KNOWN = (
    ("2D_versatile_fluo", "nuclei in fluorescence", "4ad678d0758eed6e55625f1b5ae30771e59adb79f1239e09b9772eac8846c3dd"),
    ("2D_versatile_he", "nuclei in H&E, RGB", "f1696ef0631bd7e1c0e5c0d3017e2b4c6a95e284c6aab9c22fc2f08317817b28"),
    ("2D_paper_dsb2018", "nuclei, DSB 2018", "4c11cf68512341d9e8ce3d1278c64ceb8ac400582739f85fcab079a2e82840d2"),
    ("2D_demo", "of StarDist's 2D example", "a1efaebd7103db6236655bf158b6e21cf5b38d58ec77a509802244a89a260fa4"),
    ("3D_demo", "of StarDist's 3D example", "ea05831eb5acc8a2fd31eaa23f4460a196a9af53b14f40affb9d80885f699f90"),
)
PRETRAINED = {name: Pretrained(name, text, digest) for name, text, digest in _KNOWN}
"""The models that StarDist offers by name."""


def cache_folder() -> Path:
    """Return Keras' folder of models: in ``KERAS_HOME``, else in ``~/.keras``."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return (Path(folder).expanduser() if folder else Path.home() / ".keras") / "models"


def find_folder(model: str, basedir: Path | None = None) -> Path:
    """Return the folder of a model that is there, without any network.

    Parameters
    ----------
    model
        Name of a folder in ``basedir``, of a pretrained model, or the path of a folder.
    basedir
        Where models lie.

    Raises
    ------
    MissingError
        If it is not there.
    """
    if basedir is not None:
        if not (basedir / model / "config.json").is_file():
            there = sorted(p.parent.name for p in basedir.glob("*/config.json"))
            raise MissingError(f"no model {model!r} in {basedir}: there are {', '.join(there) or 'none'}")
        return basedir / model
    if model not in PRETRAINED:
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise MissingError(
                f"no model {model!r}: expected the folder of a StarDist model (with config.json), or one of "
                f"{', '.join(PRETRAINED)}"
            )
        return folder
    entry = PRETRAINED[model]
    for folder in (entry.folder, entry.folder / f"{model}_extracted", entry.folder / model):
        if (folder / "config.json").is_file():
            return folder
    raise MissingError(
        f"model {model!r} is not in {entry.folder}: fetch it on a machine with a connection, with StarDist or with "
        f"`spatialdata-segment models fetch {model}`, and copy that folder, or set {FOLDER_VARIABLE}"
    )


def ensure_folder(model: str, basedir: Path | None = None) -> Path:
    """Return the folder of a model; a pretrained one that is not there is downloaded."""
    try:
        return find_folder(model, basedir)
    except MissingError:
        if basedir is not None or model not in PRETRAINED:
            raise
    return fetch_model(model)


def fetch_model(name: str, *, progress: bool = False, base_url: str = URL) -> Path:
    """Download a pretrained model, unless it is there; return its folder.

    The folder appears under its name when it is complete. Of many processes one downloads, the others wait for it.

    Raises
    ------
    MissingError
        If no model has the name, or the download failed.
    InputError
        If the cache folder cannot be written.
    """
    if name not in PRETRAINED:
        raise MissingError(f"no model {name!r}: known are {', '.join(PRETRAINED)}")
    entry = PRETRAINED[name]
    archive = entry.folder / f"{name}.zip"
    try:
        entry.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(entry.folder / ".lock")
        lock.acquire(wait=True)
        try:
            try:
                return find_folder(name)
            except MissingError:
                url = f"{base_url.rstrip('/')}/{entry.file}"
                download(url, archive, starts=(b"PK\x03\x04",), extra="stardist", progress=progress)
            _extract(archive, entry)
        finally:
            lock.release()
    except DownloadError as error:
        raise MissingError(
            f"cannot download {base_url.rstrip('/')}/{entry.file}: {error}. Download it where there is a connection, "
            f"and copy the file to {archive}"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write {entry.folder}: {error.strerror or error}. Set {FOLDER_VARIABLE} to a folder that can be "
            "written, or make room"
        ) from error
    return find_folder(name)


def _extract(archive: Path, entry: Pretrained) -> None:
    """Unpack the files of a model beside its archive, whole or not at all."""
    found = sha256(archive.read_bytes()).hexdigest()
    if found != entry.sha256:
        archive.unlink()
        raise DownloadError(f"what came has sha256 {found}, expected {entry.sha256}; it was removed")
    temporary = entry.folder / f".{uuid4().hex}"
    try:
        temporary.mkdir()
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                name = Path(member.filename).name
                if not member.is_dir() and name.endswith((".json", ".h5")):
                    (temporary / name).write_bytes(packed.read(member))
        temporary.rename(entry.folder / f"{entry.name}_extracted")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def listed() -> list[dict[str, Any]]:
    """Return the pretrained models: name, axes, folder, bytes of its weights (None: not there), what it is for."""
    found: list[dict[str, Any]] = []
    for name, entry in PRETRAINED.items():
        try:
            folder = find_folder(name)
            size: int | None = sum(path.stat().st_size for path in folder.glob("*.h5"))
        except MissingError:
            folder, size = entry.folder, None
        said = {"name": name, "axes": name[:2], "path": str(folder), "bytes": size, "description": entry.description}
        found.append(said)
    return found


def overview() -> str:
    """Return the pretrained models as a table: name, axes, whether it is there, its bytes, what it is for."""
    rows = [("name", "axes", "there", "size", "description")]
    for model in listed():
        size = "-" if model["bytes"] is None else f"{model['bytes'] / 1e6:.1f} MB"
        there = "no" if model["bytes"] is None else "yes"
        rows.append((model["name"], model["axes"], there, size, model["description"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"folder: {cache_folder()}"])

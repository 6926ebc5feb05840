"""Folders of a segmentation: ``polygons.parquet``, ``metadata.json``; and folders of them, with ``configs.yml``."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._yaml import read_yaml
from spatialdata_segment.errors import ExistsError, InputError, MissingError, SegmentationWarning, is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

POLYGONS = "polygons.parquet"
METADATA = "metadata.json"
CONFIGS = "configs.yml"


def folder_at(path: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that is there."""
    folder = Path(path)
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}: expected one that holds {POLYGONS}, or folders that do")
    return folder


def output_at(name: str, folder: Path, output_dir: str | os.PathLike[str] | None, overwrite: bool) -> Path:
    """Return where an output goes, whose folder is made if need be."""
    into = folder if output_dir is None else Path(output_dir)
    above = next(p for p in (into, *into.parents) if p.exists() or p == p.parent)
    if not above.is_dir():
        raise InputError(f"{above} is a file: expected a folder to write {name} into")
    if not os.access(above, os.W_OK):
        raise InputError(f"{above} may not be written to: give another output folder for {name}, or the right to")
    path = into / name
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} is there already: remove it, pass overwrite (--overwrite), or another output folder")
    return path


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what ``metadata.json`` of a folder holds; None where there is none."""
    file = folder / METADATA
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}; repair or remove it") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds {found!r}: expected names and values, as infer writes them")
    return found


def image_shape(folder: Path) -> tuple[int, ...] | None:
    """Return ``image-shape`` of a folder's metadata, ``([z], y, x)``; None where there is no metadata."""
    metadata = read_metadata(folder)
    if metadata is None:
        return None
    shape = metadata.get("image-shape")
    if not isinstance(shape, list) or len(shape) not in (2, 3) or not all(is_whole(n) and n >= 0 for n in shape):
        raise InputError(
            f"{folder / METADATA} has the image-shape {shape!r}: expected [y, x] or [z, y, x] in px; correct it, or "
            "remove the file, and the shape is that of the polygons"
        )
    return tuple(shape)


def planes_in(folder: Path) -> dict[int, Path]:
    """Return the folders of planes in a folder, by their place along z, ascending.

    Their ``z_index`` is that of ``configs.yml``, where there is one, else that of each ``metadata.json``.

    Raises
    ------
    MissingError, InputError
        No folder with polygons, or one with no place, or with that of another; names them.
    """
    found = sorted(p.parent for p in folder.glob(f"[!.]*/{POLYGONS}"))
    config = folder / CONFIGS
    given = _configured(config, found) if config.exists() else {p: _own_index(p) for p in found}
    if not given and found:
        raise InputError(f"{config} lists no image under 'stitch': name them and their z_index, or remove the file")
    if not given:
        raise MissingError(
            f"{folder} holds no folder with {POLYGONS}: expected one for each plane, as infer writes them"
        )
    source = str(config) if config.exists() else f"their {METADATA}"
    wrong = {p.name: z for p, z in given.items() if not is_whole(z)}
    if wrong:
        said = ", ".join(f"{name}: {'null' if z is None else repr(z)}" for name, z in wrong.items())
        raise InputError(f"no z_index in {source} for {said}; expected whole numbers, the order of the planes")
    twice = [z for z, n in Counter(given.values()).items() if n > 1]
    if twice:
        said = ", ".join(f"{p.name}: {z}" for p, z in given.items() if z in twice)
        raise InputError(f"the same z_index in {source} for {said}; expected another for each plane")
    left = [path.name for path in found if path not in given]
    if left:
        warnings.warn(f"{config} does not name {', '.join(left)}: left out", SegmentationWarning, stacklevel=4)
    return {int(z): path for path, z in sorted(given.items(), key=lambda item: item[1])}


def _own_index(folder: Path) -> Any:
    metadata = read_metadata(folder)
    return None if metadata is None else metadata.get("z_index")


def _configured(config: Path, found: list[Path]) -> Mapping[Path, Any]:
    """Return what ``configs.yml`` says of each folder that it names."""
    entries = entries_of(config)
    named = {config.parent / name: z for name, z in entries}
    if len(named) < len(entries):
        raise InputError(f"{config} names an image more than once: expected each once")
    missing = [path.name for path in named if path not in found]
    if missing:
        raise MissingError(f"{config} names {', '.join(missing)}, and there is no such folder with {POLYGONS}")
    return named


def entries_of(config: Path) -> list[tuple[str, Any]]:
    """Return the images that a ``configs.yml`` lists, and the plane of each; None where it gives none.

    Raises
    ------
    InputError
        If it cannot be read, or is no such list.
    """
    content = read_yaml(config, "configuration")
    try:
        return [(str(entry["image_name"]), entry.get("z_index")) for entry in content["stitch"] or ()]
    except (TypeError, KeyError, AttributeError):
        raise InputError(
            f"{config} cannot be read: stitch is {content.get('stitch')!r}, expected a list with image_name and "
            "z_index; repair or remove the file"
        ) from None

"""Models of Cellpose by name: what there is, where the files lie, and how they get there.

The names, the names of files and the folder are those of Cellpose, so that both share one cache. What is in the
files is left to `weights`; nothing here needs torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.cellpose._download import DownloadError, download

if TYPE_CHECKING:
    from collections.abc import Iterator

CPNET_URL = "https://www.cellpose.org/models/"
"""Where Cellpose 1 to 3 fetch their models."""
CELLPOSE4_URL = "https://huggingface.co/mouseland/cellpose-sam/resolve/main/"
"""Where Cellpose 4 fetches its models."""
FOLDER_VARIABLE = "CELLPOSE_LOCAL_MODELS_PATH"
"""The environment variable by which Cellpose, and this package, find another cache folder."""
GUI_LIST = "gui_models.txt"
"""The file of the cache folder in which Cellpose lists the models that a user added."""

_SHIPPED = Path(__file__).parent
_FREE = "https://github.com/MouseLand/cellpose"
_NC = f"trained in part on CC-BY-NC data, see {_FREE}"
_NC4 = "trained on CC-BY-NC data, see https://github.com/MouseLand/cellpose"
_DINO = f"{_NC4}; DINOv3 License, see https://github.com/facebookresearch/dinov3"
_OWN = "as this package"
_TRANSFORMERS = "transformer_cp3", "neurips_cellpose_transformer"
_STARTS = {".npy": (b"\x93NUMPY",), "": (b"PK\x03\x04", b"\x80")}
"""First bytes of the files that are fetched, by suffix: numpy's, and torch's two forms."""
FETCH_AGAIN = "remove it and fetch or copy it again"
"""The next step where a file is spoilt."""


@dataclass(frozen=True)
class BuiltIn:
    """A model that is known by its name.

    Attributes
    ----------
    name
        As Cellpose calls it.
    description
        What it was trained for, in a line.
    generation
        Of Cellpose: 1 to 3 are CPnets, 4 are vision transformers.
    file
        Name of the weights in `folder`.
    size_file
        Name of the size model in `folder`; None: there is none.
    diam_mean
        px, of the cells in training images.
    terms
        What to know of the licence, and where it stands.
    shipped
        It comes with this package and is never fetched.
    """

    name: str
    description: str
    generation: int
    file: str
    size_file: str | None = None
    diam_mean: float = 30.0
    terms: str = _NC
    shipped: bool = False

    @property
    def folder(self) -> Path:
        """Where its files lie, or will."""
        return _SHIPPED / self.name if self.shipped else cache_folder()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files."""
        return (self.file,) if self.size_file is None else (self.file, self.size_file)

    @property
    def url(self) -> str | None:
        """Of the weights; None where it is shipped."""
        return self._url(self.file)

    @property
    def size_url(self) -> str | None:
        """Of the size model; None where there is none, or it is shipped."""
        return None if self.size_file is None else self._url(self.size_file)

    def _url(self, file: str) -> str | None:
        if self.shipped:
            return None
        return (CELLPOSE4_URL if self.generation >= 4 else CPNET_URL) + file


def _built_in() -> Iterator[BuiltIn]:
    yield BuiltIn(
        "nuclei-small", "nuclei; small, comes with this package", 3, "weights", "size.npz", 17.0, _OWN, shipped=True
    )
    yield BuiltIn("cyto3", "cells and nuclei of nine data sets", 3, "cyto3", "size_cyto3.npy")
    yield BuiltIn("nuclei", "nuclei", 1, "nucleitorch_0", "size_nucleitorch_0.npy", 17.0)
    yield BuiltIn("cyto2", "cells, and what users sent in", 1, "cyto2torch_0", "size_cyto2torch_0.npy")
    yield BuiltIn("cyto", "cells", 1, "cytotorch_0", "size_cytotorch_0.npy")
    for name, description, terms in (
        ("cyto2_cp3", "cells, the data of cyto2", _NC),
        ("tissuenet_cp3", "tissue with a nuclear channel, TissueNet", _NC),
        ("livecell_cp3", "cells in phase contrast, LIVECell", _NC),
        ("yeast_PhC_cp3", "yeast in phase contrast, YeaZ", f"see {_FREE}"),
        ("yeast_BF_cp3", "yeast in bright field, YeaZ", f"see {_FREE}"),
        ("bact_phase_cp3", "bacteria in phase contrast, Omnipose", _NC),
        ("bact_fluor_cp3", "bacteria in fluorescence, Omnipose", _NC),
        ("deepbacs_cp3", "bacteria, DeepBacs", f"see {_FREE}"),
        ("neurips_cellpose_default", "the NeurIPS 2022 challenge", _NC),
        ("neurips_grayscale_cyto2", "the NeurIPS 2022 challenge, from cyto2", _NC),
    ):
        yield BuiltIn(name, description, 3, name, terms=terms)
    groups = {"CP": "Cellpose's own data", "CPx": "Cellpose's own data, another part"}
    groups |= {f"TN{k}": f"TissueNet, part {k}" for k in (1, 2, 3)}
    groups |= {f"LC{k}": f"LIVECell, part {k}" for k in (1, 2, 3, 4)}
    for name, description in groups.items():
        yield BuiltIn(name, f"model zoo of Cellpose 2: {description}", 2, name)
    yield BuiltIn("cpsam_v2", "cells and nuclei; Cellpose-SAM, second version", 4, "cpsam_v2", terms=_NC4)
    yield BuiltIn("cpsam", "cells and nuclei; Cellpose-SAM", 4, "cpsam", terms=_NC4)
    yield BuiltIn("cpdino", "cells and nuclei; on DINOv3, large", 4, "cpdino", terms=_DINO)
    yield BuiltIn("cpdino-vitb", "cells and nuclei; on DINOv3, base", 4, "cpdino-vitb", terms=_DINO)


BUILT_IN: dict[str, BuiltIn] = {entry.name: entry for entry in _built_in()}
"""The models that are known by name: those of Cellpose 3.1 and 4.2, and the one that is shipped."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, which are there.

    Attributes
    ----------
    name
        Of the model.
    weights
        The state dict.
    size
        The size model, or None.
    """

    name: str
    weights: Path
    size: Path | None


def cache_folder() -> Path:
    """Return the folder of the models: ``CELLPOSE_LOCAL_MODELS_PATH``, else ``~/.cellpose/models``."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cellpose" / "models"


def own_models() -> tuple[str, ...]:
    """Return the names of the models that a user added with Cellpose, as ``gui_models.txt`` lists them."""
    try:
        lines = (cache_folder() / GUI_LIST).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    names = dict.fromkeys(line.strip() for line in lines)
    return tuple(n for n in names if n and n not in BUILT_IN and n == Path(n).name)


def size_beside(weights: Path) -> Path | None:
    """Return the size model that Cellpose's training wrote beside weights (``NAME_size.npy``), or None."""
    path = weights.with_name(f"{weights.name}_size.npy")
    return path if path.is_file() else None


def check_name(name: str) -> None:
    """Raise `MissingError` where no model has the name; its files need not be there."""
    own = own_models()
    if name in BUILT_IN or name in own:
        return
    if name in _TRANSFORMERS:
        raise MissingError(
            f"model {name!r} is a transformer of Cellpose 3, which this package does not run: take a CPnet, such as "
            "'cyto3', or a model of Cellpose 4"
        )
    raise MissingError(f"no model {name!r}: {_hint(name)}known are {', '.join([*BUILT_IN, *own])}")


def _hint(name: str) -> str:
    """Say what an unknown name may have meant."""
    folder = cache_folder()
    if name and name == Path(name).name and (folder / name).is_file():
        return f"the file {folder / name} is not listed in {GUI_LIST}: pass its path instead, or add the name there; "
    close = get_close_matches(name, [*BUILT_IN, *own_models()], n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def check_file(path: Path) -> None:
    """Raise `InputError`, or `MissingError`, where a path is not that of a file."""
    if not path.exists():
        raise MissingError(f"no file {path}: expected the weights or the size model of a Cellpose model")
    if not path.is_file():
        raise InputError(f"{path} is no file: expected the weights or the size model of a Cellpose model")


def find_model(name: str) -> ModelFiles:
    """Return the files of a model that are there, without any network.

    Raises
    ------
    MissingError
        If no model has the name, or its weights are not there.
    """
    check_name(name)
    entry = BUILT_IN.get(name)
    folder = cache_folder() if entry is None else entry.folder
    weights = folder / (name if entry is None else entry.file)
    if not weights.is_file():
        raise MissingError(f"model {name!r} is not in {folder}: {_remedy(name, entry)}")
    if entry is None or entry.size_file is None:
        return ModelFiles(name, weights, size_beside(weights))
    size = folder / entry.size_file
    return ModelFiles(name, weights, size if size.is_file() else None)


def _remedy(name: str, entry: BuiltIn | None) -> str:
    if entry is None:
        return f"{GUI_LIST} lists it and the file is gone; add it again, or pass the path of the weights"
    if entry.shipped:
        return "it comes with the package, so install spatialdata-segment again"
    return (
        f"run `spatialdata-segment models fetch {name}`, or set {FOLDER_VARIABLE} to the folder where {entry.file} lies"
    )


def fetch_model(name: str, *, progress: bool = False, base_url: str | None = None) -> ModelFiles:
    """Download what of a model is not there: weights and size model.

    Files appear under their names only when they are complete. Many processes may call this at once: one of them
    downloads, the others wait for it.

    Parameters
    ----------
    name
        Of the model.
    progress
        Show a bar on stderr.
    base_url
        Of a mirror that has the files by their names; None: Cellpose's own.

    Raises
    ------
    MissingError
        If no model has the name, or the download failed.
    InputError
        If the cache folder cannot be written.
    """
    check_name(name)
    entry = BUILT_IN.get(name)
    if entry is not None and not entry.shipped:
        for file, url in ((entry.file, entry.url), (entry.size_file, entry.size_url)):
            if file is not None and url is not None:
                _fetch(entry, file, url if base_url is None else f"{base_url.rstrip('/')}/{file}", progress)
    return find_model(name)


def ensure_model(name: str, *, size: bool = False, progress: bool = False) -> ModelFiles:
    """Return the files of a model; what is not there is downloaded.

    Parameters
    ----------
    name
        Of the model.
    size
        The size model is needed as well: fetch it where the weights alone are there.
    progress
        Show a bar on stderr.

    Raises
    ------
    MissingError
        If no model has the name, or the download failed.
    InputError
        If the cache folder cannot be written.
    """
    check_name(name)
    entry = BUILT_IN.get(name)
    if entry is not None and not entry.shipped:
        needed = entry.files if size else (entry.file,)
        if not all((entry.folder / file).is_file() for file in needed):
            return fetch_model(name, progress=progress)
    return find_model(name)


def _fetch(entry: BuiltIn, file: str, url: str, progress: bool) -> None:
    """Download one file into the cache folder, unless it is there or another process brings it."""
    path = entry.folder / file
    try:
        download(url, path, starts=_STARTS.get(path.suffix, _STARTS[""]), progress=progress)
    except DownloadError as error:
        raise MissingError(
            f"cannot download {url} into {path.parent}: {error}. On a machine with a connection, run "
            f"`spatialdata-segment models fetch {entry.name}`, or download that address, and copy the file to {path}"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. Set {FOLDER_VARIABLE} to a folder that can be written, "
            "or make room"
        ) from error


def terms(name: str) -> str:
    """Return what to know of a model's licence."""
    return BUILT_IN[name].terms if name in BUILT_IN else "your own model"


def listed() -> list[dict[str, Any]]:
    """Return the models that are known: name, generation, file, its bytes (None: not there), what it is for."""
    known: list[tuple[str, int | None, Path, str]]
    known = [(e.name, e.generation, e.folder / e.file, e.description) for e in BUILT_IN.values()]
    known += [(name, None, cache_folder() / name, "added by the user") for name in own_models()]
    return [
        {
            "name": name,
            "generation": generation,
            "path": str(path),
            "bytes": path.stat().st_size if path.is_file() else None,
            "description": description,
        }
        for name, generation, path, description in known
    ]


def overview() -> str:
    """Return the models as a table: name, generation, whether it is there, its bytes, what it is for."""
    rows = [("name", "generation", "there", "size", "description")]
    for model in listed():
        there = model["bytes"] is not None
        size = f"{model['bytes'] / 1e6:.1f} MB" if there else "-"
        rows.append(
            (model["name"], str(model["generation"] or "-"), "yes" if there else "no", size, model["description"])
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, "", f"folder: {cache_folder()}", f"licences: Cellpose 1 to 3 {_NC}; 4 {_NC4}; nuclei-small {_OWN}"]
    )

"""What an `infer` run was asked for, from the options and from a configuration file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment._dialects import read_configuration
from spatialdata_segment._infer.models import Model, find_model
from spatialdata_segment._segment import segment
from spatialdata_segment._yaml import read_yaml
from spatialdata_segment.config import as_workflow
from spatialdata_segment.errors import InputError, SegmentationWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = "sdata", "geojson", "imagej", "tiff", "npy"
"""What can be written besides the polygons."""
_TURING = {"pipeline", "postprocess"}
OPTIONS = {"bounding_box", "pixel_size", "shard_size", "overlap_px", "n_jobs", "devices"}
"""Options of `segment` that `infer` hands on."""
RUN = {"overwrite", "resume", "progress"}
"""Options of `infer` that say how it runs."""
RESULT = "pixel_size", "bounding_box"
"""Options of `segment` that decide the result; the others decide how it is computed."""
_MODEL = "model_type", "model_path", "size_model_path", "scale", "diameter"


@dataclass(frozen=True)
class Settings:
    """All that decides what becomes of an image.

    Attributes
    ----------
    model
        What segments.
    channels
        Names or indices, in the model's order; None: those that there are.
    page, channel_last, image_type
        How a file is read: see `read_image`.
    z_index
        Plane of a stack that the image is, for `stitch`.
    formats
        Written besides the polygons, of `FORMATS`.
    keep_image
        Whether the image goes into the SpatialData store.
    options
        Of `segment`.
    run
        Of `RUN`, what a configuration file says.
    """

    model: Model
    channels: list[str | int] | None = None
    page: int | None = None
    channel_last: bool = False
    image_type: str | None = None
    z_index: int | None = None
    formats: tuple[str, ...] = ()
    keep_image: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


def settings_of(given: Mapping[str, Any], options: Mapping[str, Any]) -> Settings:
    """Return the settings of options of the command line; those that were not given are missing.

    Parameters
    ----------
    given
        Of `infer`.
    options
        Of `segment`.

    Raises
    ------
    InputError
        If options do not go together, or with the configuration file.
    """
    model = {name: given[name] for name in _MODEL if given.get(name) is not None}
    plain = {f: given[f] for f in ("channels", "page", "channel_last", "image_type", "z_index") if f in given}
    plain |= {"formats": given.get("formats", ()), "keep_image": given.get("keep_image", True)}
    file = given.get("config_file")
    if file is None:
        return Settings(find_model(model.pop("model_type", None), **model), options=dict(options), **plain)
    return _of_file(Path(file), model, plain, dict(options))


def _of_file(path: Path, model: Mapping[str, Any], plain: dict[str, Any], options: dict[str, Any]) -> Settings:
    """Return settings with what a file says; options go before it."""
    content = read_yaml(path, "configuration")
    if isinstance(content.get("configuration"), dict) and "model-type" in content:
        return _again(path, content, model, plain, options)
    found = read_configuration(path)
    options, plain = _with_options(path, found.options, options, plain)
    if content.keys() & _TURING:
        method: Any = found.workflow.cell
        rest = {k: v for k, v in model.items() if k != "model_type"}
        return Settings(find_model(model.get("model_type"), **rest, like=method), options=options, **plain)
    _refuse(path, model)
    return Settings(Model(path.stem, found.workflow), options=options, **plain)


def _with_options(
    path: Path, found: Mapping[str, Any], options: dict[str, Any], plain: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options of `segment` and those of `infer` with what a file says of the run."""
    known = {name: value for name, value in found.items() if name in OPTIONS}
    plain = plain | {"run": {name: value for name, value in found.items() if name in RUN}}
    if "channels" in found and "channels" not in plain:
        given = found["channels"]
        plain = plain | {"channels": [given] if isinstance(given, int | str) else list(given)}
    if "scratch" in found:
        warnings.warn(f"{path}: the folder for scratch is not used, infer works in its output folder",
                      SegmentationWarning, stacklevel=4)  # fmt: skip
    usual = {name: parameter.default for name, parameter in signature(segment).parameters.items()}
    rest = found.keys() - OPTIONS - RUN - {"channels", "scratch"}
    if unknown := sorted(name for name in rest if found[name] != usual[name]):
        told = ", ".join(f"{name}: {found[name]!r}" for name in unknown)
        raise InputError(
            f"{path} has options that infer does not have: {told}. Remove them, or segment a SpatialData store with "
            "`run`"
        )
    return known | options, plain


def _again(
    path: Path, content: Mapping[str, Any], model: Mapping[str, Any], plain: dict[str, Any], options: dict[str, Any]
) -> Settings:
    """Return the settings of an earlier run, from its metadata.json."""
    _refuse(path, model)
    said = dict(content["configuration"])
    try:
        workflow = as_workflow(said["workflow"])
        kept = {name: said[name] for name in ("channels", "page", "channel_last", "image_type")}
        before = {name: said[name] for name in RESULT if said[name] is not None}
    except KeyError as error:
        raise InputError(f"{path} lacks {error} of a run's configuration: expected a metadata.json of infer") from None
    return Settings(
        Model(str(content["model-type"]), workflow, note=content.get("note")), **kept | plain, options=before | options
    )


def _refuse(path: Path, model: Mapping[str, Any]) -> None:
    if model:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in model)
        raise InputError(f"{given} with {path}, which says what segments: leave one of them out")

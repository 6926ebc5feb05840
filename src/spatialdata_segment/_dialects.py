"""Configurations of other programs: scPortrait's YAML and Turing Segment's, as a workflow and options of `segment`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spatialdata_segment._request import AtLeast
from spatialdata_segment._yaml import problems, read_yaml
from spatialdata_segment.config import SizeFilter, Workflow, as_workflow
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.engine.scratch import Shared
from spatialdata_segment.errors import InputError, SegmentationWarning, is_whole
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.threshold import ThresholdNuclei
from spatialdata_segment.methods.watershed import SeededWatershed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spatialdata_segment.methods.base import Method


def _nuclei(**given: Any) -> ThresholdNuclei:
    """Return the classical nuclei; without a threshold by Otsu's of the whole image, as there."""
    if given.get("threshold") is not None:
        return ThresholdNuclei.scportrait(**given)
    changes = {k: v for k, v in given.items() if k not in ("threshold", "median_block", "median_step")}
    return ThresholdNuclei.scportrait(**changes | {"threshold": "otsu", "median_block": None})


def _cells(**given: Any) -> SeededWatershed:
    """Return the classical cells; without a threshold by Otsu's, as there."""
    return SeededWatershed.scportrait(**{"threshold": None} | given)


_CLASSICAL = (
    "threshold", "lower_quantile_normalization", "upper_quantile_normalization", "median_block", "median_step",
    "min_distance", "peak_footprint", "speckle_kernel", "dilation", "contact_filter",
)  # fmt: skip
_WATERSHED = (
    "threshold", "lower_quantile_normalization", "upper_quantile_normalization", "erosion", "dilation", "min_clip",
    "max_clip",
)  # fmt: skip
_CELLPOSE = (
    "model", "model_path", "normalize", "resample", "rescale", "diameter", "flow_threshold", "cellprob_threshold",
)  # fmt: skip
_SIZES = "min_size", "max_size"
_MASKS = {"nucleus_segmentation": "nucleus", "cytosol_segmentation": "cell"}

_Makers = dict[str, tuple["Callable[..., Method]", tuple[str, ...]]]
_SCPORTRAIT: dict[str, _Makers] = {
    "WGASegmentation": {
        "nucleus_segmentation": (_nuclei, _CLASSICAL),
        "cytosol_segmentation": (_cells, _WATERSHED),
    },
    "DAPISegmentation": {"nucleus_segmentation": (_nuclei, _CLASSICAL)},
    "CytosolSegmentationCellpose": {
        "nucleus_segmentation": (Cellpose, _CELLPOSE),
        "cytosol_segmentation": (Cellpose, _CELLPOSE),
    },
    "DAPISegmentationCellpose": {"nucleus_segmentation": (Cellpose, _CELLPOSE)},
    "CytosolOnlySegmentationCellpose": {"cytosol_segmentation": (Cellpose, _CELLPOSE)},
}
"""What makes the method of each mask of a workflow, and the parameters that it takes."""

_RULES = (
    "match_masks", "filtering_threshold_mask_matching", "filter_masks_size", "lower_quantile_normalization",
    "upper_quantile_normalization", "median_filter_size", "segmentation_channel_nuclei",
    "segmentation_channel_cytosol", "combine_nucleus_channels", "combine_cytosol_channels",
)  # fmt: skip
"""Parameters that a `Workflow` has under the same name."""
_RUN = {
    "shard_size": "shard_size", "overlap_px": "overlap_px", "threads": "n_jobs", "nGPUs": "devices", "cache": "scratch",
}  # fmt: skip
"""Parameters that `segment` has."""
_STORAGE = "chunk_size", "input_channels", "output_masks"
"""Parameters of how scPortrait stores its files."""

_TURING = {"n_postprocess_processes": "decode", "postprocess_queue_size": "queue", "n_merge_tile_processes": "write"}
"""Parts of ``n_jobs``."""


@dataclass(frozen=True)
class Configuration:
    """What a file says.

    Attributes
    ----------
    workflow
        What to run.
    options
        Keyword arguments of `segment`.
    """

    workflow: Workflow
    options: dict[str, Any] = field(default_factory=dict)

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return those of the options that another function takes, such as `predict`."""
        taken = signature(function).parameters
        return {name: value for name, value in self.options.items() if name in taken}


def read_configuration(given: str | Path | Mapping[str, Any]) -> Configuration:
    """Read a configuration of this package, of scPortrait, or of Turing Segment.

    ``configuration = read_configuration(path)``, then
    ``segment(sdata, "image", configuration.workflow, **configuration.options)``.

    Parameters
    ----------
    given
        A YAML file, or its content: the parameters of a `Workflow`; a workflow of scPortrait under its name, also with
        "Sharded" before it; or ``pipeline`` and ``postprocess`` of Turing Segment.

    Returns
    -------
    The workflow, and the options of `segment`. ``threads`` is ``n_jobs``. ``nGPUs`` is ``devices``, at most so many.
    ``overlap_px`` is raised to the method's minimum, with a warning. ``cache`` is a folder that each run has its
    ``scratch`` in. ``n_postprocess_processes``, ``postprocess_queue_size`` and ``n_merge_tile_processes`` are the parts
    "decode", "queue" and "write" of ``n_jobs``, at most as many as there are cores (of the queue as memory holds).

    Raises
    ------
    MissingError, InputError
        If the file is not there or cannot be read, or something in it is unknown or wrong; lists every problem.
    """
    content = dict(given) if isinstance(given, Mapping) else read_yaml(given, "configuration")
    content = _nulls(content)
    if blocks := [name for name in content if name.removeprefix("Sharded") in _SCPORTRAIT]:
        return _scportrait(name := _chosen(blocks), content[name], [n for n in content if n != name])
    if content and set(content) <= {"pipeline", "postprocess"}:
        return _turing(content)
    name = next(iter(content), "")
    if len(content) == 1 and (near := _nearest(name, _SCPORTRAIT)):
        raise InputError(f"{name!r} is no workflow{near}: expected {', '.join(_SCPORTRAIT)}")
    return Configuration(as_workflow(content))


def _nulls(value: Any) -> Any:
    """Replace what Python calls None, which is a text in YAML; names that YAML reads as something else are texts."""
    if isinstance(value, Mapping):
        return {str(k): _nulls(v) for k, v in value.items()}
    return None if value == "None" else value


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a question, where a known name is near."""
    found = get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _chosen(blocks: list[str]) -> str:
    """Return the workflow of a project's configuration: sharded, where it is there in both forms."""
    if len({name.removeprefix("Sharded") for name in blocks}) > 1:
        raise InputError(f"{', '.join(blocks)} are {len(blocks)} workflows, expected one: leave the others out")
    return max(blocks, key=len)


def _scportrait(name: str, block: Any, others: list[str]) -> Configuration:
    """Translate a block of scPortrait's; ``others`` of the same file are of no account."""
    makers = _SCPORTRAIT[name.removeprefix("Sharded")]
    wrong = [f"expected parameters, not {block!r}"] if not isinstance(block, Mapping) else []
    block = dict(block) if isinstance(block, Mapping) else {}
    parts = {key: block.pop(key, None) or {} for key in makers}
    known = (*makers, *_RULES, *_RUN, *_STORAGE)
    wrong += [f"{key!r} is unknown{_nearest(key, known)}" for key in block if key not in known]
    unused = [*others, *(key for key in _STORAGE if key in block)]
    flow: dict[str, Any] = {key: block[key] for key in _RULES if block.get(key) is not None}
    for key, (make, names) in makers.items():
        mask, part = _MASKS[key], parts[key]
        if not isinstance(part, Mapping):
            wrong.append(f"{key}: expected parameters, not {part!r}")
            continue
        wrong += [f"{key}.{k!r} is unknown{_nearest(k, (*names, *_SIZES))}" for k in part if k not in (*names, *_SIZES)]
        try:
            flow[mask] = make(**{k: part[k] for k in names if part.get(k) is not None})
        except ValueError as error:  # also pydantic's
            wrong.append(f"{key}: {_told(error)}")
        sizes = {k: part[k] for k in _SIZES if part.get(k) is not None}
        if sizes and flow.get("filter_masks_size"):
            try:
                flow[f"{mask}_size"] = SizeFilter(**sizes)
            except ValueError as error:
                wrong.append(f"{key}: {_told(error)}")
        else:
            unused += [f"{key}.{k}" for k in sizes]
    if block.get("output_masks") == 2 and len(makers) == 1:
        flow["duplicate_mask"] = True
        unused.remove("output_masks")
    options = {_RUN[key]: value for key, value in block.items() if key in _RUN and value is not None}
    for key, least in {"threads": 1, "nGPUs": 0, "shard_size": 1, "overlap_px": 0}.items():
        value = options.get(_RUN[key], least)
        if not (is_whole(value) and value >= least):
            wrong.append(f"{key}: expected a whole number from {least}, not {value!r}")
    if is_whole(options.get("overlap_px")):
        options["overlap_px"] = AtLeast(options["overlap_px"])
    if "scratch" in options:
        options["scratch"] = Shared(options["scratch"])
    workflow = None
    if not wrong:
        try:
            workflow = Workflow(**flow)
        except ValueError as error:
            wrong.append(_told(error))
    if workflow is None:
        raise InputError(f"{name}: {'; '.join(wrong)}")
    if unused:
        warnings.warn(
            f"{name}: not used, for they decide nothing here: {', '.join(unused)}", SegmentationWarning, stacklevel=3
        )
    return Configuration(workflow, options)


def _told(error: ValueError) -> str:
    """Return what a model finds wrong, in one line."""
    return problems(error) if isinstance(error, ValidationError) else str(error)


def _turing(content: dict[str, Any]) -> Configuration:
    """Translate a configuration of Turing Segment's."""
    if not all(isinstance(content.get(part) or {}, Mapping) for part in ("pipeline", "postprocess")):
        raise InputError("a configuration of Turing Segment: expected names and values in pipeline and postprocess")
    content = {part: {k: v for k, v in (values or {}).items() if v is not None} for part, values in content.items()}
    pipeline = content.get("pipeline", {})
    jobs: dict[str, int] = {}
    for name, part in _TURING.items():
        value = pipeline.get(name)
        if value is None:
            continue
        if not (is_whole(value) and value >= 1):
            raise InputError(f"{name}={value!r}, expected a whole number from 1")
        jobs[part] = value if part == "queue" else min(value, cores())
    try:
        method = Cellpose.from_turing(content)
    except ValueError as error:
        raise InputError(f"a configuration of Turing Segment: {_told(error)}") from error
    return Configuration(Workflow(cell=method), {"n_jobs": jobs} if jobs else {})

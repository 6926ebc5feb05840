"""Configurations of scPortrait: its five workflows, as they stand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from spatialdata_segment._problems import Problem, problems_of, short, unknown
from spatialdata_segment._request import AtLeast
from spatialdata_segment.config import SizeFilter, Workflow
from spatialdata_segment.engine.scratch import Shared
from spatialdata_segment.errors import SegmentationWarning, is_whole
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.threshold import ThresholdNuclei
from spatialdata_segment.methods.watershed import SeededWatershed

if TYPE_CHECKING:
    from spatialdata_segment._yaml import Document
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

_Makers = dict[str, tuple[Callable[..., "Method"], tuple[str, ...]]]
WORKFLOWS: dict[str, _Makers] = {
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

RULES = (
    "match_masks", "filtering_threshold_mask_matching", "filter_masks_size", "lower_quantile_normalization",
    "upper_quantile_normalization", "median_filter_size", "segmentation_channel_nuclei",
    "segmentation_channel_cytosol", "combine_nucleus_channels", "combine_cytosol_channels",
)  # fmt: skip
"""Parameters that a `Workflow` has under the same name."""
RUN = {
    "shard_size": "shard_size", "overlap_px": "overlap_px", "threads": "n_jobs", "nGPUs": "devices", "cache": "scratch",
}  # fmt: skip
"""Parameters that `segment` has."""
STORAGE = "chunk_size", "input_channels", "output_masks"
"""Parameters of how scPortrait stores its files."""
_LEAST = {"threads": 1, "nGPUs": 0, "shard_size": 1, "overlap_px": 0}


def read_scportrait(document: Document) -> tuple[Workflow, dict[str, Any]]:
    """Return the workflow and the options of `segment`; other blocks of the same file are of no account.

    Raises
    ------
    InputError
        Lists every problem.
    """
    blocks = [name for name in document.content if name.removeprefix("Sharded") in WORKFLOWS]
    if len({name.removeprefix("Sharded") for name in blocks}) > 1:
        told = f"one of {len(blocks)} workflows ({', '.join(blocks)}), expected one: leave the others out"
        raise document.error([Problem((blocks[1],), told)])
    name = max(blocks, key=len)  # sharded, where it is there in both forms
    block = _Block(name, document.content[name])
    options = block.options()
    workflow = block.workflow()
    if block.problems or workflow is None:
        raise document.error([p.below(name) for p in block.problems])
    unused = [*(other for other in document.content if other != name), *block.unused]
    if unused:
        warnings.warn(
            f"{name}: not used, for they decide nothing here: {', '.join(unused)}", SegmentationWarning, stacklevel=3
        )
    return workflow, options


class _Block:
    """One workflow's block, what is wrong with it, and what of it is not used."""

    def __init__(self, name: str, given: Any) -> None:
        self.makers = WORKFLOWS[name.removeprefix("Sharded")]
        self.problems: list[Problem] = []
        self.unused: list[str] = []
        self.block = self._mapping((), given)
        known = (*self.makers, *RULES, *RUN, *STORAGE)
        self._refuse((), self.block, known)
        if isinstance(given, Mapping):
            self.problems += [Problem((key,), "missing") for key in self.makers if key not in given]

    def options(self) -> dict[str, Any]:
        """Return what the block says of the run."""
        given = {key: value for key, value in self.block.items() if key in RUN and value is not None}
        for key, least in _LEAST.items():
            value = given.get(key, least)
            if not (is_whole(value) and value >= least):
                self.problems.append(
                    Problem((key,), f"expected a whole number from {least}, such as 100, not {short(value)}")
                )
        if not isinstance(given.get("cache", ""), str):
            self.problems.append(Problem(("cache",), f"expected a folder, not {short(given['cache'])}"))
        options = {RUN[key]: value for key, value in given.items()}
        if is_whole(options.get("overlap_px")):
            options["overlap_px"] = AtLeast(options["overlap_px"])
        if "scratch" in options:
            options["scratch"] = Shared(options["scratch"])
        return options

    def workflow(self) -> Workflow | None:
        """Return the workflow; None where something is wrong."""
        flow: dict[str, Any] = {key: self.block[key] for key in RULES if self.block.get(key) is not None}
        filtered = bool(flow.get("filter_masks_size"))
        for key, (make, names) in self.makers.items():
            part = self._mapping((key,), self.block.get(key))
            self._refuse((key,), part, (*names, *_SIZES))
            flow[_MASKS[key]] = self._made(key, make, {k: part[k] for k in names if part.get(k) is not None})
            sizes = {k: part[k] for k in _SIZES if part.get(k) is not None}
            if sizes and filtered:
                flow[f"{_MASKS[key]}_size"] = self._made(key, SizeFilter, sizes)
            else:
                self.unused += [f"{key}.{k}" for k in sizes]
        self.unused = [*(key for key in STORAGE if key in self.block), *self.unused]
        if self.block.get("output_masks") == 2 and len(self.makers) == 1:
            flow["duplicate_mask"] = True
            self.unused.remove("output_masks")
        flow = {key: value for key, value in flow.items() if value is not None}
        lacking = bool(self.problems)
        stand_in: dict[str, Method] = {"nucleus": ThresholdNuclei(), "cell": ExpandNuclei()} if lacking else {}
        try:
            workflow = Workflow(**(stand_in | flow))
        except ValueError as error:
            told = problems_of(error, Workflow, flow)
            self.problems += [p for p in told if p.path or not lacking]
            return None
        return workflow

    def _mapping(self, path: tuple[str, ...], given: Any) -> dict[str, Any]:
        if given is None and path:
            return {}
        if isinstance(given, Mapping):
            return dict(given)
        self.problems.append(Problem(path, f"expected names and values, not {short(given)}"))
        return {}

    def _refuse(self, path: tuple[str, ...], given: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self.problems += [Problem((*path, k), unknown(k, known)) for k in given if k not in known]

    def _made(self, key: str, make: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Return what is made of some parameters, or None where they are wrong."""
        try:
            return make(**given)
        except ValueError as error:  # also pydantic's
            model = {_nuclei: ThresholdNuclei, _cells: SeededWatershed}.get(make, make)
            self.problems += [p.below(key) for p in problems_of(error, model, given)]  # type: ignore[arg-type]
            return None

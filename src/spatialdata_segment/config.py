"""Workflows: which methods make which masks, and what becomes of their objects. One form for Python and YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from spatialdata_segment.core.matching import Rules
from spatialdata_segment.core.matching import SizeFilter as _SizeRule
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import Method
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.function import Function
from spatialdata_segment.methods.registry import get_method, get_workflow, register_method, register_workflow
from spatialdata_segment.methods.threshold import ThresholdNuclei


class SizeFilter(BaseModel):
    """Which sizes are kept, where a workflow's ``filter_masks_size`` is on.

    Parameters
    ----------
    min_size, max_size
        Smallest and largest size to keep, inclusive; one is enough.
    confidence_interval
        In place of bounds: the share (0 to 1) of a normal distribution of the log-areas of the whole image
        that is kept around their mean.
    unit
        "px" (pixels or voxels), "um2" or "um3" (these need the pixel size).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_size: float | None = None
    max_size: float | None = None
    confidence_interval: float | None = None
    unit: Literal["px", "um2", "um3"] = "px"

    @model_validator(mode="after")
    def _has_bound(self) -> Self:
        self.rule()
        return self

    def rule(self) -> _SizeRule:
        """Return the rule of ``core.matching``, which checks the values."""
        return _SizeRule(self.min_size, self.max_size, self.confidence_interval, self.unit)


class Workflow(BaseModel):
    """The methods of the two masks, and the rules for their objects.

    Parameters
    ----------
    nucleus, cell
        Methods, or None. A seeded cell method grows from the nuclei.
    match_masks
        Keep exact pairs of one nucleus and one cell, with one id; None: where there are two masks. False:
        independent ids, nothing dropped.
    filtering_threshold_mask_matching
        Share of a nucleus' pixels, 0 to 1, that a cell must hold to be its cell.
    multinucleated, unmatched
        "drop" or "keep": cells with several nuclei (labelled with the cell's id when kept), and objects
        without a partner.
    filter_masks_size
        Apply ``nucleus_size`` and ``cell_size``.
    nucleus_size, cell_size
        Size filters.
    duplicate_mask
        A single mask is written as both nucleus and cell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nucleus: SerializeAsAny[Method] | None = None
    cell: SerializeAsAny[Method] | None = None
    match_masks: bool | None = None
    filtering_threshold_mask_matching: float = Field(default=0.95, gt=0, le=1)
    multinucleated: Literal["drop", "keep"] = "drop"
    unmatched: Literal["drop", "keep"] = "drop"
    filter_masks_size: bool = False
    nucleus_size: SizeFilter | None = None
    cell_size: SizeFilter | None = None
    duplicate_mask: bool = False

    @field_validator("nucleus", "cell", mode="before")
    @classmethod
    def _from_dict(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"method": value}
        if isinstance(value, Mapping):
            given = dict(value)
            if "method" not in given:
                raise ValueError("method is missing: name it, as in method: threshold-nuclei")
            return get_method(given.pop("method"))(**given)
        if callable(value) and not isinstance(value, Method):
            return Function(function=value)
        return value

    @field_serializer("nucleus", "cell")
    def _to_dict(self, method: Method | None) -> dict[str, Any] | None:
        return None if method is None else {"method": method.name, **method.model_dump(mode="json")}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nucleus is None and self.cell is None:
            raise ValueError("a workflow needs a nucleus or a cell method")
        if self.nucleus is not None and self.nucleus.seeded:
            raise ValueError(f"{self.nucleus.name} grows from nuclei and cannot make them: give it as cell=")
        if self.nucleus is None and self.cell is not None and self.cell.seeded:
            raise ValueError(f"{self.cell.name} grows from nuclei: give a nucleus= method, such as ThresholdNuclei()")
        if self.duplicate_mask and self.is_pair:
            raise ValueError("duplicate_mask=True is for one mask, and this workflow has two")
        sizes = {"nucleus": self.nucleus_size, "cell": self.cell_size}
        given = [name for name, size in sizes.items() if size is not None]
        if self.filter_masks_size and not given:
            raise ValueError("filter_masks_size=True without a bound: give nucleus_size or cell_size")
        if given and not self.filter_masks_size:
            raise ValueError(f"{given[0]}_size has no effect while filter_masks_size is False: set it to True")
        for name in given:
            if getattr(self, name) is None:
                raise ValueError(f"{name}_size is given, but the workflow has no {name} method")
        return self

    @property
    def is_pair(self) -> bool:
        """True where there are two masks."""
        return self.nucleus is not None and self.cell is not None

    @property
    def matches(self) -> bool:
        """True where pairs of nucleus and cell are kept."""
        return self.is_pair and self.match_masks is not False

    def methods(self) -> dict[str, Method]:
        """Return the methods by mask, nucleus first."""
        both = {"nucleus": self.nucleus, "cell": self.cell}
        return {name: method for name, method in both.items() if method is not None}

    def rules(self, pixel_area: float | None) -> Rules:
        """Return what decides which objects are kept."""
        return Rules(
            match_masks=self.matches,
            threshold=self.filtering_threshold_mask_matching,
            multinucleated=self.multinucleated,
            unmatched=self.unmatched,
            nucleus_size=self.nucleus_size.rule() if self.nucleus_size else None,
            cell_size=self.cell_size.rule() if self.cell_size else None,
            pixel_area=pixel_area,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the candidates and their fates, JSON-like."""
        methods = {name: method.fingerprint() for name, method in self.methods().items()}
        return {**self.model_dump(mode="json"), **methods}


def as_workflow(given: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any]) -> Workflow:
    """Turn what `segment` accepts into a workflow: a name, a workflow, one method, a function, a mapping.

    Raises
    ------
    InputError
        If it is none of these, or a value in it is wrong; the message lists every problem.
    """
    if isinstance(given, str):
        return get_workflow(given)
    if isinstance(given, type) and issubclass(given, Method):
        raise InputError(f"workflow is the class {given.__name__}, expected an instance: {given.__name__}(...)")
    if isinstance(given, Workflow):
        return given
    try:
        if isinstance(given, Method):
            return Workflow(cell=given)
        if isinstance(given, Mapping):
            return Workflow(**given)
        if callable(given):
            return Workflow(cell=Function(function=given))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'workflow'}: {e['msg']}" for e in error.errors())
        raise InputError(f"workflow not valid: {problems}") from error
    raise InputError(
        f"workflow is a {type(given).__name__}, expected a name, a Workflow, a method or a function (c, y, x) -> (y, x)"
    )


for _method in (ThresholdNuclei, ExpandNuclei, Function):
    register_method(_method)
register_workflow("dapi", Workflow(nucleus=ThresholdNuclei()))

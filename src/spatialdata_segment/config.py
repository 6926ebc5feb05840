"""Workflows: which methods make which masks, and what becomes of their objects. One form for Python and YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

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

from spatialdata_segment._preprocess import AnyStep, EqualizeHistogram
from spatialdata_segment._problems import Problem, listed, nested, problems_of
from spatialdata_segment.core.matching import Rules
from spatialdata_segment.core.matching import SizeFilter as _SizeRule
from spatialdata_segment.engine.preprocess import Preprocessing
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import Method, Share
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.function import Function
from spatialdata_segment.methods.registry import get_method, get_workflow, register_method, register_workflow
from spatialdata_segment.methods.stardist.method import StarDist
from spatialdata_segment.methods.threshold import ThresholdNuclei
from spatialdata_segment.methods.watershed import SeededWatershed


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


ChannelKey = Annotated[int, Field(strict=True, ge=0)] | str
"""Name or 0-based index of a channel of the image."""


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
    segmentation_channel_nuclei, segmentation_channel_cytosol
        Name or 0-based index of the nuclear and of the membrane stain, where they are not the image's first and
        second channel. What a method's own ``channels`` name goes before; so does ``segment(channels=...)``.
    combine_nucleus_channels, combine_cytosol_channels
        At least two channels whose maximum is taken for the nuclear or the membrane stain; they go before
        ``segmentation_channel_...``.
    lower_quantile_normalization, upper_quantile_normalization
        Shares, 0 to 1, of each channel of the whole image that become 0 and 1; what lies beyond is clipped.
        A number for all channels, or a list: the nuclear, then the membrane stain. One of the two is enough:
        the other is the least or the greatest value.
    median_filter_size
        Radius in px of the disk over which the median is taken, edges repeated, after that.
    preprocess
        Further steps, in order: `SubtractBackground`, `EqualizeHistogram`, or a `Step` of your own.
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
    segmentation_channel_nuclei: ChannelKey | None = None
    segmentation_channel_cytosol: ChannelKey | None = None
    combine_nucleus_channels: tuple[ChannelKey, ...] | None = Field(default=None, min_length=2)
    combine_cytosol_channels: tuple[ChannelKey, ...] | None = Field(default=None, min_length=2)
    lower_quantile_normalization: Share | tuple[Share, ...] | None = None
    upper_quantile_normalization: Share | tuple[Share, ...] | None = None
    median_filter_size: Annotated[int, Field(strict=True, ge=1)] | None = None
    preprocess: tuple[AnyStep, ...] = ()

    @field_validator("segmentation_channel_nuclei", "segmentation_channel_cytosol", mode="before")
    @classmethod
    def _only_one(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if len(value) != 1:
            raise ValueError(
                f"{value} are {len(value)} channels, expected one: to combine several, combine_..._channels"
            )
        return value[0]

    @field_validator("nucleus", "cell", mode="before")
    @classmethod
    def _from_dict(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"method": value}
        if isinstance(value, Mapping):
            return _made(value)
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
        for low, high in self._quantiles() or ():
            if low >= high:
                raise ValueError(
                    f"lower_quantile_normalization={low} is not below upper_quantile_normalization={high}: such as "
                    "0.001 and 0.999"
                )
        if self._quantiles() is None and any(isinstance(step, EqualizeHistogram) for step in self.preprocess):
            raise ValueError(
                "EqualizeHistogram works on values from 0 to 1: give upper_quantile_normalization, such as 0.999"
            )
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

    @property
    def resumable(self) -> bool:
        """Whether an equal fingerprint means equal results, so that a run may go on from another's shards."""
        return all(m.resumable for m in self.methods().values()) and all(s.resumable for s in self.preprocess)

    def channel_rules(self) -> tuple[tuple[str | int, ...] | None, tuple[str | int, ...] | None]:
        """Return the channels of the nuclear and of the membrane stain, of which the maximum is taken, where given."""
        rules = (
            (self.combine_nucleus_channels, self.segmentation_channel_nuclei),
            (self.combine_cytosol_channels, self.segmentation_channel_cytosol),
        )
        nuclear, membrane = (several or (None if one is None else (one,)) for several, one in rules)
        return nuclear, membrane

    def _quantiles(self) -> tuple[tuple[float, float], ...] | None:
        """Return both quantiles of each channel; of one for all, if none is a list."""
        lower, upper = self.lower_quantile_normalization, self.upper_quantile_normalization
        if lower is None and upper is None:
            return None
        lows, highs = (
            given if isinstance(given, tuple) else (default if given is None else given,)
            for given, default in ((lower, 0.0), (upper, 1.0))
        )
        n = max(len(lows), len(highs))
        if {len(lows), len(highs)} - {1, n} or not (lows and highs):
            raise ValueError(
                f"lower_quantile_normalization={lower} and upper_quantile_normalization={upper} differ in length: give "
                "numbers, or a value for each channel in both"
            )
        return tuple(zip(lows * (n // len(lows)), highs * (n // len(highs)), strict=True))

    def preprocessing(self, roles: Mapping[str, tuple[int, ...]]) -> dict[str, Preprocessing]:
        """Return what is done to the pixels of each mask.

        Parameters
        ----------
        roles
            For each channel that the mask's method reads: 0 the nuclear, 1 the membrane stain, others beyond.

        Raises
        ------
        InputError
            If the quantiles are not as many as the channels.
        """
        quantiles = self._quantiles()
        listed = any(
            isinstance(q, tuple) for q in (self.lower_quantile_normalization, self.upper_quantile_normalization)
        )
        need = 1 + max((role for at in roles.values() for role in at), default=-1)
        if quantiles is not None and listed and len(quantiles) != need:
            raise InputError(
                f"{len(quantiles)} quantiles for normalization are given, and the workflow reads {need} "
                f"channel{'' if need == 1 else 's'} (0: nuclear, 1: membrane stain): give a number, or one for each"
            )
        return {
            mask: Preprocessing(
                None if quantiles is None else tuple(quantiles[role if listed else 0] for role in at),
                self.median_filter_size,
                self.preprocess,
            )
            for mask, at in roles.items()
        }

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

    def fingerprint(self, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what decides the candidates and their fates, JSON-like; ``said``: of the methods, if known."""
        methods = {name: method.fingerprint() for name, method in self.methods().items()} if said is None else said
        return {**self.model_dump(mode="json"), **methods, "preprocess": [s.fingerprint() for s in self.preprocess]}


def _made(given: Mapping[str, Any]) -> Method:
    """Make a method of its name and its parameters; every problem is told with its place."""
    parameters = {str(name): value for name, value in given.items() if name != "method"}
    if "method" not in given:
        raise ValueError("method is missing: name it, as in method: threshold-nuclei")
    if not isinstance(given["method"], str):
        raise nested([Problem(("method",), f"expected a name, as in threshold-nuclei, not {given['method']!r}")])
    try:
        kind = get_method(given["method"])
    except InputError as error:
        raise nested([Problem(("method",), str(error))]) from error
    try:
        return kind(**parameters)
    except ValidationError as error:
        raise nested(problems_of(error, kind, parameters)) from error


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
        raise InputError(f"workflow not valid: {listed(problems_of(error, Workflow, given))}") from error
    raise InputError(
        f"workflow is a {type(given).__name__}, expected a name, a Workflow, a method or a function (c, y, x) -> (y, x)"
    )


for _method in (ThresholdNuclei, ExpandNuclei, SeededWatershed, Cellpose, StarDist, Function):
    register_method(_method)
register_workflow("dapi", Workflow(nucleus=ThresholdNuclei()))
register_workflow("wga", Workflow(nucleus=ThresholdNuclei(), cell=SeededWatershed()))
register_workflow("nuclei-small", Workflow(nucleus=Cellpose("nuclei-small")))
register_workflow("cytosol_cellpose", Workflow(nucleus=Cellpose("nuclei"), cell=Cellpose("cyto2")))
register_workflow("dapi_cellpose", Workflow(nucleus=Cellpose("nuclei")))
register_workflow("cytosol_only_cellpose", Workflow(cell=Cellpose("cyto2")))
_documented: dict[str, Any] = {
    "nucleus": ThresholdNuclei.scportrait(),
    "lower_quantile_normalization": 0.001,
    "upper_quantile_normalization": 0.999,
    "median_filter_size": 4,
}
register_workflow("dapi-scportrait", Workflow(**_documented))
register_workflow(
    "wga-scportrait",
    Workflow(
        **_documented,
        cell=SeededWatershed.scportrait(),
        filter_masks_size=True,
        nucleus_size=SizeFilter(min_size=200, max_size=1000),
        cell_size=SizeFilter(min_size=200, max_size=6000),
    ),
)

"""The open route for H&E, which the names of the proprietary models `he` and `he2` stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from spatialdata_segment.errors import InputError, SegmentationError
from spatialdata_segment.methods.base import Method
from spatialdata_segment.methods.cellpose import models as cellpose
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.stardist import models as stardist
from spatialdata_segment.methods.stardist.method import StarDist
from spatialdata_segment.methods.threshold import ThresholdNuclei

STAIN = "haematoxylin"
CELLPOSE, STARDIST = "cpsam", "2D_versatile_he"


@dataclass(frozen=True)
class Route:
    """What is taken, and why not what comes before it.

    Attributes
    ----------
    method
        It gets R, G and B where it names no channels of its own.
    note
        In a sentence, for the user.
    """

    method: Method
    note: str


def find_route(settings: Mapping[str, Any] | None = None) -> Route:
    """Return the first of four methods whose parts are there; their order is fixed.

    Cellpose-SAM (``cpsam``), where cellpose 4 is installed and the weights are there or can be fetched; StarDist's
    ``2D_versatile_he``, where torch and h5py are and the model is there or can be fetched; ``nuclei-small`` on the
    deconvolved haematoxylin, where torch is; `ThresholdNuclei` on it.

    Parameters
    ----------
    settings
        Of `Cellpose`, for the routes that are networks of Cellpose.

    Raises
    ------
    InputError
        If there are settings and the route is no network of Cellpose.
    """
    given = dict(settings or {})
    tried: list[str] = []
    steps: tuple[tuple[str, Callable[[], str | None], Callable[[], Method]], ...] = (
        (f"{CELLPOSE} of Cellpose 4", _lacks_cellpose, lambda: Cellpose(CELLPOSE, **given)),
        (f"{STARDIST} of StarDist", _lacks_stardist, lambda: StarDist(STARDIST)),
        (f"nuclei-small on the {STAIN}", _lacks_torch, lambda: Cellpose("nuclei-small", channels=(STAIN,), **given)),
        (f"ThresholdNuclei on the {STAIN}", lambda: None, lambda: ThresholdNuclei(channels=(STAIN,))),
    )
    for name, lacks, make in steps:
        lacking = lacks()
        if lacking is not None:
            tried.append(f"{name}: {lacking}")
            continue
        method = make()
        if given and not isinstance(method, Cellpose):
            raise InputError(
                f"{', '.join(given)}: settings of Cellpose, and H&E is segmented by {name} here: leave them out, or "
                "give --model-path"
            )
        why = f" ({'; '.join(tried)})" if tried else ""
        return Route(method, f"its weights are proprietary; segmented by {name}{why}")
    raise AssertionError("the last step lacks nothing")


def _lacks_cellpose() -> str | None:
    try:
        found = version("cellpose")
    except PackageNotFoundError:
        return "cellpose 4 is not installed"
    if int(found.partition(".")[0]) < 4:
        return f"cellpose {found} is installed, not 4"
    try:
        cellpose.ensure_model(CELLPOSE)
    except SegmentationError:
        return "the weights are not there and cannot be fetched"
    return None


def _lacks_stardist() -> str | None:
    for package in ("torch", "h5py"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    try:
        stardist.ensure_folder(STARDIST)
    except SegmentationError:
        return "the model is not there and cannot be fetched"
    return None


def _lacks_torch() -> str | None:
    return "torch is not installed" if find_spec("torch") is None else None

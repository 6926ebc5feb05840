"""Segment the cells of SpatialData images of any size, with the same cells whatever the shards.

The public names are loaded when they are first used: the import itself is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spatialdata_segment._version import __version__

if TYPE_CHECKING:
    from spatialdata_segment import formats, pl, testing
    from spatialdata_segment._dialects import Configuration, read_configuration
    from spatialdata_segment._images import ImageFacts, read_image
    from spatialdata_segment._import import add_labels, add_polygons
    from spatialdata_segment._label_image import label_image
    from spatialdata_segment._phases import decode, predict
    from spatialdata_segment._planes import stitch_planes
    from spatialdata_segment._polygons import labels_to_polygons
    from spatialdata_segment._preprocess import EqualizeHistogram, Step, SubtractBackground
    from spatialdata_segment._preview import plan, preview
    from spatialdata_segment._raster import polygons_to_labels
    from spatialdata_segment._remote import read_remote
    from spatialdata_segment._saved import saved_configuration
    from spatialdata_segment._segment import segment
    from spatialdata_segment._verbs import filter_labels, match_nuclei
    from spatialdata_segment.config import SizeFilter, Workflow
    from spatialdata_segment.methods.base import Method
    from spatialdata_segment.methods.cellpose.method import Cellpose
    from spatialdata_segment.methods.cellpose.normalization import Normalization
    from spatialdata_segment.methods.expand import ExpandNuclei
    from spatialdata_segment.methods.function import Function
    from spatialdata_segment.methods.registry import register_method, register_workflow
    from spatialdata_segment.methods.stardist.method import StarDist
    from spatialdata_segment.methods.threshold import ThresholdNuclei
    from spatialdata_segment.methods.watershed import SeededWatershed

__all__ = [
    "Cellpose",
    "Configuration",
    "EqualizeHistogram",
    "ExpandNuclei",
    "Function",
    "ImageFacts",
    "Method",
    "Normalization",
    "SeededWatershed",
    "SizeFilter",
    "StarDist",
    "Step",
    "SubtractBackground",
    "ThresholdNuclei",
    "Workflow",
    "__version__",
    "add_labels",
    "add_polygons",
    "decode",
    "filter_labels",
    "formats",
    "label_image",
    "labels_to_polygons",
    "match_nuclei",
    "pl",
    "plan",
    "polygons_to_labels",
    "predict",
    "preview",
    "read_configuration",
    "read_image",
    "read_remote",
    "register_method",
    "register_workflow",
    "saved_configuration",
    "segment",
    "stitch_planes",
    "testing",
]

_HOME = {
    "Cellpose": "methods.cellpose.method",
    "Configuration": "_dialects",
    "EqualizeHistogram": "_preprocess",
    "ExpandNuclei": "methods.expand",
    "Function": "methods.function",
    "ImageFacts": "_images",
    "Method": "methods.base",
    "Normalization": "methods.cellpose.normalization",
    "SeededWatershed": "methods.watershed",
    "SizeFilter": "config",
    "StarDist": "methods.stardist.method",
    "Step": "_preprocess",
    "SubtractBackground": "_preprocess",
    "ThresholdNuclei": "methods.threshold",
    "Workflow": "config",
    "add_labels": "_import",
    "add_polygons": "_import",
    "decode": "_phases",
    "filter_labels": "_verbs",
    "label_image": "_label_image",
    "labels_to_polygons": "_polygons",
    "match_nuclei": "_verbs",
    "plan": "_preview",
    "polygons_to_labels": "_raster",
    "predict": "_phases",
    "preview": "_preview",
    "read_configuration": "_dialects",
    "read_image": "_images",
    "read_remote": "_remote",
    "register_method": "methods.registry",
    "register_workflow": "methods.registry",
    "saved_configuration": "_saved",
    "segment": "_segment",
    "stitch_planes": "_planes",
}


def __getattr__(name: str) -> Any:
    if name in ("formats", "pl", "testing"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__

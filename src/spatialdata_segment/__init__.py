"""Segment the cells of SpatialData images of any size, with the same cells whatever the shards."""

from spatialdata_segment._label_image import label_image
from spatialdata_segment._polygons import labels_to_polygons, polygons_to_labels
from spatialdata_segment._preview import plan, preview
from spatialdata_segment._segment import segment
from spatialdata_segment._verbs import filter_labels, match_nuclei
from spatialdata_segment._version import __version__
from spatialdata_segment.config import SizeFilter, Workflow
from spatialdata_segment.methods.base import Method
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.function import Function
from spatialdata_segment.methods.registry import register_method, register_workflow
from spatialdata_segment.methods.threshold import ThresholdNuclei

__all__ = [
    "ExpandNuclei",
    "Function",
    "Method",
    "SizeFilter",
    "ThresholdNuclei",
    "Workflow",
    "__version__",
    "filter_labels",
    "label_image",
    "labels_to_polygons",
    "match_nuclei",
    "plan",
    "polygons_to_labels",
    "preview",
    "register_method",
    "register_workflow",
    "segment",
]

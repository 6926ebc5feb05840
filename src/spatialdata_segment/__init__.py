"""Segment the cells of SpatialData images of any size, with the same cells whatever the shards."""

from spatialdata_segment._polygons import labels_to_polygons, polygons_to_labels
from spatialdata_segment._segment import segment
from spatialdata_segment._version import __version__
from spatialdata_segment.config import SizeFilter, Workflow
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.function import Function
from spatialdata_segment.methods.registry import register_method, register_workflow
from spatialdata_segment.methods.threshold import ThresholdNuclei

__all__ = [
    "ExpandNuclei",
    "Function",
    "SizeFilter",
    "ThresholdNuclei",
    "Workflow",
    "__version__",
    "labels_to_polygons",
    "polygons_to_labels",
    "register_method",
    "register_workflow",
    "segment",
]

"""Segment the cells of SpatialData images of any size, with the same cells whatever the shards."""

from spatialdata_segment._version import __version__

__all__ = ["__version__"]

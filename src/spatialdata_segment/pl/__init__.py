"""Pictures: outlines over images, planes and projections of volumes, charts of a result, its shards, previews.

Matplotlib is imported when one is drawn.
"""

from spatialdata_segment.pl._charts import density, fates, intensities, matching, sizes
from spatialdata_segment.pl._overlay import overlay, save_overlay
from spatialdata_segment.pl._preview import preview
from spatialdata_segment.pl._shards import seams, shards
from spatialdata_segment.pl._volume import maximum_projection, orthogonal_views

__all__ = [
    "density",
    "fates",
    "intensities",
    "matching",
    "maximum_projection",
    "orthogonal_views",
    "overlay",
    "preview",
    "save_overlay",
    "seams",
    "shards",
    "sizes",
]

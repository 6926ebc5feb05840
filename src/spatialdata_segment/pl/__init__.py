"""Pictures: outlines over images, planes and projections of volumes. Matplotlib is imported when one is drawn."""

from spatialdata_segment.pl._overlay import overlay, save_overlay
from spatialdata_segment.pl._volume import maximum_projection, orthogonal_views

__all__ = ["maximum_projection", "orthogonal_views", "overlay", "save_overlay"]

"""Pictures: outlines over images. Matplotlib is imported when a picture is drawn."""

from spatialdata_segment.pl._overlay import overlay, save_overlay

__all__ = ["overlay", "save_overlay"]

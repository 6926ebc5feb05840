"""Pixel sizes in µm, from what files say of lengths."""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from xml.etree.ElementTree import Element

    from tifffile import TiffFile

_UM = {
    "m": 1e6, "meter": 1e6, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0,
    "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3, "å": 1e-4, "angstrom": 1e-4,
    "pm": 1e-6, "picometer": 1e-6,
}  # fmt: skip
_LARGEST = 100.0
"""µm; a resolution in cm that says more is one of print."""


def size_of(y: Any, x: Any, y_unit: str | None, x_unit: str | None) -> tuple[float, float] | None:
    """Return ``(y, x)`` in µm; None where a number or a unit says nothing."""
    try:
        found = float(y) * _UM[str(y_unit).lower()], float(x) * _UM[str(x_unit).lower()]
    except (TypeError, ValueError, KeyError):
        return None
    return found if all(isfinite(s) and s > 0 for s in found) else None


def size_of_pixels(pixels: Element) -> tuple[float, float] | None:
    """Return the pixel size that an element ``Pixels`` of OME-XML tells; µm where it names no unit."""
    return size_of(
        pixels.get("PhysicalSizeY"),
        pixels.get("PhysicalSizeX"),
        pixels.get("PhysicalSizeYUnit", "µm"),
        pixels.get("PhysicalSizeXUnit", "µm"),
    )


def size_in_tags(tif: TiffFile) -> tuple[float, float] | None:
    """Return the pixel size of a TIFF without OME-XML: ImageJ's unit, Aperio's MPP, or a resolution in cm.

    Resolutions in inches are those of printers and screens, and are not taken.
    """
    page = tif.pages[0]
    tags: Any = page.tags  # type: ignore[union-attr]
    if tif.is_svs:
        found = re.search(r"\bMPP\s*=\s*([\d.]+)", str(tags.valueof(270)))
        return None if found is None else size_of(found[1], found[1], "µm", "µm")
    per_x, per_y = _ratio(tags.valueof(282)), _ratio(tags.valueof(283))
    if not per_x or not per_y:
        return None
    of_imagej: Mapping[str, Any] | None = tif.imagej_metadata
    if of_imagej is not None:
        unit = str(of_imagej.get("unit", "")).replace("\\u00B5", "µ")
        return size_of(1 / per_y, 1 / per_x, of_imagej.get("yunit", unit), unit)
    if tags.valueof(296) != 3:
        return None
    size = size_of(1 / per_y, 1 / per_x, "cm", "cm")
    return size if size is not None and max(size) <= _LARGEST else None


def _ratio(value: Any) -> float:
    try:
        return float(value[0]) / float(value[1])
    except (TypeError, ZeroDivisionError, IndexError):
        return 0.0

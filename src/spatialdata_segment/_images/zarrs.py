"""Zarr: plain arrays, and OME-Zarr 0.4 and 0.5 at its finest scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr

from spatialdata_segment._images.facts import Axes, ImageFacts, channel_names, checked_page, said
from spatialdata_segment._images.lazy import lazy_array
from spatialdata_segment._images.units import size_of
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import dask.array as da

_LAYOUT = "bioformats2raw.layout"


def read_zarr_image(path: Path, *, page: int | None, channel_last: bool) -> tuple[da.Array, ImageFacts]:
    """Return a plane ``(c, y, x)`` of a Zarr array or of an OME-Zarr image, lazily.

    Raises
    ------
    InputError
        If it is no Zarr, holds no image or several, or its axes are none of an image.
    """
    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # zarr raises many kinds for what is spoilt
        raise InputError(
            f"{path} cannot be read as Zarr: {error}. Expected an array, or an image of OME-Zarr"
        ) from error
    if isinstance(node, zarr.Group) and _attributes(node).get(_LAYOUT) is not None and "0" in node:
        node = node["0"]
    array, letters, names, size = _of_array(node) if isinstance(node, zarr.Array) else _of_group(node, path)
    axes = Axes.of(letters, array.shape, channel_last=channel_last, page=page, path=path)
    at = checked_page(page, axes.n_pages, said(axes), path)
    stored = array.shards or array.chunks
    plane = axes.plane(lazy_array(array, axes.blocks(stored), path), at)
    channels = channel_names(plane.shape[0], names, is_rgb="S" in axes.letters)
    return plane, ImageFacts(
        path, "zarr", axes.letters, axes.shape, page, axes.n_pages, channels, size, _is_tiled(axes, stored)
    )


_Found = tuple["zarr.Array[Any]", str, tuple["str | None", ...], "tuple[float, float] | None"]


def _of_array(array: zarr.Array[Any]) -> _Found:
    """Return an array with the letters of its axes: those that it names, else ``(q, y, x)``."""
    named: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    letters = "".join(str(n)[:1].upper() for n in named) if named and all(named) else ""
    if len(letters) != array.ndim or not {"Y", "X"} <= set(letters):
        letters = ("Q" * array.ndim + "YX")[-array.ndim :] if array.ndim > 1 else "Q"
    return array, letters, (), None


def _of_group(group: Any, path: Path) -> _Found:
    """Return the finest scale of an OME-Zarr image, or the only array of a group."""
    attributes = _attributes(group)
    if "multiscales" in attributes:
        return _of_ngff(group, attributes)
    if "spatialdata_attrs" in attributes:
        raise InputError(f"{path} is a SpatialData store: take `spatialdata-segment run {path}`, or one of its images/")
    if "plate" in attributes or "well" in attributes:
        raise InputError(f"{path} is a plate or a well: expected one of its fields, such as {path}/A/1/0")
    there = sorted(name for name, _ in group.arrays())
    if len(there) == 1:
        return _of_array(group[there[0]])
    inside = ", ".join([*there, *sorted(name for name, _ in group.groups())]) or "nothing"
    raise InputError(f"{path} is no image of OME-Zarr and holds {inside}: name one of the arrays or images in it")


def _attributes(group: zarr.Group) -> Mapping[str, Any]:
    """Return what a group says of itself: OME-Zarr 0.5 has it under a name of its own."""
    attributes: dict[str, Any] = group.attrs.asdict()
    of_ome: dict[str, Any] = attributes.get("ome", {})
    return attributes | of_ome


def _of_ngff(group: Any, attributes: Mapping[str, Any]) -> _Found:
    image = attributes["multiscales"][0]
    finest = image["datasets"][0]
    array: Any = group[finest["path"]]
    given = image.get("axes") or "tczyx"[-array.ndim :]
    axes = [a if isinstance(a, dict) else {"name": a} for a in given]
    letters = "".join(str(a["name"])[:1].upper() for a in axes)
    named = attributes.get("omero", {}).get("channels", ())
    names = tuple(c.get("label") for c in named)
    return array, letters, names, _ngff_size(axes, (finest, image))


def _ngff_size(axes: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the pixel size: the scales of the data set and of the image, in the units of the axes."""
    scale = [1.0] * len(axes)
    for part in parts:
        for step in part.get("coordinateTransformations") or ():
            if step.get("type") == "scale" and len(step.get("scale", ())) == len(axes):
                scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
    of = {str(a["name"]): (s, a.get("unit")) for a, s in zip(axes, scale, strict=True)}
    if not {"y", "x"} <= set(of):
        return None
    (y, y_unit), (x, x_unit) = of["y"], of["x"]
    return size_of(y, x, y_unit, x_unit)


def _is_tiled(axes: Axes, stored: Sequence[int]) -> bool:
    """Tell whether the chunks are small enough to read a box without much around it."""
    sides = [stored[axes.letters.index(a)] for a in "YX"]
    return sides[0] * sides[1] <= 4096 * 4096

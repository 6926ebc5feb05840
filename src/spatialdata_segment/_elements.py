"""The reader of SpatialData: what a run needs to know of an image, a region of interest, the names that are taken.

Nothing here changes an object or a store. ``_staging.py`` is the writer.
"""

from __future__ import annotations

import copy
import hashlib
import json
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import shapely
import zarr
from geopandas import GeoDataFrame
from spatialdata._core.validation import check_valid_name
from spatialdata.models import get_channel_names
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

from spatialdata_segment.errors import ExistsError, InputError, MissingError, ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from spatialdata.transformations import BaseTransformation

KINDS = ("images", "labels", "points", "shapes", "tables")
"""The kinds of elements, as spatialdata names them and their folders."""


@dataclass(frozen=True)
class ImageRef:
    """One scale of an image.

    Attributes
    ----------
    key, scale
        Where it was found; ``scale0`` is the finest.
    data
        Pixels, lazy (dask); axes ``(c, [z], y, x)``.
    channels
        Names of the channels, in order.
    transformations
        Of this scale's grid to each coordinate system; copies.
    pyramid
        Spatial shapes of this scale and of all coarser ones.
    source
        Folder of the element in the store where the pixels are those on disk, untouched; else None.
    array_path
        Folder of the zarr array of this scale, likewise.
    """

    key: str
    scale: str
    data: DataArray
    channels: tuple[str, ...]
    transformations: dict[str, BaseTransformation]
    pyramid: tuple[tuple[int, ...], ...]
    source: Path | None
    array_path: Path | None


def read_image(sdata: SpatialData, image_key: str, scale: str = "scale0") -> ImageRef:
    """Find one scale of an image.

    Raises
    ------
    MissingError
        No such image or scale; the message lists those there are.
    InputError
        The image has no pixels.
    """
    if image_key not in sdata.images:
        msg = f"no image {image_key!r} in the object; its images: {_names(sdata.images)}"
        raise MissingError(msg)
    levels = _levels(sdata.images[image_key])
    if scale not in levels:
        msg = f"image {image_key!r} has no scale {scale!r}; its scales: {_names(levels)}"
        raise MissingError(msg)
    data = levels[scale]
    dims = tuple(d for d in ("c", "z", "y", "x") if d in data.dims)
    if 0 in data.shape:
        msg = f"image {image_key!r} at {scale!r} has no pixels: {dict(data.sizes)}; expected every axis to be > 0"
        raise InputError(msg)
    coarser = list(levels.values())[list(levels).index(scale) :]
    source, array_path = _backing(sdata, image_key, data)
    lazy = data if isinstance(data.data, da.Array) else data.chunk()
    return ImageRef(
        key=image_key,
        scale=scale,
        data=lazy.transpose(*dims),
        channels=tuple(str(c) for c in get_channel_names(data)),
        transformations=_transformations(data),
        pyramid=tuple(tuple(level.sizes[d] for d in dims[1:]) for level in coarser),
        source=source,
        array_path=array_path,
    )


def resolve_channels(ref: ImageRef, channels: Sequence[str | int] | str | int) -> tuple[int, ...]:
    """Return the indices of channels that are given by name or by 0-based index, in the order given.

    Raises
    ------
    MissingError
        A name or an index that the image does not have.
    InputError
        Something that is neither, or a name that several channels bear.
    """
    wanted = [channels] if isinstance(channels, str | int | np.integer) else channels
    return tuple(_channel(ref, c) for c in wanted)


def _channel(ref: ImageRef, channel: str | int) -> int:
    names = f"its channels: {', '.join(f'{i}: {n!r}' for i, n in enumerate(ref.channels))}"
    if isinstance(channel, str):
        found = [i for i, name in enumerate(ref.channels) if name == channel]
        if not found:
            msg = f"image {ref.key!r} has no channel {channel!r}; {names}"
            raise MissingError(msg)
        if len(found) > 1:
            msg = f"image {ref.key!r} has {len(found)} channels named {channel!r}; give the index; {names}"
            raise InputError(msg)
        return found[0]
    if isinstance(channel, bool | np.bool_) or not isinstance(channel, int | np.integer):
        msg = f"channel {channel!r} is a {type(channel).__name__}; expected a name or a 0-based index; {names}"
        raise InputError(msg)
    index = operator.index(channel)
    if not 0 <= index < len(ref.channels):
        msg = f"image {ref.key!r} has no channel {index}; expected 0 to {len(ref.channels) - 1}; {names}"
        raise MissingError(msg)
    return index


def stat_fingerprint(ref: ImageRef) -> dict[str, Any] | None:
    """Return what tells, without reading pixels, whether a file-backed image has changed; None for others.

    Returns
    -------
    SHA-256 of the array's metadata and of names, sizes and times (ns) of all its chunk files, and their number.
    """
    if ref.array_path is None:
        return None
    metadata = hashlib.sha256()
    chunks = []
    for folder, _, files in os.walk(ref.array_path):
        for name in files:
            path = Path(folder, name)
            if name in {"zarr.json", ".zarray", ".zattrs"}:
                metadata.update(path.read_bytes())
                continue
            stat = path.stat()
            chunks.append(f"{path.relative_to(ref.array_path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    digest = hashlib.sha256("".join(sorted(chunks)).encode()).hexdigest()
    return {"metadata": metadata.hexdigest(), "chunks": digest, "n_chunks": len(chunks)}


def check_outputs(sdata: SpatialData, names: Mapping[str, str], overwrite: bool) -> None:
    """Check every output before anything is computed.

    Parameters
    ----------
    sdata
        The object that gets the outputs.
    names
        Name -> kind (``labels``, ``shapes`` or ``tables``).
    overwrite
        Whether elements of the same name and kind may be replaced.

    Raises
    ------
    ExistsError
        Names that are there, in memory or on disk, and may not be replaced.
    InputError
        Names that spatialdata does not take, alone or beside those there are.
    ScratchError
        A store that cannot be written to.
    """
    store = local_store(sdata)
    if store is not None:
        check_writable(store)
    there = elements_on_disk(store) | {(kind, name) for kind in KINDS for name in getattr(sdata, kind)}
    _check_names(names, {name for _, name in there})
    for kind, name in sorted(there):
        if name in names and kind != names[name]:
            msg = (
                f"{name!r} would be written as {names[name]} but names an element of {kind}, and names are unique "
                "over all kinds; choose another key_added, or rename that element"
            )
            raise ExistsError(msg)
    taken = sorted(f"{kind}/{name}" for kind, name in there if name in names)
    if taken and not overwrite:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        msg = f"{', '.join(taken[:3])}{more} exist already; choose another key_added, or give overwrite=True"
        raise ExistsError(msg)


def _check_names(names: Iterable[str], there: set[str]) -> None:
    for name in names:
        try:
            check_valid_name(name)
        except (TypeError, ValueError) as e:
            msg = f"{name!r} cannot name an element: {e} Choose another key_added"
            raise InputError(msg) from e
        alike = sorted(n for n in there.union(names) if n.lower() == name.lower() and n != name)
        if alike:
            msg = f"{name!r} differs from {alike[0]!r} in case alone, which spatialdata refuses; choose another key_added"
            raise InputError(msg)


def local_store(sdata: SpatialData) -> Path | None:
    """Return the folder of an object's store; None for an object in memory.

    Raises
    ------
    InputError
        The store is not a folder of this machine, or is gone.
    """
    if sdata.path is None:
        return None
    path = Path(sdata.path)
    if not path.is_dir():
        msg = (
            f"the object is backed by {sdata.path}, which is no folder of this machine; expected a local Zarr store. "
            "Write it to one first: sdata.write(...)"
        )
        raise InputError(msg)
    return path


def check_writable(store: Path) -> None:
    """Raise a :class:`ScratchError` where a store cannot be written to."""
    for folder in (store, *(store / kind for kind in KINDS)):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            msg = f"{folder} cannot be written to; make it writable, or sdata.write(...) the object elsewhere first"
            raise ScratchError(msg)


def elements_on_disk(store: Path | None) -> set[tuple[str, str]]:
    """Return kind and name of all elements in a store."""
    folders = () if store is None else (store / kind for kind in KINDS)
    return {
        (folder.name, entry.name)
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def root_attributes(store: Path) -> dict[str, Any]:
    """Return the attributes of a store's root group."""
    attributes: dict[str, Any] = zarr.open_group(store, mode="r", use_consolidated=False).attrs.asdict()
    return attributes


def pixel_matrix(transformation: BaseTransformation, ndim: int) -> NDArray[np.float64]:
    """Return a transformation as an affine matrix.

    Parameters
    ----------
    transformation
        Of an image's grid to a coordinate system.
    ndim
        Spatial axes, 2 or 3.

    Returns
    -------
    ``(ndim + 1, ndim + 1)``, axes ``(x, y[, z])``; takes pixels, their centres at +0.5, to the system's units.
    """
    axes = ("x", "y", "z")[:ndim]
    return np.asarray(transformation.to_affine_matrix(input_axes=axes, output_axes=axes), dtype=np.float64)


def roi_geometry(
    sdata: SpatialData, roi_key: str, ref: ImageRef, to_coordinate_system: str = "global"
) -> NDArray[np.object_] | da.Array:
    """Bring a region of interest onto an image's grid.

    Parameters
    ----------
    sdata
        Holds the region.
    roi_key
        A shapes element (polygons, or circles by centre and radius), or a labels element (any label > 0).
    ref
        The image.
    to_coordinate_system
        Where region and image meet.

    Returns
    -------
    For shapes: their geometries in pixels of the image, (x, y), pixel centres at +0.5. For labels: a lazy boolean
    array on the image's grid, axes ``([z], y, x)``.

    Raises
    ------
    MissingError
        No such region, or a coordinate system that region or image does not have.
    InputError
        Something that is no region, or labels on another grid.
    """
    if roi_key in sdata.shapes:
        return _roi_shapes(sdata.shapes[roi_key], roi_key, ref, to_coordinate_system)
    if roi_key in sdata.labels:
        return _roi_labels(sdata.labels[roi_key], roi_key, ref, to_coordinate_system)
    msg = (
        f"no shapes or labels {roi_key!r} in the object to be the region of interest; its shapes: "
        f"{_names(sdata.shapes)}; its labels: {_names(sdata.labels)}"
    )
    raise MissingError(msg)


def _roi_shapes(shapes: GeoDataFrame, key: str, ref: ImageRef, system: str) -> NDArray[np.object_]:
    to_system = pixel_matrix(_to_system(_transformations(shapes), f"shapes {key!r}", system), 2)
    of_image = pixel_matrix(_to_system(ref.transformations, f"image {ref.key!r}", system), 2)
    geometry = np.asarray(shapes.geometry.array, dtype=object)
    points = shapely.get_type_id(geometry) == shapely.GeometryType.POINT
    if points.any():
        radius = np.asarray(shapes["radius"], dtype=np.float64)
        geometry = np.where(points, shapely.buffer(geometry, radius, quad_segs=32), geometry)
    matrix = np.linalg.solve(of_image, to_system)
    pixels: NDArray[np.object_] = shapely.transform(geometry, lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2])
    return pixels


def _roi_labels(labels: DataArray | DataTree, key: str, ref: ImageRef, system: str) -> da.Array:
    ndim = len(ref.pyramid[0])
    of_image = pixel_matrix(_to_system(ref.transformations, f"image {ref.key!r}", system), ndim)
    shapes = {}
    for name, level in _levels(labels).items():
        matrix = pixel_matrix(_to_system(_transformations(level), f"labels {key!r}", system), ndim)
        shapes[name] = level.shape
        if level.shape == ref.pyramid[0] and np.allclose(matrix, of_image, rtol=1e-9, atol=1e-9):
            return da.asarray(level.data) > 0
    msg = (
        f"labels {key!r} ({shapes}) lie on no grid of image {ref.key!r} at {ref.scale!r} ({ref.pyramid[0]}) in "
        f"{system!r}; expected the same shape and transformation. Give the region as shapes "
        "(spatialdata.to_polygons), or bring it onto the grid with spatialdata.rasterize"
    )
    raise InputError(msg)


def _levels(element: DataArray | DataTree) -> dict[str, DataArray]:
    """Return the scales of a raster element, the finest first."""
    if isinstance(element, DataArray):
        return {"scale0": element}
    return {name: next(iter(node.data_vars.values())) for name, node in element.children.items()}


def _transformations(element: DataArray | GeoDataFrame) -> dict[str, BaseTransformation]:
    transformations: dict[str, BaseTransformation] = copy.deepcopy(get_transformation(element, get_all=True))
    return transformations


def _to_system(transformations: Mapping[str, BaseTransformation], what: str, system: str) -> BaseTransformation:
    if system not in transformations:
        msg = f"{what} is not in the coordinate system {system!r}; it is in: {_names(transformations)}"
        raise MissingError(msg)
    return transformations[system]


def _backing(sdata: SpatialData, key: str, data: DataArray) -> tuple[Path | None, Path | None]:
    """Return the folders of element and array where the pixels are read from the object's store, untouched."""
    array = _zarr_array(data.data)
    if sdata.path is None or array is None or not hasattr(array.store, "root"):
        return None, None
    source = Path(sdata.path) / "images" / key
    path = Path(array.store.root) / array.path
    if array.shape != data.shape or path.resolve().parent != source.resolve():
        return None, None
    return source, path


def _zarr_array(data: Any) -> zarr.Array | None:
    """Return the array of which a dask array is nothing but the reading."""
    if not isinstance(data, da.Array) or not data.name.startswith("from-zarr-"):
        return None
    array = data.dask.get(f"original-{data.name}")
    return array if isinstance(array, zarr.Array) else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "none"

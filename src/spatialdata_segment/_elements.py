"""The reader of SpatialData: what a run needs to know of an image and of a region.

Nothing here changes an object or a store. ``_outputs.py`` looks for the names that are taken,
``_staging.py`` is the writer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import shapely
import zarr
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, get_channel_names
from spatialdata.transformations import Affine, BaseTransformation, Translation, get_transformation
from spatialdata.transformations import Sequence as SequenceOf
from spatialdata.transformations.ngff.ngff_transformations import NgffBaseTransformation
from xarray import DataArray, DataTree
from zarr.storage import FsspecStore, LocalStore

from spatialdata_segment._channels import channel_indices
from spatialdata_segment._outputs import check_outputs, local_store, scales_of
from spatialdata_segment.engine.arrays import fingerprint, folder_of, zarr_array
from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box

__all__ = [
    "Grid",
    "ImageRef",
    "LabelsRef",
    "check_outputs",
    "crop_image",
    "local_store",
    "new_object",
    "packed",
    "pixel_matrix",
    "read_image",
    "read_labels",
    "read_shapes",
    "resolve_channels",
    "roi_geometry",
    "stat_fingerprint",
    "unpacked",
]


@dataclass(frozen=True)
class Grid:
    """The pixels of one scale of an image, but for their values: where a result lies.

    Attributes
    ----------
    key, scale
        Where it was found; ``scale0`` is the finest.
    channels
        Names of the channels, in order.
    transformations
        Of this scale's grid to each coordinate system; copies.
    pyramid
        Spatial shapes of this scale and of all coarser ones.
    """

    key: str
    scale: str
    channels: tuple[str, ...]
    transformations: dict[str, BaseTransformation]
    pyramid: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ImageRef(Grid):
    """One scale of an image.

    Attributes
    ----------
    data
        Pixels, lazy (dask); axes ``(c, [z], y, x)``.
    array
        The zarr array of this scale, where the pixels are those in the object's store or on a remote one, untouched.
    """

    data: DataArray
    array: zarr.Array[Any] | None


def read_image(sdata: SpatialData, image_key: str, scale: str = "scale0") -> ImageRef:
    """Find one scale of an image.

    Raises
    ------
    MissingError
        No such image or scale; the message lists those there are.
    InputError
        The image has no pixels.
    """
    if not isinstance(image_key, str):
        raise InputError(f"image_key={image_key!r}, expected the name of one image: {_names(sdata.images)}")
    if image_key not in sdata.images:
        msg = f"no image {image_key!r} in the object; its images: {_names(sdata.images)}"
        raise MissingError(msg)
    levels = scales_of(sdata.images[image_key])
    if scale not in levels:
        msg = f"image {image_key!r} has no scale {scale!r}; its scales: {_names(levels)}"
        raise MissingError(msg)
    data = levels[scale]
    dims = tuple(d for d in ("c", "z", "y", "x") if d in data.dims)
    if 0 in data.shape:
        msg = f"image {image_key!r} at {scale!r} has no pixels: {dict(data.sizes)}; every axis must be > 0"
        raise InputError(msg)
    coarser = list(levels.values())[list(levels).index(scale) :]
    lazy = data if isinstance(data.data, da.Array) else data.chunk()
    return ImageRef(
        key=image_key,
        scale=scale,
        data=lazy.transpose(*dims),
        channels=tuple(str(c) for c in get_channel_names(data)),
        transformations=_transformations(data),
        pyramid=tuple(tuple(level.sizes[d] for d in dims[1:]) for level in coarser),
        array=_backing(sdata, image_key, data),
    )


@dataclass(frozen=True)
class LabelsRef:
    """The finest scale of a labels element.

    Attributes
    ----------
    key
        Its name.
    data
        Labels, lazy (dask); axes ``([z], y, x)``.
    transformations
        To each coordinate system; copies.
    pyramid
        Spatial shapes of all scales, the finest first.
    """

    key: str
    data: DataArray
    transformations: dict[str, BaseTransformation]
    pyramid: tuple[tuple[int, ...], ...]


def read_labels(sdata: SpatialData, labels_key: str) -> LabelsRef:
    """Find a labels element; `MissingError` lists those there are."""
    if labels_key not in sdata.labels:
        msg = f"no labels {labels_key!r} in the object; its labels: {_names(sdata.labels)}"
        raise MissingError(msg)
    levels = list(scales_of(sdata.labels[labels_key]).values())
    dims = tuple(d for d in ("z", "y", "x") if d in levels[0].dims)
    data = levels[0] if isinstance(levels[0].data, da.Array) else levels[0].chunk()
    return LabelsRef(
        key=labels_key,
        data=data.transpose(*dims),
        transformations=_transformations(levels[0]),
        pyramid=tuple(tuple(level.sizes[d] for d in dims) for level in levels),
    )


@dataclass(frozen=True)
class ShapesRef:
    """A shapes element.

    Attributes
    ----------
    key
        Its name.
    data
        Its rows.
    transformations
        To each coordinate system; copies.
    """

    key: str
    data: GeoDataFrame
    transformations: dict[str, BaseTransformation]


def read_shapes(sdata: SpatialData, shapes_key: str) -> ShapesRef:
    """Find a shapes element; `MissingError` lists those there are."""
    if shapes_key not in sdata.shapes:
        msg = f"no shapes {shapes_key!r} in the object; its shapes: {_names(sdata.shapes)}"
        raise MissingError(msg)
    data = sdata.shapes[shapes_key]
    return ShapesRef(shapes_key, data, _transformations(data))


def crop_image(ref: ImageRef, box: Box) -> SpatialData:
    """Return an object that holds a part of an image, lazily, in its place in every coordinate system."""
    part = ref.data.isel(dict(zip(ref.data.dims[1:], box.slices, strict=True)))
    axes = tuple(str(d) for d in reversed(ref.data.dims[1:]))
    shift = Translation([float(n) for n in reversed(box.start)], axes=axes)
    moved = {name: SequenceOf([shift, t]) for name, t in ref.transformations.items()}
    model = Image2DModel if box.ndim == 2 else Image3DModel
    element = model.parse(part.data, dims=part.dims, c_coords=list(ref.channels), transformations=moved)
    return SpatialData(images={ref.key: element})


def resolve_channels(ref: ImageRef, channels: Sequence[str | int] | str | int) -> tuple[int, ...]:
    """Return the indices of channels that are given by name or by 0-based index, in the order given.

    Raises
    ------
    MissingError
        A name or an index that the image does not have.
    InputError
        Something that is neither, or a name that several channels bear.
    """
    return channel_indices(ref.channels, channels, f"image {ref.key!r}")


def stat_fingerprint(ref: ImageRef) -> dict[str, Any] | None:
    """Return what tells, without reading pixels, whether a stored image has changed; None where nothing does."""
    return None if ref.array is None else fingerprint(ref.array)


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
    ``(ndim + 1, ndim + 1)``, axes ``(x, y[, z])``: from pixels, their centres at +0.5, to the system's units.
    """
    axes = ("x", "y", "z")[:ndim]
    return np.asarray(transformation.to_affine_matrix(input_axes=axes, output_axes=axes), dtype=np.float64)


def of_planes(transformations: Mapping[str, BaseTransformation]) -> dict[str, BaseTransformation]:
    """Return the transformations of a volume for outlines in its planes.

    An affine matrix that keeps z apart from x and y is given without z, as `spatialdata`'s queries want it of shapes.
    """
    found = dict(transformations)
    for name, transformation in transformations.items():
        matrix = pixel_matrix(transformation, 3)
        if isinstance(transformation, Affine) and not matrix[:2, 2].any() and not matrix[2, :2].any():
            flat = matrix[np.ix_([0, 1, 3], [0, 1, 3])]
            found[name] = Affine(flat, input_axes=("x", "y"), output_axes=("x", "y"))
    return found


def roi_geometry(
    sdata: SpatialData, roi_key: str, ref: ImageRef, to_coordinate_system: str = "global"
) -> NDArray[np.object_] | da.Array:
    """Bring a region of interest onto an image's grid.

    Parameters
    ----------
    sdata
        Holds the region.
    roi_key
        A shapes element (polygons, or circles by centre and radius), or a labels element (any label > 0). Of a
        volume, shapes go through all planes.
    ref
        The image.
    to_coordinate_system
        Where region and image meet.

    Returns
    -------
    For shapes: their geometries in pixels of the image, (x, y), pixel centres at +0.5. For labels: a lazy
    boolean array on the image's grid, axes ``([z], y, x)``.

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
    if len(ref.pyramid[0]) == 3 and "z_index" in shapes.columns:
        msg = (
            f"shapes {key!r} are outlines of single planes (column z_index), and as a region of the volume {ref.key!r} "
            "shapes go through all planes; give labels as roi_key, or the shapes of one plane without that column"
        )
        raise InputError(msg)
    to_system = pixel_matrix(_to_system(_transformations(shapes), f"shapes {key!r}", system), 2)
    of_image = pixel_matrix(_to_system(ref.transformations, f"image {ref.key!r}", system), 2)
    geometry = np.asarray(shapes.geometry.array, dtype=object)
    points = shapely.get_type_id(geometry) == shapely.GeometryType.POINT
    if points.any():
        radius = np.asarray(shapes["radius"], dtype=np.float64)
        geometry = np.where(points, shapely.buffer(geometry, radius, quad_segs=32), geometry)
    matrix = np.linalg.solve(of_image, to_system)
    linear, shift = matrix[:2, :2].T, matrix[:2, 2]
    pixels: NDArray[np.object_] = shapely.transform(geometry, lambda xy: xy @ linear + shift)
    return pixels


def _roi_labels(labels: DataArray | DataTree, key: str, ref: ImageRef, system: str) -> da.Array:
    ndim = len(ref.pyramid[0])
    of_image = pixel_matrix(_to_system(ref.transformations, f"image {ref.key!r}", system), ndim)
    shapes = {}
    for name, level in scales_of(labels).items():
        matrix = pixel_matrix(_to_system(_transformations(level), f"labels {key!r}", system), ndim)
        shapes[name] = level.shape
        if level.shape == ref.pyramid[0] and np.allclose(matrix, of_image, rtol=1e-9, atol=1e-9):
            region: da.Array = level.data > 0
            return region
    msg = (
        f"labels {key!r} ({shapes}) lie on no grid of image {ref.key!r} at {ref.scale!r} ({ref.pyramid[0]}) "
        f"in {system!r}; expected the same shape and transformation. Give the region as shapes "
        "(spatialdata.to_polygons), or bring it onto the grid with spatialdata.rasterize"
    )
    raise InputError(msg)


def _transformations(element: DataArray | GeoDataFrame) -> dict[str, BaseTransformation]:
    transformations: dict[str, BaseTransformation] = copy.deepcopy(get_transformation(element, get_all=True))
    return transformations


def _to_system(of: Mapping[str, BaseTransformation], what: str, system: str) -> BaseTransformation:
    if system not in of:
        msg = f"{what} is not in the coordinate system {system!r}; it is in: {_names(of)}"
        raise MissingError(msg)
    return of[system]


def _backing(sdata: SpatialData, key: str, data: DataArray) -> zarr.Array[Any] | None:
    """Return the array of an image whose pixels are those in the object's store, or on a remote one, untouched."""
    array = zarr_array(data.data)
    if array is None or array.shape != data.shape:
        return None
    if isinstance(array.store, FsspecStore):
        return array
    if sdata.path is None or not isinstance(array.store, LocalStore):
        return None
    element = Path(sdata.path) / "images" / key
    return array if folder_of(array).resolve().parent == element.resolve() else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "none"


def new_object() -> SpatialData:
    """Return an object without elements."""
    return SpatialData()


def packed(grid: Grid) -> dict[str, Any]:
    """Return a grid JSON-like, its transformations as NGFF has them; `unpacked` is the way back."""
    axes = ("z", "y", "x")[-len(grid.pyramid[0]) :]
    systems = {
        name: t.to_ngff(input_axes=axes, output_axes=axes, output_coordinate_system_name=name).to_dict()
        for name, t in grid.transformations.items()
    }
    return {
        "key": grid.key,
        "scale": grid.scale,
        "channels": list(grid.channels),
        "pyramid": [list(shape) for shape in grid.pyramid],
        "transformations": systems,
    }


def unpacked(content: Mapping[str, Any]) -> Grid:
    """Return the grid of which `packed` made the content."""
    read = NgffBaseTransformation.from_dict
    return Grid(
        key=content["key"],
        scale=content["scale"],
        channels=tuple(content["channels"]),
        transformations={n: BaseTransformation.from_ngff(read(t)) for n, t in content["transformations"].items()},
        pyramid=tuple(tuple(shape) for shape in content["pyramid"]),
    )

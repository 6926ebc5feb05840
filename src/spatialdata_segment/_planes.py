"""`stitch_planes`: segmentations of consecutive planes that exist already, joined into 3D objects."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import geopandas as gpd
import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._polygons import check_valid, checked_geometries, checked_ids
from spatialdata_segment._request import leftovers
from spatialdata_segment._stack import stitch_label_array, stitch_polygons, threads
from spatialdata_segment._staging import Staging, recover_sdata
from spatialdata_segment._write import CHUNK
from spatialdata_segment.core.planes import check_threshold
from spatialdata_segment.errors import InputError, MissingError, SegmentationWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData


@dataclass(frozen=True)
class _Output:
    """The element to write: its name, and what goes with it."""

    name: str
    stale: list[str]


def stitch_planes(
    sdata: SpatialData,
    planes: str | Sequence[str | None],
    *,
    threshold: float = 0.5,
    kind: Literal["nucleus", "cell"] = "cell",
    key_added: str = "segmentation",
    overwrite: bool = False,
    n_jobs: int | None = None,
) -> SpatialData:
    """Join the objects of consecutive planes, segmented one by one, into 3D objects.

    An object continues the object of the plane before with which it has the highest IoU (shared area by the area
    of both together), if that reaches the threshold. One to one: of all pairs the highest IoU goes first, ties to
    the lower id in the plane before, then to the lower id; who finds no partner starts a new object. An object
    never reaches across a plane where it is missing. The result does not depend on chunks. Planes are read in
    blocks; memory is that of the blocks in flight and O(objects).

    Source: the rule of ``cellpose.utils.stitch3D``, made one to one.

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    planes
        A labels element ``(z, y, x)``; or the names of labels elements ``(y, x)``, or of shapes elements of
        polygons, in the order of z, with None for a plane without objects. The ids of polygons are those of the
        column ``cell_id``, else of an index of positive integers, else 1..n.
    threshold
        The IoU to reach, above 0 and up to 1. 0: planes keep distinct ids.
    kind
        Under which name the objects are written: "nucleus" or "cell".
    key_added, overwrite
        As for `segment`.
    n_jobs
        Threads. None: dask's scheduler as it is configured, or a distributed client where there is one.

    Returns
    -------
    ``sdata`` with labels ``(z, y, x)``, ``{key_added}_{kind}_labels``, or, of polygons, with shapes,
    ``{key_added}_{kind}_boundaries``: the columns ``geometry``, ``z_index`` and ``cell_id``, the rows in the order
    of the planes and of their rows. Ids 1..n in order of first appearance: by plane, then by old id. The
    transformations are those of the planes; along z the unit is the plane.

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything is written.
    """
    check_threshold(threshold)
    if kind not in ("nucleus", "cell"):
        raise InputError(f"kind={kind!r}: expected 'nucleus' or 'cell'")
    keys = _keys(sdata, planes)
    named = [key for key in keys if key is not None]
    with threads(n_jobs):
        if named[0] in sdata.shapes:
            output = _output(sdata, f"{key_added}_{kind}_boundaries", "shapes", key_added, named, overwrite)
            _stitch_shapes(sdata, keys, threshold, output)
        else:
            output = _output(sdata, f"{key_added}_{kind}_labels", "labels", key_added, named, overwrite)
            _stitch_labels(sdata, _volume(sdata, planes, keys), threshold, output)
    return sdata


def _keys(sdata: SpatialData, planes: str | Sequence[str | None]) -> list[str | None]:
    """Return the names of the planes, all of one kind and there."""
    keys: list[Any] = [planes] if isinstance(planes, str) or not isinstance(planes, Iterable) else list(planes)
    named = [key for key in keys if key is not None]
    if not named or not all(isinstance(key, str) for key in named):
        raise InputError(f"planes={planes!r}: expected the name of labels (z, y, x), or names of planes in z order")
    missing = [key for key in named if key not in sdata.labels and key not in sdata.shapes]
    if missing:
        raise MissingError(
            f"no labels or shapes {_list(missing)} in the object; its labels: {_list(sdata.labels)}; its shapes: "
            f"{_list(sdata.shapes)}. A plane without objects is None"
        )
    twice = [key for key, n in Counter(named).items() if n > 1]
    if twice:
        raise InputError(f"planes name {_list(twice)} more than once: expected every plane once, in z order")
    drawn = [key in sdata.shapes for key in named]
    if any(drawn) != all(drawn):
        raise InputError(f"planes {_list(named)} are labels and shapes: expected all of one kind")
    if isinstance(planes, str) and drawn[0]:
        raise InputError(f"planes={planes!r} are shapes of one plane: expected a list of names, one a plane")
    return keys


def _output(
    sdata: SpatialData, name: str, kind: str, key_added: str, inputs: Sequence[str], overwrite: bool
) -> _Output:
    """Check the name of the output; what an earlier result of the prefix left goes, unless it is an input."""
    if _elements.local_store(sdata) is not None:
        recover_sdata(sdata)
    _elements.check_outputs(sdata, {name: kind}, overwrite)
    return _Output(name, [n for n in leftovers(key_added, {name: kind}) if overwrite and n not in inputs])


def _volume(sdata: SpatialData, planes: str | Sequence[str | None], keys: Sequence[str | None]) -> _elements.LabelsRef:
    """Return the planes as one volume, lazily."""
    found = {key: _elements.read_labels(sdata, key) for key in keys if key is not None}
    first = next(iter(found.values()))
    ndim = 3 if isinstance(planes, str) else 2
    for ref in found.values():
        if ref.data.ndim != ndim:
            expected = "(z, y, x), or a list of planes" if ndim == 3 else "(y, x); give the name of a volume alone"
            raise InputError(f"labels {ref.key!r} have the axes {ref.data.dims}: expected {expected}")
        if ref.data.shape != first.data.shape or ref.transformations != first.transformations:
            raise InputError(
                f"labels {ref.key!r} {ref.data.shape} and {first.key!r} {first.data.shape} do not lie on the same "
                "grid: bring them to one shape and one transformation first"
            )
    if ndim == 3:
        return first
    pixels = [found[key].data.data if key is not None else None for key in keys]
    kinds = {p.dtype for p in pixels if p is not None}
    dtype = np.result_type(*kinds)
    # what int64 does not hold becomes negative, which is refused where it is counted
    dtype = dtype if dtype.kind in "biu" else np.dtype(np.int64)
    empty = da.zeros(first.data.shape, dtype=dtype, chunks=first.data.data.chunks)
    stack = da.stack([empty if p is None else p.astype(dtype) for p in pixels])
    pyramid = tuple((len(keys), *shape) for shape in first.pyramid)
    data = first.data.expand_dims(z=len(keys)).copy(data=stack)
    return replace(first, data=data, pyramid=pyramid)


def _stitch_labels(sdata: SpatialData, volume: _elements.LabelsRef, threshold: float, output: _Output) -> None:
    """Write the labels, streamed: a plane is never in memory as a whole."""
    pixels = volume.data.data
    flat = max(pixels.chunks[0]) == 1
    chunks = (1, CHUNK[2], CHUNK[2]) if flat else (CHUNK[3],) * 3
    stitched = stitch_label_array(pixels, threshold)
    with Staging(sdata) as staging:
        array = staging.labels(
            output.name,
            shape=pixels.shape,
            dtype=stitched.labels.dtype,
            transformations=volume.transformations,
            pyramid=volume.pyramid,
            chunks=tuple(min(c, n) for c, n in zip(chunks, pixels.shape, strict=True)),
        )
        da.store([stitched.labels.rechunk(array.chunks)], [array], lock=False)  # type: ignore[list-item]
        staging.finish_labels(output.name)
        staging.remove(output.stale)
        if not stitched.n_objects:
            warnings.warn(f"the planes are empty: {output.name!r} has no object", SegmentationWarning, stacklevel=3)
        staging.commit()


def _stitch_shapes(sdata: SpatialData, keys: Sequence[str | None], threshold: float, output: _Output) -> None:
    found = {key: _elements.read_shapes(sdata, key) for key in keys if key is not None}
    first = next(iter(found.values()))
    planes = []
    for key in keys:
        if key is None:
            planes.append((np.zeros(0, object), np.zeros(0, np.int64)))
            continue
        if found[key].transformations != first.transformations:
            raise InputError(
                f"shapes {key!r} and {first.key!r} do not share their transformations: bring them to one coordinate "
                "system first (spatialdata.transform)"
            )
        planes.append(_polygons_of(found[key]))
    ids = stitch_polygons(planes, threshold)
    columns: Mapping[str, Any] = {
        "z_index": np.repeat(np.arange(len(planes)), [len(i) for i in ids]),
        "cell_id": np.concatenate(ids),
    }
    frame = gpd.GeoDataFrame(columns, geometry=np.concatenate([polygons for polygons, _ in planes]))
    with Staging(sdata) as staging:
        staging.shapes(output.name, frame, first.transformations)
        staging.remove(output.stale)
        staging.commit()


def _polygons_of(ref: _elements.ShapesRef) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return the polygons of a plane and their ids, checked."""
    data = ref.data
    if "z_index" in data.columns:
        raise InputError(
            f"shapes {ref.key!r} have the column z_index, so that they are several planes: pass one plane each, "
            "such as the rows of one z_index, in elements of their own"
        )
    try:
        geometries, index = checked_geometries(data)
        given = data["cell_id"].to_numpy() if "cell_id" in data.columns else None
        ids = checked_ids(given, index, len(geometries)).astype(np.int64)
        check_valid(geometries)
    except InputError as error:
        raise InputError(f"shapes {ref.key!r}: {error}") from error
    return geometries, ids


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"

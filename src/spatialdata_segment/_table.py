"""The AnnData tables of a segmentation: the kept cells, and every candidate with its fate.

Builds tables in memory from arrays; of spatialdata it uses the table model alone, and it writes nothing.
Columns and axes are in the order x, y[, z]. Pixel coordinates have the centre of pixel 0 at 0.5, so that a
bounding box ``[min, max)`` of pixel indices is also the box's true extent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from spatialdata_segment.core.matching import REASONS, Fate
from spatialdata_segment.core.measure import locate
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.objects import Objects

METADATA_KEY = "segmentation"
INSTANCE_KEY = "cell_id"
REGION_KEY = "region"
KINDS = ("nucleus", "cell")


def candidates_table(
    nuclei: tuple[Objects, Fate] | None,
    cells: tuple[Objects, Fate] | None,
    *,
    regions: Mapping[str, str] | None = None,
    affine: NDArray[np.float64] | None = None,
) -> AnnData:
    """Return a row for every object found, kept or not; nuclei first, each kind in order of its ids.

    Parameters
    ----------
    nuclei, cells
        Objects of each mask and their fates, in the same order; None for a mask that there is not.
    regions
        Kind ("nucleus", "cell") -> name of the element in which its objects were found, the region of its rows:
        the image (of both; ``instance_id`` is the number of the row), or the labels whose ids are the
        candidates' (one for each kind; ``instance_id`` is that id). A table without a region makes the queries
        of spatialdata fail (scverse/spatialdata#1248); one of an image is left out by them. None: no region.
    affine
        From pixel coordinates to the coordinate system of ``obsm["spatial"]``, ``(ndim + 1, ndim + 1)`` with
        axes ``x, y[, z]``; None for pixel coordinates.

    Returns
    -------
    Without ``X``; without a row the table annotates nothing. ``obs``: ``kind``, ``candidate_id``, ``cell_id`` (final
    id, 0 if dropped), ``is_kept``, ``drop_reason`` (empty if kept), ``area`` (px), ``centroid_x/y[/z]`` (px),
    ``bbox_x_min`` ... ``bbox_z_max`` (px), ``match`` (candidate id of the partner, 0 for none),
    ``overlap_fraction``. ``obs_names``: kind and candidate id.
    """
    given = [(k, *mask) for k, mask in zip(KINDS, (nuclei, cells), strict=True) if mask is not None]
    if not given:
        raise InputError("no mask to list candidates of: give nuclei, cells or both")
    parts = [_candidate_columns(*mask) for mask in given]
    columns: dict[str, Any] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    columns["kind"] = pd.Categorical.from_codes(columns["kind"], pd.Index(KINDS))
    columns["drop_reason"] = pd.Categorical.from_codes(columns["drop_reason"], pd.Index(REASONS))
    names = np.concatenate([_names(fate.ids, f"{kind}-") for kind, _, fate in given])
    table = AnnData(obs=pd.DataFrame(columns, index=pd.Index(names, dtype=object)))
    table.obsm["spatial"] = np.concatenate([_points(objects, affine) for _, objects, _ in given])
    if regions is None or not table.n_obs:
        return TableModel.parse(table)
    table.obs[REGION_KEY] = pd.Categorical(table.obs["kind"].map(dict(regions)))
    is_shared = len(set(regions.values())) < len(regions)
    table.obs["instance_id"] = np.arange(1, table.n_obs + 1) if is_shared else table.obs["candidate_id"]
    found = table.obs[REGION_KEY].cat.categories.tolist()
    return TableModel.parse(table, region=found, region_key=REGION_KEY, instance_key="instance_id")


def cells_table(
    objects: Objects,
    fate: Fate,
    *,
    region: str,
    channels: Sequence[str] = (),
    intensities: NDArray[np.floating] | None = None,
    affine: NDArray[np.float64] | None = None,
    pixel_area: float | None = None,
    two_masks: bool = False,
    extra: Mapping[str, NDArray[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AnnData:
    """Return a row for every kept object of a mask, in order of the final ids.

    Parameters
    ----------
    objects, fate
        All objects of the mask and their fates, in the same order.
    region
        Name of the labels element that the table annotates.
    channels, intensities
        Names of the channels, and the mean values ``(n, c)`` of all ``objects`` in their order; None for a
        table without variables.
    affine
        See :func:`candidates_table`.
    pixel_area
        Area of a pixel in µm² (of a voxel in µm³), where it is known.
    two_masks
        Add ``n_nuclei``, ``nucleus_area`` (px) and ``overlap_fraction``.
    extra
        What the methods say of all ``objects`` besides: ``(n,)`` become columns, ``(n, k)`` entries of ``obsm``. Of the
        nuclei of cells: see `nucleus_columns`.
    metadata
        Kept as ``uns["segmentation"]``; see :func:`read_metadata`.

    Returns
    -------
    ``obs``: ``region``, ``cell_id`` (int64, the label), ``area`` (px), ``area_um2`` (3D: ``volume_um3``),
    ``bbox_x_min`` ... ``bbox_z_max`` (px). ``obsm["spatial"]``: centroids. ``X``: float32. Without a row the
    table annotates nothing, for spatialdata refuses a region that no row names.
    """
    if intensities is not None and intensities.shape != (len(objects), len(channels)):
        raise InputError(f"intensities of shape {intensities.shape}, expected {(len(objects), len(channels))}")
    kept = np.flatnonzero(fate.is_kept)
    kept = kept[np.argsort(fate.final_id[kept], kind="stable")]
    final, kept_objects = fate.final_id[kept], objects.take(kept)
    columns: dict[str, Any] = {
        REGION_KEY: pd.Categorical.from_codes(np.zeros(len(kept), np.int8), pd.Index([region])),
        INSTANCE_KEY: final,
        "area": kept_objects.area,
    }
    if pixel_area is not None:
        columns["area_um2" if objects.ndim == 2 else "volume_um3"] = kept_objects.area * float(pixel_area)
    columns |= _bbox_columns(kept_objects)
    if two_masks:
        columns["n_nuclei"] = fate.n_nuclei[kept]
        columns["nucleus_area"] = fate.nucleus_area[kept]
        columns["overlap_fraction"] = fate.overlap_fraction[kept]
    said = {name: np.asarray(v)[kept] for name, v in (extra or {}).items()}
    columns |= {name: v for name, v in said.items() if v.ndim == 1}
    if intensities is None:
        channels, values = (), np.zeros((len(kept), 0), np.float32)
    else:
        values = np.ascontiguousarray(intensities[kept], np.float32)
    table = AnnData(
        values,
        obs=pd.DataFrame(columns, index=pd.Index(_names(final), dtype=object)),
        var=pd.DataFrame(index=pd.Index([str(c) for c in channels], dtype=object)),
    )
    table.obsm["spatial"] = _points(kept_objects, affine)
    for name, v in said.items():
        if v.ndim > 1:
            table.obsm[name] = v
    table.uns[METADATA_KEY] = json.dumps(dict(metadata or {}), sort_keys=True, default=plain)
    if not len(kept):
        return TableModel.parse(table)
    return TableModel.parse(table, region=region, region_key=REGION_KEY, instance_key=INSTANCE_KEY)


def nucleus_columns(said: Mapping[str, NDArray[Any]], nuclei: Fate, cells: Fate) -> dict[str, NDArray[Any]]:
    """Return what a method says of nuclei for the cells that they lie in, named ``nucleus_...``.

    Parameters
    ----------
    said
        By name, of each nucleus in the order of ``nuclei``: ``(n,)`` or ``(n, k)``.
    nuclei, cells
        The fates of both masks.

    Returns
    -------
    For each of ``cells``, in their order: of several nuclei the first. A cell without one has NaN where the values are
    floats, an empty text where they are text, and else -1, for which flags become int8 and unsigned numbers int64.
    """
    at, found = locate(nuclei.ids, np.where(cells.n_nuclei > 0, cells.match, 0))
    columns = {}
    for name, values in said.items():
        dtype, none = _with_none(values.dtype)
        columns[f"nucleus_{name}"] = column = np.full((len(cells), *values.shape[1:]), none, dtype)
        column[found] = values[at[found]]
    return columns


def _with_none(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], Any]:
    """Return the dtype in which values and what stands for none have room, and that."""
    if dtype.kind in "fc":
        return dtype, np.nan
    if dtype.kind in "bu":
        return np.dtype(np.int8 if dtype.kind == "b" else np.int64), -1
    return dtype, "" if dtype.kind == "U" else -1


def read_metadata(table: AnnData) -> dict[str, Any]:
    """Return what ``uns["segmentation"]`` of a cells table holds.

    It is kept as JSON, keys sorted: nested lists, None and empty containers come back from disk as they
    were (tuples as lists), which the nested groups that anndata writes do not grant.
    """
    found: dict[str, Any] = json.loads(table.uns[METADATA_KEY])
    return found


def _candidate_columns(kind: str, objects: Objects, fate: Fate) -> dict[str, NDArray[Any]]:
    centroid = _points(objects, None)
    return {
        "kind": np.full(len(fate), KINDS.index(kind), np.int8),
        "candidate_id": fate.ids,
        INSTANCE_KEY: fate.final_id,
        "is_kept": fate.is_kept,
        "drop_reason": fate.drop_reason.astype(np.int8),
        "area": objects.area,
        **{f"centroid_{axis}": centroid[:, i] for i, axis in enumerate("xyz"[: objects.ndim])},
        **_bbox_columns(objects),
        "match": fate.match,
        "overlap_fraction": fate.overlap_fraction,
    }


def _bbox_columns(objects: Objects) -> dict[str, NDArray[np.int64]]:
    n = objects.ndim
    return {
        f"bbox_{axis}_{end}": objects.bbox[:, n - 1 - i + shift]
        for end, shift in (("min", 0), ("max", n))
        for i, axis in enumerate("xyz"[:n])
    }


def _points(objects: Objects, affine: NDArray[np.float64] | None) -> NDArray[np.float64]:
    points = objects.centroid[:, ::-1] + 0.5
    if affine is None:
        return points
    n = objects.ndim
    if affine.shape != (n + 1, n + 1):
        raise InputError(f"affine of shape {affine.shape}, expected {(n + 1, n + 1)} with axes x, y{', z' * (n == 3)}")
    # einsum without BLAS: the same bytes on any machine and for any number of rows
    moved: NDArray[np.float64] = np.einsum("nj,ij->ni", points, affine[:n, :n], optimize=False) + affine[:n, n]
    return moved


def _names(ids: NDArray[np.int64], prefix: str = "") -> NDArray[np.object_]:
    return np.array([f"{prefix}{i}" for i in ids.tolist()], dtype=object)


def plain(value: Any) -> Any:
    """Return what JSON takes, for arrays, numbers of numpy and sets."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)

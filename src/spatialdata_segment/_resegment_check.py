"""Whether new cells can stand beside those of a result: its masks, grid, units, and the values of its table.

Raises, and changes nothing; of the image a few cells are read.
"""

# dask has annotations in part: its functions count as untyped
# mypy: disallow-untyped-calls=False
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from dask.base import compute

from spatialdata_segment import _elements
from spatialdata_segment._channels import pick_channels
from spatialdata_segment._masks import measure_moments
from spatialdata_segment._table import INSTANCE_KEY
from spatialdata_segment.core.measure import locate
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from spatialdata_segment._request import Request
    from spatialdata_segment._update import Before

_SAMPLE = 12
"""Cells that are measured again, at most."""
_RTOL = 1e-4
"""Means that differ by more are others: they are kept as float32."""


def check_variables(table: AnnData, key: str, image: _elements.ImageRef) -> None:
    """Raise where a table has variables that new cells cannot have, for they are no channels of the image."""
    other = [str(n) for n in table.var_names if n not in image.channels]
    if other:
        few = f"{', '.join(map(repr, other[:5]))}{' ...' if len(other) > 5 else ''}"
        raise InputError(
            f"{key!r} has {len(other)} variables that are no channels of image {image.key!r} ({few}; its channels: "
            f"{', '.join(map(repr, image.channels))}): new cells would have no values of them. Keep them in a table of "
            f"their own, leave the channels alone in this one (table[:, {list(image.channels)!r}].copy()), resegment, "
            "and count or add the others again for the cells that there are then"
        )


def check_fits(request: Request, before: Before, known: Mapping[str, Any], system: str) -> None:
    """Raise where the new cells could not stand beside the old ones."""
    _check_masks(request, before, known)
    _check_grid(request, before, system)
    _check_source(request, before, known)
    if before.table is not None and before.table.n_obs:
        _check_pixel_size(request, before.table, known)
        _check_means(request, before, before.table)


def _check_masks(request: Request, before: Before, known: Mapping[str, Any]) -> None:
    if set(before.labels) != set(request.written):
        there, made = " and ".join(before.labels), " and ".join(request.written)
        is_double = known.get("workflow", {}).get("duplicate_mask", False)
        as_there = ["nucleus=...", "duplicate_mask=True"] if is_double else [f"{m}=..." for m in before.labels]
        raise InputError(
            f"the result {request.key_added!r} has the mask {there}, and the workflow makes {made}: expected the same, "
            f"such as Workflow({', '.join(as_there)})"
        )
    if request.workflow.is_pair and "workflow" in known:
        matched = known["workflow"].get("match_masks") is not False
        if matched != request.workflow.matches:
            raise InputError(
                f"the result {request.key_added!r} has match_masks={matched} and the workflow "
                f"{request.workflow.matches}: ids would mean two things; pass the same, or segment the whole again"
            )


def _check_source(request: Request, before: Before, known: Mapping[str, Any]) -> None:
    """Raise where the candidates are not those of this image."""
    if before.candidates is None or "region" not in before.candidates.obs:
        return
    found = {str(r) for r in before.candidates.obs["region"].unique()} - {request.ref.key}
    if not found:
        return
    told = ", ".join(sorted(found))
    if known and "workflow" not in known:
        ends = "_nucleus_labels", "_cell_labels"
        keys = sorted({n.removesuffix(end) for n in found for end in ends if n.endswith(end)})
        how = f"resegment with key_added={keys[0]!r}" if keys else "segment their region elsewhere"
        raise InputError(
            f"the result {request.key_added!r} was not segmented from an image: match_nuclei or filter_labels made it "
            f"from the labels {told}. Change those ({how}), and match or filter them again, with "
            f"key_added={request.key_added!r} and overwrite=True"
        )
    raise InputError(
        f"the candidates of {request.key_added!r} are of {told}, expected image {request.ref.key!r}: pass the image "
        "that was segmented"
    )


def _check_grid(request: Request, before: Before, system: str) -> None:
    for ref in before.labels.values():
        if ref.data.dtype.kind not in "ui":
            raise InputError(f"labels {ref.key!r} are of dtype {ref.data.dtype}, expected integers")
        matrix = ref.transformations.get(system)
        if (
            tuple(ref.data.shape) != request.info.shape
            or matrix is None
            or not np.allclose(_elements.pixel_matrix(matrix, request.info.ndim), request.matrix)
        ):
            raise InputError(
                f"labels {ref.key!r} of shape {tuple(ref.data.shape)} do not lie on the grid of image "
                f"{request.ref.key!r} at {request.ref.scale!r}, {request.info.shape}, in the coordinate system "
                f"{system!r}: pass the image and the scale that they are of"
            )


def _check_pixel_size(request: Request, table: AnnData, known: Mapping[str, Any]) -> None:
    """Raise where rows of one table would have areas of different pixels."""
    given, unit = request.info.pixel_size, "area_um2" if request.info.ndim == 2 else "volume_um3"
    if "pixel_size" in known:
        was = known["pixel_size"]
        is_same = (was is None and given is None) or _same_size(was, given)
        of = f"pixel_size={was}"
    elif unit in table.obs:  # of cells that other programs found
        area = float((table.obs[unit] / table.obs["area"]).median())
        is_same = request.pixel_area is not None and bool(np.isclose(area, request.pixel_area, rtol=1e-6, atol=0))
        of = f"pixels of {area:g} {'µm²' if request.info.ndim == 2 else 'µm³'}"
    else:
        return
    if not is_same:
        raise InputError(
            f"the result {request.key_added!r} has {of}, and this call pixel_size={given}: {unit} of old and of new "
            "cells would not mean the same. Pass that of the result, or segment the whole again"
        )


def _same_size(was: Sequence[float] | None, given: Sequence[float] | None) -> bool:
    return was is not None and given is not None and bool(np.allclose(was, given, rtol=1e-6, atol=0))


def _check_means(request: Request, before: Before, table: AnnData) -> None:
    """Raise where ``X`` holds no longer the means of the pixels: new rows would be of another kind.

    Some cells are measured again. A channel counts as changed where most of them differ: one cell may have been edited.
    """
    if not request.measured:
        return
    key = f"{request.key_added}_table"
    at = np.unique(np.linspace(0, table.n_obs - 1, min(table.n_obs, _SAMPLE)).astype(int))
    ids = table.obs[INSTANCE_KEY].to_numpy()[at].astype(np.int64)
    found = _measured_again(request, before, table, at, ids)
    values = table.X
    if values is None:
        raise InputError(f"{key!r} has no X, expected the mean intensities of its cells: put them back, then resegment")
    part = values[at]
    there = np.asarray(part.toarray() if hasattr(part, "toarray") else part, np.float64)
    known = np.isfinite(found)
    close = np.isclose(there, found, rtol=_RTOL, atol=_RTOL * np.nanmax(np.abs(found), initial=0) * 1e-3)
    differs = known & ~close
    changed = np.flatnonzero(2 * differs.sum(axis=0) > known.sum(axis=0))
    if not len(changed):
        return
    c = int(changed[0])
    row = int(np.flatnonzero(differs[:, c])[0])
    raise InputError(
        f"X of {key!r} does not hold the mean intensities of image {request.ref.key!r}: {table.var_names[c]!r} of cell "
        f"{ids[row]} is {there[row, c]:.6g} and its pixels' mean {found[row, c]:.6g}. The new cells would have means "
        "beside values of another kind. If X was transformed (scanpy's log1p, normalize_total, scale), put the means "
        "back, such as table.X = table.layers['means'].copy() or table.raw.to_adata().X, resegment, and transform X "
        "again; if the image has changed since, segment the whole again"
    )


def _measured_again(
    request: Request, before: Before, table: AnnData, at: NDArray[np.integer], ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return ``(n, c)`` means of the pixels of some cells; NaN of those that have none."""
    labels = before.labels["cell" if "cell" in request.written else "nucleus"].data.data
    image = pick_channels(request.pixels, request.measured)
    parts = []
    for box in _boxes(labels, table, at, ids):
        n = labels.ndim
        slices = tuple(slice(int(a), int(b)) for a, b in zip(box[:n], box[n:], strict=True))
        parts.append((labels[slices], image[(slice(None), *slices)]))
    means = np.full((len(ids), len(request.measured)), np.nan)
    for mean, i, (mask, pixels) in zip(means, ids, compute(*parts), strict=True):
        inside = mask == i
        if inside.any():
            mean[:] = pixels[:, inside].mean(axis=1, dtype=np.float64)
    return means


def _boxes(labels: Any, table: AnnData, at: NDArray[np.integer], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return starts and stops of some cells: of the table, or measured where its columns are gone."""
    columns = [f"bbox_{axis}_{end}" for end in ("min", "max") for axis in "zyx"[-labels.ndim :]]
    if all(c in table.obs for c in columns):
        given: NDArray[np.int64] = table.obs[columns].to_numpy(np.int64)[at]
        return given
    moments = measure_moments(labels)
    where, found = locate(moments.ids, ids)
    boxes = np.zeros((len(ids), 2 * labels.ndim), np.int64)
    boxes[found] = moments.bbox[where[found]]
    return boxes

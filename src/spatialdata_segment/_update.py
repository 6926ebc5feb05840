"""What a region segmented again changes: labels, outlines and tables, staged. Decisions are `core/exchange.py`'s.

Labels are read and written block by block; what is held is the objects, and the blocks in flight.
"""

# dask has annotations in part: its functions count as untyped
# mypy: disallow-untyped-calls=False, warn-return-any=False
from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pandas as pd

from spatialdata_segment._channels import pick_channels
from spatialdata_segment._masks import count_pairs, measure_intensities, measure_moments, relabel
from spatialdata_segment._polygons import labels_to_polygons
from spatialdata_segment._table import cells_table
from spatialdata_segment._table_merge import left_out, merge_candidates, merge_cells
from spatialdata_segment._write import (
    CHUNK,
    Outcome,
    candidates_of,
    joined,
    judge,
    own_polygons,
    proposed_columns,
    shown_columns,
)
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.exchange import among, arrivals, clipped, replaced
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.errors import SegmentationWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    import geopandas as gpd
    from anndata import AnnData
    from numpy.typing import NDArray

    from spatialdata_segment._elements import LabelsRef
    from spatialdata_segment._region import Region
    from spatialdata_segment._request import Request
    from spatialdata_segment._staging import Staging
    from spatialdata_segment.core.matching import Fate
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.mask import Mask
    from spatialdata_segment.engine.stitch import StitchedLabels

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Before:
    """A result as it is: labels by mask, shapes by name, and tables where it has them."""

    labels: dict[str, LabelsRef]
    shapes: dict[str, gpd.GeoDataFrame]
    table: AnnData | None
    candidates: AnnData | None


@dataclass(frozen=True)
class _Change:
    """What becomes of each mask.

    Attributes
    ----------
    outcome
        The new candidates, with the pixels that are left to them, and their fates; final ids follow the old ones.
    stay, gone
        Old ids.
    window
        Where new pixels may lie.
    fresh
        Final ids of the new cells in the window, 0 where an old one stays; lazy.
    is_clipped
        Of the new candidates: whether pixels were lost.
    first
        The largest old id.
    """

    outcome: Outcome
    old: dict[str, da.Array]
    stay: dict[str, Ints]
    gone: dict[str, Ints]
    window: Box
    fresh: dict[str, da.Array]
    is_clipped: dict[str, NDArray[np.bool_]]
    first: dict[str, int]
    dtype: np.dtype[Any]


def update(
    request: Request,
    masks: dict[str, Mask],
    staging: Staging,
    executor: Executor,
    statistics: Mapping[str, Mapping[str, float]],
    *,
    before: Before,
    region: Region,
) -> None:
    """Stage the elements of a result with the cells of a region replaced by those of ``masks``."""
    threads = {"scheduler": "threads", "num_workers": executor.n_jobs} if executor.client is None else {}
    with dask.config.set(threads):
        change = _decide(request, masks, before, region)
        _warn_if_none(request, change)
        said = {m: proposed_columns(mask.proposals, change.outcome.objects[m].anchor) for m, mask in masks.items()}
        for written, mask in request.written.items():
            array = _stage_labels(request, written, mask, before, change, staging)
            shown = da.from_zarr(array)[change.window.slices]
            new = da.where(shown > change.first[mask], shown, 0)
            name = f"{request.key_added}_{written}_boundaries"
            if name in before.shapes:
                _stage_shapes(request, name, mask, before.shapes[name], new, change, said[mask], staging)
            if mask == change.outcome.main and written in (mask, "cell"):
                main = new
        if before.table is not None:
            _stage_table(request, before.table, main, change, statistics, said, region, staging)
        if before.candidates is not None:
            rows = candidates_of(request, change.outcome)
            staging.table(f"{request.key_added}_candidates", merge_candidates(before.candidates, rows, change.gone))


def _decide(request: Request, masks: Mapping[str, Mask], before: Before, region: Region) -> _Change:
    linked = request.workflow.matches
    shown = {mask: written for written, mask in reversed(request.written.items())}
    old = {m: _blocks(before.labels[shown[m]].data.data) for m in masks}
    sums = {m: measure_moments(labels) for m, labels in old.items()}
    gone = replaced(sums, region.holds, linked=linked)
    stay = {m: np.setdiff1d(found.ids, gone[m]) for m, found in sums.items()}
    largest = {m: int(found.ids.max(initial=0)) for m, found in sums.items()}
    first = dict.fromkeys(masks, max(largest.values())) if linked else largest

    found = {m: joined(mask.objects, mask.covered) for m, mask in masks.items()}
    window = _window(found, request.info.shape)
    raw = {m: _candidates(mask.labels, window) for m, mask in masks.items()}
    kept = {m: relabel(old[m][window.slices].rechunk(raw[m].chunks), stay[m], stay[m], np.dtype(np.int64)) for m in raw}
    shared = {m: count_pairs(raw[m], old[m][window.slices].rechunk(raw[m].chunks)) for m in masks}
    pairs = masks["cell"].pairs if len(masks) == 2 else None
    come, covered = arrivals(found, shared, gone, region.holds, pairs if linked else None)

    free = {m: da.where(kept[m] > 0, 0, relabel(raw[m], *_themselves(found[m].ids[come[m]]))) for m in masks}
    objects = {
        m: clipped(o.take(come[m]), covered[m][come[m]], measure_moments(free[m], window.start))
        for m, o in found.items()
    }
    judged = {}
    for m, mask in masks.items():
        left = None
        if m == "cell" and len(masks) == 2:
            left = among(count_pairs(free["nucleus"], free["cell"]), objects["nucleus"].ids, objects["cell"].ids)
        none = Objects.empty(request.info.ndim)
        judged[m] = replace(mask, objects=objects[m], covered=none, pairs=left)
    outcome = judge(replace(request, region=None), judged)
    finals = {m: _following(outcome.finals(m, int(found[m].ids.max(initial=0))), first[m]) for m in masks}
    dtype = np.dtype(np.uint32 if max(int(f.max(initial=0)) for f in finals.values()) < 2**32 else np.uint64)
    dtype = np.promote_types(dtype, max((x.dtype for x in old.values()), key=lambda d: d.itemsize * (d.kind == "u")))
    if dtype.kind != "u":  # of labels that others wrote
        dtype = np.dtype(np.uint64)
    fresh = {m: relabel(free[m], found[m].ids, finals[m][found[m].ids], dtype) for m in masks}
    shifted = {m: _shifted(outcome.fate(m), first[m]) for m in masks}
    resolution = replace(outcome.resolution, nucleus=shifted.get("nucleus"), cell=shifted.get("cell"))
    lost = {m: objects[m].area < found[m].take(come[m]).area for m in masks}
    return _Change(replace(outcome, resolution=resolution), old, stay, gone, window, fresh, lost, first, dtype)


def _blocks(labels: da.Array) -> da.Array:
    return labels.rechunk(tuple(min(CHUNK[labels.ndim], n) for n in labels.shape))


def _themselves(ids: Ints) -> tuple[Ints, Ints, np.dtype[np.int64]]:
    return ids, ids, np.dtype(np.int64)


def _following(finals: NDArray[np.unsignedinteger], first: int) -> Ints:
    out: Ints = np.where(finals > 0, finals.astype(np.int64) + first, 0)
    return out


def _shifted(fate: Fate, first: int) -> Fate:
    return replace(fate, final_id=np.where(fate.is_kept, fate.final_id + first, 0))


def _window(found: Mapping[str, Objects], shape: tuple[int, ...]) -> Box:
    """Return the blocks that hold a pixel of a candidate, at least the first."""
    side, ndim = CHUNK[len(shape)], len(shape)
    boxes = np.concatenate([o.bbox[o.area > 0] for o in found.values()])
    if not len(boxes):
        return Box((0,) * ndim, tuple(min(side, n) for n in shape))
    box = Box(tuple(boxes[:, :ndim].min(axis=0).tolist()), tuple(boxes[:, ndim:].max(axis=0).tolist()))
    start = tuple(a // side * side for a in box.start)
    return Box(start, tuple(min(-(-b // side) * side, n) for b, n in zip(box.stop, shape, strict=True)))


def _candidates(labels: StitchedLabels, window: Box) -> da.Array:
    """Return the candidates' ids in a window, lazy."""
    side = CHUNK[window.ndim]
    chunks = da.core.normalize_chunks((side,) * window.ndim, window.shape)
    return da.map_blocks(
        _read_block,
        chunks=chunks,
        labels=labels,
        start=window.start,
        dtype=np.int64,
        meta=np.zeros((0,) * window.ndim, np.int64),
    )


def _read_block(*, labels: StitchedLabels, start: tuple[int, ...], block_info: dict[Any, Any]) -> Ints:
    at = block_info[None]["array-location"]
    low, high = (tuple(s + int(e[k]) for s, e in zip(start, at, strict=True)) for k in (0, 1))
    return labels.read(Box(low, high), partial=True).astype(np.int64)


def _warn_if_none(request: Request, change: _Change) -> None:
    if change.outcome.fate(change.outcome.main).is_kept.any():
        return
    n = len(change.gone[change.outcome.main])
    warnings.warn(
        f"no cell was found in the region of {request.ref.key!r}; {n} went", SegmentationWarning, stacklevel=6
    )


def _stage_labels(request: Request, written: str, mask: str, before: Before, change: _Change, staging: Staging) -> Any:
    name, ref = f"{request.key_added}_{written}_labels", before.labels[written]
    array = staging.labels(
        name,
        shape=request.info.shape,
        dtype=change.dtype,
        transformations=ref.transformations,
        pyramid=ref.pyramid,
        chunks=tuple(min(CHUNK[request.info.ndim], n) for n in request.info.shape),
    )
    kept = relabel(_blocks(ref.data.data), change.stay[mask], change.stay[mask], change.dtype)
    da.store([kept.rechunk(array.chunks)], [array], lock=False)  # type: ignore[list-item]
    slices = change.window.slices
    merged = da.where(kept[slices].rechunk(change.fresh[mask].chunks) > 0, kept[slices], change.fresh[mask])
    da.store([merged.rechunk(array.chunks)], [array], regions=[slices], lock=False)  # type: ignore[list-item]
    staging.finish_labels(name)
    return array


def _stage_shapes(
    request: Request,
    name: str,
    mask: str,
    old: gpd.GeoDataFrame,
    new: da.Array,
    change: _Change,
    said: Mapping[str, NDArray[Any]],
    staging: Staging,
) -> None:
    """Outlines of what stays as they are; of the new cells those of the pixels, or the method's own where whole."""
    start = change.window.start
    frame = labels_to_polygons(new, progress=False)
    frame["geometry"] = frame.geometry.translate(start[-1], start[-2])
    if "z_index" in frame:
        frame["z_index"] += start[0]
    fate = change.outcome.fate(mask)
    own = own_polygons(request, mask, said, fate)
    if own is not None:
        whole = own[np.isin(own.index, fate.final_id[fate.is_kept & ~change.is_clipped[mask]])]
        frame.loc[whole.index, "geometry"] = whole.geometry
    ids = old.get("cell_id", old.index)
    parts = [f for f in (old[~np.isin(ids, change.gone[mask])], frame) if len(f)]
    if not parts:
        staging.remove([name])
        return
    both = pd.concat(parts, ignore_index="z_index" in frame)
    if "z_index" in both:
        both = both.sort_values(["z_index", "cell_id"], ignore_index=True)
    both.index.name = old.index.name
    both.attrs = {}  # of a single part concat keeps the transformations too, which are given here
    staging.shapes(name, both, request.ref.transformations)


def _stage_table(
    request: Request,
    old: AnnData,
    new: da.Array,
    change: _Change,
    statistics: Mapping[str, Mapping[str, float]],
    said: Mapping[str, Mapping[str, NDArray[Any]]],
    region: Region,
    staging: Staging,
) -> None:
    main, outcome = change.outcome.main, change.outcome
    fate = outcome.fate(main)
    means = None
    if request.measured:
        image = pick_channels(request.pixels, request.measured)[(slice(None), *change.window.slices)]
        means = measure_intensities(new, image).mean(fate.final_id)
    shown = "cell" if "cell" in request.written else "nucleus"
    rows = cells_table(
        outcome.objects[main],
        fate,
        region=f"{request.key_added}_{shown}_labels",
        channels=[request.ref.channels[i] for i in request.measured],
        intensities=means,
        affine=request.matrix,
        pixel_area=request.pixel_area,
        two_masks=len(outcome.objects) == 2,
        extra=shown_columns(said, outcome),
    )
    said_of_it = {
        **request.parameters(),
        "region": region.fingerprint(),
        "statistics": statistics,
        "ids_after": change.first[main],
        "counts": {
            m: {"candidates": len(o), "kept": int(outcome.fate(m).is_kept.sum()), "replaced": len(change.gone[m])}
            for m, o in outcome.objects.items()
        },
    }
    name = f"{request.key_added}_table"
    if dropped := left_out(old):
        told = f"{', '.join(dropped)} of {name!r} left out: they were of all its cells, of which some have changed"
        warnings.warn(told, SegmentationWarning, stacklevel=6)
    staging.table(name, merge_cells(old, rows, change.gone[main], said_of_it))

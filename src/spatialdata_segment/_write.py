"""From stitched candidates to the elements of the result: labels, shapes, tables, streamed block by block."""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd

from spatialdata_segment._channels import pick_channels
from spatialdata_segment._polygons import frame_of
from spatialdata_segment._table import candidates_table, cells_table, nucleus_columns
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.contours import Outlines, merge, trace
from spatialdata_segment.core.matching import Fate, Reason, Resolution, resolve
from spatialdata_segment.core.measure import Intensities, combine_intensities, intensity_sums, locate
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.engine.entries import Entry, write_entry
from spatialdata_segment.engine.executor import shared
from spatialdata_segment.engine.memory import release
from spatialdata_segment.engine.stored import Stored
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from anndata import AnnData
    from numpy.typing import NDArray

    from spatialdata_segment._request import Request
    from spatialdata_segment._staging import Staging
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.mask import Mask
    from spatialdata_segment.engine.stitch import StitchedLabels
    from spatialdata_segment.methods.base import Method

logger = logging.getLogger(__name__)

CHUNK = {2: 1024, 3: 128}
"""Pixels along every axis of a chunk of labels on disk, at most."""


@dataclass(frozen=True)
class Outcome:
    """All candidates of each mask and what became of them."""

    objects: dict[str, Objects]
    resolution: Resolution

    def fate(self, mask: str) -> Fate:
        """Return the fates of one mask's candidates."""
        fate = self.resolution.nucleus if mask == "nucleus" else self.resolution.cell
        assert fate is not None
        return fate

    def finals(self, mask: str, n: int) -> NDArray[np.unsignedinteger]:
        """Return the final id of each candidate 0..n of a mask, 0 for what is not kept."""
        fate = self.fate(mask)
        finals = np.zeros(n + 1, self.resolution.dtype)
        finals[fate.ids] = fate.final_id  # 0 where it is not kept
        return finals

    @property
    def main(self) -> str:
        """The mask that the table annotates."""
        return "cell" if "cell" in self.objects else "nucleus"


def judge(request: Request, masks: Mapping[str, Mask]) -> Outcome:
    """Decide the fate of every candidate: covered, region, the method's own reasons, sizes, matching, ids."""
    objects, reasons = {}, {}
    for name, mask in masks.items():
        objects[name] = joined(mask.objects, mask.covered)
        reasons[name] = np.zeros(len(objects[name]), np.uint8)
        reasons[name][objects[name].area == 0] = Reason.COVERED
    pairs = masks["cell"].pairs if len(masks) == 2 else None
    if request.region is not None:
        inside = {n: request.region.holds(o.anchor) for n, o in objects.items()}
        seen = dict(inside)
        if pairs is not None:
            # a nucleus goes with its cell, wherever its own anchor lies; partners of what is inside are listed
            touched = {"nucleus": pairs.a[_among(pairs.b, objects["cell"].ids[inside["cell"]])]}
            touched["cell"] = pairs.b[_among(pairs.a, objects["nucleus"].ids[inside["nucleus"]])]
            seen = {n: inside[n] | _among(o.ids, touched[n]) for n, o in objects.items()}
            refused = {"cell": ~inside["cell"], "nucleus": ~seen["nucleus"]}
            if not request.workflow.matches:
                refused["nucleus"] = ~inside["nucleus"]
        else:
            refused = {n: ~i for n, i in inside.items()}
        for name in objects:
            reasons[name][refused[name] & (reasons[name] == 0)] = Reason.OUTSIDE_REGION
            objects[name], reasons[name] = objects[name].take(seen[name]), reasons[name][seen[name]]
        if pairs is not None:
            both = _among(pairs.a, objects["nucleus"].ids) & _among(pairs.b, objects["cell"].ids)
            pairs = type(pairs)(pairs.a[both], pairs.b[both], pairs.count[both])
    for name, code in reasons.items():
        reasons[name] = np.where(code == Reason.KEPT, objects[name].reason, code)
    resolution = resolve(
        objects.get("nucleus"),
        objects.get("cell"),
        pairs,
        request.workflow.rules(request.pixel_area),
        nucleus_reason=reasons.get("nucleus"),
        cell_reason=reasons.get("cell"),
    )
    return Outcome(objects, resolution)


def joined(objects: Objects, covered: Objects) -> Objects:
    """Return the candidates that hold pixels and those that hold none in one, in order of their ids."""
    if not len(covered):
        return objects
    order = np.argsort(np.concatenate([objects.ids, covered.ids]))
    return Objects(
        *(np.concatenate([getattr(objects, f.name), getattr(covered, f.name)])[order] for f in fields(Objects))
    )


def _among(values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin(values, wanted)


def write(
    request: Request,
    masks: dict[str, Mask],
    staging: Staging,
    executor: Executor,
    statistics: Mapping[str, Mapping[str, float]],
) -> None:
    """Decide what becomes of the candidates, and stage every element of the result.

    What is known of the objects leaves ``masks``: of a large image there are many.
    """
    outcome: Outcome | None = judge(request, masks)
    assert outcome is not None
    said = {m: proposed_columns(mask.proposals, outcome.objects[m].anchor) for m, mask in masks.items()}
    polygons = {m: own_polygons(request, m, columns, outcome.fate(m)) for m, columns in said.items()}
    finals = {m: outcome.finals(m, len(mask.objects) + len(mask.covered)) for m, mask in masks.items()}
    warn_if_empty(request.ref.key, outcome.fate(outcome.main), sum(len(o) for o in outcome.objects.values()))
    for name, mask in masks.items():
        masks[name] = mask.judged()
    dtype = outcome.resolution.dtype
    if not request.table:
        outcome = None
    release()
    ndim, shape = request.info.ndim, request.info.shape
    chunks = tuple(min(CHUNK[ndim], n) for n in shape)
    arrays = {
        name: staging.labels(
            f"{request.key_added}_{name}_labels",
            shape=shape,
            dtype=dtype,
            transformations=request.ref.transformations,
            pyramid=request.ref.pyramid,
            chunks=chunks,
        )
        for name in request.written
    }
    with ThreadPoolExecutor(1) as aside:  # a table is many small files, which the blocks need not wait for
        candidates = aside.submit(_stage_candidates, request, outcome, staging) if outcome is not None else None
        blocks = _write_blocks(request, masks, finals, arrays, chunks, executor)
        for name in request.written:
            staging.finish_labels(f"{request.key_added}_{name}_labels")
        if candidates is not None:
            candidates.result()
    if request.shapes:
        _stage_shapes(request, blocks, staging, polygons)
    if outcome is not None:
        _stage_cells(request, outcome, blocks, staging, statistics, shown_columns(said, outcome))


def proposed_columns(path: Path | None, anchors: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
    """Return what a method said of its proposals, for objects in the order of their anchors; nothing where it did not.

    ``path``: see `Mask.proposals`.
    """
    if path is None:
        return {}
    entry = Entry(path)
    names = entry.names("column_")
    if not names:
        return {}
    known = entry.read("anchors")
    side = np.maximum(known.max(axis=0, initial=0), anchors.max(axis=0, initial=0)) + 1
    flat = np.ravel_multi_index(tuple(np.asarray(known, np.int64).T), tuple(side))  # in raster order
    at = np.searchsorted(flat, np.ravel_multi_index(tuple(np.asarray(anchors, np.int64).T), tuple(side)))
    return {name.removeprefix("column_"): entry.read(name)[at] for name in names}


def shown_columns(said: Mapping[str, Mapping[str, NDArray[Any]]], outcome: Outcome) -> dict[str, NDArray[Any]]:
    """Return what the table shows of `proposed_columns`, for the objects of the main mask; of its nuclei too."""
    shown = {m: {n: v for n, v in columns.items() if not n.startswith("_")} for m, columns in said.items()}
    main = shown[outcome.main]
    if outcome.main == "nucleus" or not shown.get("nucleus"):
        return main
    return nucleus_columns(shown["nucleus"], outcome.fate("nucleus"), outcome.fate("cell")) | main


def own_polygons(
    request: Request, mask: str, columns: Mapping[str, NDArray[Any]], fate: Fate
) -> gpd.GeoDataFrame | None:
    """Return the outlines that the method has of its own for the objects that are kept, in order of their ids."""
    if not request.shapes or not columns or request.info.ndim == 3:
        return None
    kept = np.flatnonzero(fate.is_kept)
    kept = kept[np.argsort(fate.final_id[kept], kind="stable")]
    found = request.workflow.methods()[mask].polygons({name: v[kept] for name, v in columns.items()})
    if found is None or not len(kept):
        return None
    return gpd.GeoDataFrame(geometry=found, index=pd.Index(fate.final_id[kept], name="cell_id"))


@dataclass(frozen=True)
class _Target:
    """One written labels element: where its candidates are read, what they become, where they go."""

    labels: StitchedLabels
    finals: NDArray[np.unsignedinteger] | Path
    array: zarr.Array[Any]

    def final_ids(self, box: Box) -> NDArray[Any]:
        """Return the labels of a box as they are written."""
        finals = _read_finals(self.finals) if isinstance(self.finals, Path) else self.finals
        labels: NDArray[np.unsignedinteger] = finals[self.labels.read(box, partial=True)]
        return labels


@lru_cache(maxsize=2)
def _read_finals(path: Path) -> NDArray[np.unsignedinteger]:
    return Entry(path).read("finals")


@dataclass(frozen=True)
class _Spec:
    targets: dict[str, _Target]
    main: str
    shapes: bool
    chunks: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Block:
    outlines: dict[str, list[tuple[int, Outlines]]]
    intensities: Intensities | None


def _write_blocks(
    request: Request,
    masks: Mapping[str, Mask],
    finals: Mapping[str, NDArray[np.unsignedinteger]],
    arrays: Mapping[str, zarr.Array[Any]],
    chunks: tuple[int, ...],
    executor: Executor,
) -> list[_Block]:
    targets = {}
    for name, mask in request.written.items():
        labels = masks[mask].labels
        final: NDArray[np.unsignedinteger] | Path = finals[mask]
        if executor.client is not None:  # as long as the objects are many: not with the tasks
            final = labels.folder / f"{name}-{uuid4().hex}.final"
            write_entry(final, {"finals": finals[mask]})
        targets[name] = _Target(labels, final, arrays[name])
    spec = _Spec(targets, "cell" if "cell" in targets else "nucleus", request.shapes, chunks, request.info.shape)
    grid = tuple(-(-n // c) for n, c in zip(spec.shape, chunks, strict=True))
    places = list(product(*map(range, grid)))
    if not (request.table and request.measured):
        return executor.map(partial(_write_block, spec, image=None), places, "writing", at_once=executor.writers)
    stored = request.stored(request.measured)
    if stored is not None and stored.fits(chunks):
        return executor.map(partial(_write_block, spec, image=stored), places, "writing", at_once=executor.writers)
    image = pick_channels(request.pixels, request.measured)
    image = image.rechunk((len(request.measured), *chunks), threshold=1 << 40)
    written = da.map_blocks(
        _write_with_image,
        image,
        spec=shared(spec),
        dtype=object,
        chunks=((1,), *((1,) * n for n in grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    keys = [(written.name, 0, *at) for at in np.ndindex(*grid)]
    return [r.item() for r in executor.run(written.__dask_graph__(), keys, "writing", at_once=executor.writers)]


def _write_with_image(block: NDArray[Any], spec: _Spec, block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    assert block_id is not None
    out = np.empty((1,) * block.ndim, object)
    out[...] = _write_block(spec, block_id[1:], image=block)
    return out


def _write_block(spec: _Spec, at: tuple[int, ...], image: NDArray[Any] | Stored | None) -> _Block:
    """Write one chunk of every labels element; outline and measure what is in it."""
    start = tuple(i * c for i, c in zip(at, spec.chunks, strict=True))
    box = Box(start, tuple(min(a + c, n) for a, c, n in zip(start, spec.chunks, spec.shape, strict=True)))
    outlines: dict[str, list[tuple[int, Outlines]]] = {}
    intensities = None
    for name, target in spec.targets.items():
        labels = target.final_ids(box)
        if labels.any():
            target.array[box.slices] = labels
        if spec.shapes:
            planes = labels if labels.ndim == 3 else labels[None]
            first = box.start[0] if labels.ndim == 3 else 0
            outlines[name] = [(first + z, trace(p, (box.start[-2], box.start[-1]))) for z, p in enumerate(planes)]
        if image is not None and name == spec.main:
            intensities = intensity_sums(labels, image.read(box) if isinstance(image, Stored) else image)
    release()
    return _Block(outlines, intensities)


def _stage_shapes(
    request: Request, blocks: list[_Block], staging: Staging, polygons: Mapping[str, gpd.GeoDataFrame | None]
) -> None:
    for name, mask in request.written.items():
        element = f"{request.key_added}_{name}_boundaries"
        own = polygons.get(mask)
        if own is not None:
            staging.shapes(element, own, request.ref.transformations)
            continue
        planes: dict[int, list[Outlines]] = {}
        for block in blocks:
            for z, outlines in block.outlines.pop(name):  # the pieces go as soon as they are joined
                planes.setdefault(z, []).append(outlines)
        merged = {z: merge(planes.pop(z)) for z in sorted(planes)}
        if not any(len(o) for o in merged.values()):
            staging.remove([element])
            continue
        staging.shapes(element, frame_of(merged, request.info.ndim), request.ref.transformations)


def _stage_cells(
    request: Request,
    outcome: Outcome,
    blocks: list[_Block],
    staging: Staging,
    statistics: Mapping[str, Mapping[str, float]],
    extra: Mapping[str, NDArray[Any]],
) -> None:
    main = outcome.main
    objects, fate = outcome.objects[main], outcome.fate(main)
    shown = "cell" if "cell" in request.written else "nucleus"
    parts = [b.intensities for b in blocks if b.intensities is not None]
    means = _means(combine_intensities(parts), fate, request) if parts else None
    counts = {m: _counts(request.methods[m], o, outcome.fate(m)) for m, o in outcome.objects.items()}
    metadata = {**request.parameters(), "options": request.options, "statistics": statistics, "counts": counts}
    staging.table(
        f"{request.key_added}_table",
        cells_table(
            objects,
            fate,
            region=f"{request.key_added}_{shown}_labels",
            channels=[request.ref.channels[i] for i in request.measured] if means is not None else (),
            intensities=means,
            affine=request.matrix,
            pixel_area=request.pixel_area,
            two_masks=len(outcome.objects) == 2,
            extra=extra,
            metadata=metadata,
        ),
    )


def _counts(method: Method, objects: Objects, fate: Fate) -> dict[str, int]:
    """Count the candidates, what was kept of them, and how many objects of planes they are made of."""
    counts = {"candidates": len(objects), "kept": int(fate.is_kept.sum())}
    if isinstance(method, Planes):  # of each plane that one reaches it holds one
        counts["objects_of_planes"] = int(np.maximum(objects.bbox[:, 3] - objects.bbox[:, 0], 1).sum())
    return counts


def _stage_candidates(request: Request, outcome: Outcome, staging: Staging) -> None:
    staging.table(f"{request.key_added}_candidates", candidates_of(request, outcome))


def candidates_of(request: Request, outcome: Outcome) -> AnnData:
    """Return the table of all candidates of an image, of each mask 1..n."""
    objects = outcome.objects.items()
    both = {m: (replace(o, ids=np.arange(1, len(o) + 1)), _renumbered(outcome, m)) for m, o in objects}
    return candidates_table(
        both.get("nucleus"), both.get("cell"), regions=dict.fromkeys(both, request.ref.key), affine=request.matrix
    )


def _means(intensities: Intensities, fate: Fate, request: Request) -> NDArray[np.float64]:
    invalid = np.flatnonzero(intensities.invalid.any(axis=0))
    if len(invalid):
        names = [request.ref.channels[request.measured[i]] for i in invalid]
        raise InputError(
            f"channel {', '.join(names)} holds NaN or infinite pixels in {int(intensities.invalid.any(axis=1).sum())} "
            "cells, expected finite values: replace them (numpy.nan_to_num), or leave the channel out with "
            "measure_channels="
        )
    return intensities.mean(fate.final_id)


def warn_if_empty(key: str, fate: Fate, n_candidates: int) -> None:
    """Warn where nothing was kept; that is no error."""
    if fate.is_kept.any():
        return
    what = f"none of {n_candidates} candidates was kept" if n_candidates else "no object was found"
    warnings.warn(f"the segmentation of {key!r} is empty: {what}", SegmentationWarning, stacklevel=4)


def _renumbered(outcome: Outcome, mask: str) -> Fate:
    """Give the candidates the ids 1..n: in a region, which others were found depends on the shards."""
    fate = outcome.fate(mask)
    other = next((m for m in outcome.objects if m != mask), None)
    match = fate.match
    if other is not None:
        at, found = locate(outcome.fate(other).ids, match)
        match = np.where(found, at + 1, 0)
    return replace(fate, ids=np.arange(1, len(fate) + 1), match=match)

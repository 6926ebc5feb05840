"""The store of dense maps between the two phases: written with what decoding needs to know, and read again."""

from __future__ import annotations

import json
import zlib
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import shapely
import zarr
from pydantic import ValidationError

from spatialdata_segment import _elements
from spatialdata_segment._channels import Channel, roles
from spatialdata_segment._prepare import Prepared, needed_shards
from spatialdata_segment._region import BLOCK, Region
from spatialdata_segment._request import AtLeast, Request, make_plans, measured_channels, unique_channels
from spatialdata_segment.config import Workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.engine.maps import Maps, block_sums, predict_maps
from spatialdata_segment.engine.memory import check_memory
from spatialdata_segment.engine.preprocess import Measured
from spatialdata_segment.engine.scratch import Scratch, write_json
from spatialdata_segment.engine.shard import Job
from spatialdata_segment.errors import InputError, MissingError, ScratchError, is_whole
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.planes import Planes, by_planes, suited

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.methods.base import Method

MANIFEST = "maps.json"
"""Written when all maps are there: what decoding needs to know besides."""

_AFTER = frozenset(
    {
        "match_masks",
        "filtering_threshold_mask_matching",
        "multinucleated",
        "unmatched",
        "filter_masks_size",
        "nucleus_size",
        "cell_size",
        "duplicate_mask",
    }
)
"""Rules of a workflow that act on objects: maps that are kept serve for any of them."""


def check_maps(flow: Workflow) -> None:
    """Raise where a method's maps are nothing to keep."""
    for mask, method in flow.methods().items():
        if not method.maps_are_local:
            raise InputError(
                f"the {mask} method {method.name!r} labels each window by itself: it has no dense maps that could be "
                "kept and decoded apart. Use segment() without keep_maps, or a method with predict and decode"
            )


def maps_fingerprint(request: Request) -> dict[str, Any]:
    """Return what decides the content of a store of maps."""
    return {"holds": "maps", **request.fingerprint()}


@contextmanager
def opened(
    folder: Path, request: Request, executor: Executor, *, resume: bool = True, overwrite: bool = False
) -> Iterator[Scratch]:
    """Open the store of maps of a request; those of another one are only replaced with ``overwrite``."""

    def take(resume: bool) -> Scratch:
        fingerprint = maps_fingerprint(request)
        resumable, what = request.workflow.resumable, "folder of maps"
        return Scratch(
            folder, fingerprint, given=True, resume=resume, resumable=resumable, what=what, discards="overwrite=True"
        )

    try:
        store = take(True)
    except ScratchError:
        if not overwrite:
            raise
        store = take(False)
    else:
        if not resume:
            store.close()
            store = take(False)
    try:
        executor.check_folder(folder)
        yield store
    finally:
        store.close()


def with_maps(ready: Prepared, store: Scratch, executor: Executor) -> Prepared:
    """Write the maps of every mask, then what decoding needs to know; return the jobs that read them."""
    request, jobs = ready.request, {}
    (store.folder / MANIFEST).unlink(missing_ok=True)
    group = zarr.open_group(store.folder, mode="a")
    for name, job in ready.jobs.items():
        grid = job.method.maps_box(job.image, Box.whole(job.image.shape)).size
        size = int(np.prod([max(c) for c in job.plan.chunks])) * grid // int(np.prod(job.image.shape))
        shards = None if request.region is None else needed_shards(request, name)
        jobs[name] = replace(job, maps=predict_maps(job, store.part(name), shards, size, executor, name))
    _write_region(group, request.region)
    content = _manifest(replace(ready, jobs=jobs))
    write_json(store.folder / MANIFEST, {**content, "check": digest(content)})
    return replace(ready, jobs=jobs)


def _manifest(ready: Prepared) -> dict[str, Any]:
    request = ready.request
    masks = {}
    for name, job in ready.jobs.items():
        assert job.maps is not None
        original, levels = request.workflow.methods()[name], ready.measured[name]
        method = job.method.plane if isinstance(job.method, Planes) else job.method
        adapted = {k: v for k, v in method if getattr(original, k) != v}
        masks[name] = {
            "adapted": adapted,
            "fingerprint": original.fingerprint(),
            "channels": [asdict(c) for c in request.channels[name]],
            "dtype": job.image.dtype.str,
            "levels": [[asdict(s), v] for s, v in levels.levels.items()],
            "statistics": [[asdict(s), v] for s, v in levels.statistics.items()],
            "blocks": job.maps.blocks.chunks,
            "lacking": sorted(job.maps.lacking),
            "token": job.maps.token,
            "content": f"{zlib.crc32(block_sums(zarr.open_group(job.maps.folder, mode='r')).tobytes()):08x}",
        }
    plan = next(iter(request.plans.values()))
    region = request.region
    polygons = None if region is None else region.polygons
    return {
        "grid": _elements.packed(request.ref),
        "sample": _sample(request.ref),
        "dtype": request.info.dtype.str,
        "pixel_size": request.info.pixel_size,
        "region": None if region is None else ("mask" if polygons is None else shapely.to_wkb(polygons, hex=True)),
        "region_depth": None if region is None else region.depth,
        "roi_key": request.roi_key,
        "region_check": None if region is None else region.fingerprint(),
        "shard_size": int(np.prod([max(c) for c in plan.chunks])),
        "overlap_px": request.overlap_px,
        "options": {k: v for k, v in request.options.items() if k != "measure_channels"},
        "workflow": request.workflow.model_dump(mode="json"),
        "device": request.devices[0].partition(":")[0],
        "masks": masks,
    }


def _sample(ref: _elements.Grid) -> int:
    """Return a checksum of small crops spread over an image: enough to tell another one."""
    assert isinstance(ref, _elements.ImageRef)
    spots = [sorted({max(0, (2 * k + 1) * n // 6 - 8) for k in range(3)}) for n in ref.data.shape[1:]]
    crops = [ref.data.data[(slice(None), *(slice(a, a + 16) for a in at))] for at in product(*spots)]
    crc = 0
    for crop in da.compute(*crops):
        crc = zlib.crc32(np.ascontiguousarray(crop).data, crc)
    return crc


def _write_region(group: zarr.Group, region: Region | None) -> None:
    if region is None or region.mask is None:
        return
    chunks = tuple(min(BLOCK[region.mask.ndim], n) for n in region.mask.shape)
    array = group.create_array("region", shape=region.mask.shape, chunks=chunks, dtype="bool", overwrite=True)
    da.store([region.mask.rechunk(chunks)], [array], lock=False)  # type: ignore[list-item]


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        if (folder / "run.json").exists():
            raise MissingError(f"the maps in {folder} are not complete: call predict() again, it goes on from them")
        raise MissingError(f"no maps in {folder}: expected a folder that predict() wrote")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        sound = content.pop("check") == digest(content)
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ScratchError(f"{path} is damaged: call predict() again, which keeps the maps and writes it anew")
    return content


def read_workflow(kept: Mapping[str, Any]) -> Workflow:
    try:
        return Workflow(**kept["workflow"])
    except ValidationError as error:
        raise InputError(
            f"the workflow of these maps cannot be read: {error.errors()[0]['msg']}. Methods of your own must be "
            "registered (register_method), or give workflow="
        ) from error


def prepared_of(
    folder: Path,
    kept: Mapping[str, Any],
    flow: Workflow,
    sdata: SpatialData,
    executor: Executor,
    *,
    key_added: str,
    measure_channels: Sequence[str | int] | str | int | None,
    system: str,
    shard_size: int | None,
    overlap_px: int | Sequence[int] | None,
    devices: str | int | Sequence[str],
    shapes: bool,
    table: bool,
) -> Prepared:
    """Put together what the maps' manifest and the call say."""
    ref, masks = _image_of(sdata, kept), kept["masks"]
    _check_rules(flow, kept["workflow"])
    if system not in ref.transformations:
        raise InputError(
            f"the maps have no coordinate system {system!r}: expected one of {', '.join(sorted(ref.transformations))}"
        )
    shape = ref.pyramid[0]
    size = kept["pixel_size"]
    info = ImageInfo(shape, np.dtype(kept["dtype"]), None if size is None else tuple(size))
    images = {m: replace(info, dtype=np.dtype(k["dtype"]), n_channels=len(k["channels"])) for m, k in masks.items()}
    before = {m: Measured(_numbers(k["levels"]), _numbers(k["statistics"])) for m, k in masks.items()}
    methods = suited({m: _adapted(m, flow, kept, images, before) for m in flow.methods()}, shape)
    measured = {m: before[m] for m in methods}
    overlap = kept["overlap_px"] if overlap_px is None else overlap_px
    if overlap_px is None and is_whole(overlap):
        overlap = AtLeast(overlap)  # as predict took it
    channels = {m: tuple(Channel(tuple(c["indices"]), c["stain"]) for c in masks[m]["channels"]) for m in methods}
    preprocessing = flow.preprocessing({m: roles(methods[m], m, len(c)) for m, c in channels.items()})
    plans = make_plans(methods, info, kept["shard_size"] if shard_size is None else shard_size, overlap)
    lacking = any(masks[m]["lacking"] for m in methods) and isinstance(ref, _elements.ImageRef)
    on_device = any(m.decodes_on_device or (lacking and m.uses_device) for m in methods.values())
    here = executor.devices(devices, used=on_device)
    request = Request(
        ref=ref,
        info=info,
        workflow=flow,
        methods=methods,
        channels=channels,
        preprocessing=preprocessing,
        images=images,
        plans=plans,
        region=_region(folder, kept),
        measured=_measured(ref, measure_channels),
        matrix=_elements.pixel_matrix(ref.transformations[system], len(shape)),
        key_added=key_added,
        shapes=shapes,
        table=table,
        roi_key=kept["roi_key"],
        overlap_px=overlap,
        devices=here,
        options=_options(ref, kept.get("options", {}), measure_channels, system),
        files={"maps": digest(kept)},
        said={m: _said(masks[m]["fingerprint"], flow.methods()[m]) for m in methods},
        made_on=kept["device"],
    )
    executor.check_loads(flow, "the workflow")
    check_memory(plans, methods, images, executor, lambda n: make_plans(methods, info, n, overlap), from_maps=True)
    jobs = {}
    for name, method in methods.items():
        at = masks[name]
        blocks = Plan(tuple(sum(c) for c in at["blocks"]), tuple(map(tuple, at["blocks"])), (0,) * info.ndim)
        method.check_decoding()
        there = Maps(folder / name, blocks, at["token"], frozenset(at["lacking"]), sparse=method.sparse)
        jobs[name] = Job(
            method,
            images[name],
            plans[name],
            measured[name].statistics,
            None,
            devices=here,
            kept=True,
            maps=there,
        )
        if there.lacking and isinstance(ref, _elements.ImageRef):  # what is missing is predicted
            levels = measured[name].levels
            source = preprocessing[name].apply(request.source(name), levels)
            jobs[name] = replace(jobs[name], source=source, stored=request.reader(name, levels))
    return Prepared(request, jobs, measured)


def _image_of(sdata: SpatialData, kept: Mapping[str, Any]) -> _elements.Grid:
    """Return the image of the maps where the object holds it, else its grid."""
    grid, dtype = _elements.unpacked(kept["grid"]), np.dtype(kept["dtype"])
    if grid.key not in sdata.images:
        return grid
    ref = _elements.read_image(sdata, grid.key, grid.scale)
    there = {"shape": ref.pyramid[0], "channels": ref.channels, "dtype": str(ref.data.dtype)}
    expected = {"shape": grid.pyramid[0], "channels": grid.channels, "dtype": str(dtype)}
    for what, value in there.items():
        if value != expected[what]:
            raise InputError(
                f"image {grid.key!r} at {grid.scale!r} has {what} {value}, and the maps are of {expected[what]}: "
                "pass the object that they were predicted of, or one without an image of that name"
            )
    if _sample(ref) != kept["sample"]:
        raise InputError(
            f"image {grid.key!r} at {grid.scale!r} has other pixels than that of the maps: pass the object that they "
            "were predicted of, or one without an image of that name"
        )
    return ref


def _options(
    ref: _elements.Grid, before: Mapping[str, Any], measured: Sequence[str | int] | str | int | None, system: str
) -> dict[str, Any]:
    """Return what `Request.options` has for a run in one phase; the region's coordinate system goes first."""
    now: dict[str, Any] = {"measure_channels": unique_channels(ref, measured)}
    if not before.keys() & {"roi_key", "bounding_box"}:
        now["to_coordinate_system"] = None if system == "global" else system
    return {k: v for k, v in {**before, **now}.items() if v is not None}


def _measured(ref: _elements.Grid, wanted: Sequence[str | int] | str | int | None) -> tuple[int, ...]:
    """Return the channels whose means go into the table; none without the image."""
    if isinstance(ref, _elements.ImageRef):
        return measured_channels(ref, wanted)
    if wanted is not None:
        raise InputError(f"measure_channels={wanted!r} needs the image: pass sdata= with image {ref.key!r}")
    return ()


def _check_rules(flow: Workflow, before: Mapping[str, Any]) -> None:
    """Raise where a workflow differs in what acts before the maps are made."""
    now = flow.model_dump(mode="json")
    for name, value in now.items():
        if name not in _AFTER and name not in ("nucleus", "cell") and value != before[name]:
            raise InputError(
                f"{name} is {value!r}, and the maps were predicted with {before[name]!r}: predict again; decoding may "
                f"change {', '.join(sorted(_AFTER))}, and what the methods' decode_parameters name"
            )


def _adapted(
    mask: str,
    flow: Workflow,
    kept: Mapping[str, Any],
    images: Mapping[str, ImageInfo],
    measured: Mapping[str, Measured],
) -> Method:
    """Return a method as it was adapted to the image, with the thresholds asked for."""
    asked, before = flow.methods()[mask], kept["workflow"][mask]
    now = {"method": asked.name, **asked.model_dump(mode="json")}
    if before is None or before["method"] != asked.name:
        had = "none" if before is None else repr(before["method"])
        raise InputError(f"the {mask} method is {asked.name!r}, and the maps have {had}: predict with this workflow")
    adapted = {k: v for k, v in kept["masks"][mask]["adapted"].items() if k not in asked.decode_parameters}
    found, ndim = asked.model_copy(update=adapted), len(images[mask].shape)
    stitched = before.get("stitch_threshold")
    if by_planes(found, ndim) != by_planes(found.model_copy(update={"stitch_threshold": stitched}), ndim):
        raise InputError(
            f"{mask}.stitch_threshold is {asked.stitch_threshold!r}, and the maps were predicted with {stitched!r}: "
            "one is of planes and the other of the volume; predict again"
        )
    for name, value in now.items():
        if name not in (*asked.decode_parameters, "stitch_threshold") and value != before.get(name):
            raise InputError(
                f"{mask}.{name} is {value!r}, and the maps were predicted with {before.get(name)!r}: predict again; "
                f"decoding may change {', '.join(sorted(asked.decode_parameters)) or 'none of its parameters'}"
            )
    lacking = [s.label for s in asked.statistics(images[mask]) if s not in measured[mask].statistics]
    if lacking:
        raise InputError(f"the {mask} method needs {', '.join(lacking)}, which was not measured: predict again")
    return found


def _said(before: Mapping[str, Any], method: Method) -> dict[str, Any]:
    now = method.model_dump(mode="json", include={*method.decode_parameters, "stitch_threshold"})
    return {k: now.get(k, v) for k, v in before.items()}


def _numbers(content: Sequence[Any]) -> dict[Statistic, float]:
    return {Statistic(**s): value for s, value in content}


def _region(folder: Path, kept: Mapping[str, Any]) -> Region | None:
    said, check, depth = kept["region"], kept["region_check"], kept.get("region_depth")
    if said is None:
        return None
    if said == "mask":
        region = Region(None, da.from_zarr(zarr.open_array(folder / "region", mode="r")))
        if region.fingerprint() != check:
            raise ScratchError(f"{folder / 'region'} is damaged: call predict() again, which keeps the maps")
        return region
    polygons = shapely.from_wkb(said)
    shapely.prepare(polygons)
    return Region(polygons, None, None if depth is None else tuple(depth))


def digest(kept: Mapping[str, Any]) -> str:
    """Return a short text that tells whether what a manifest says is as it was written."""
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"

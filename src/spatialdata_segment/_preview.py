"""`plan` and `preview`: what a run would take, and what a crop of it would look like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._prepare import needed_shards
from spatialdata_segment._request import Request, resolve
from spatialdata_segment._segment import execute
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.events import progress_bars
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.memory import shard_bytes
from spatialdata_segment.engine.preprocess import Measured, estimate_diameter
from spatialdata_segment.engine.whole import measure_image, read_source
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spatialdata import SpatialData

    from spatialdata_segment.methods.base import Method

_SAMPLE = 512
_SAMPLES = 16
_SCRATCH_BYTES_PER_PIXEL = 0.4
_RESULT_BYTES_PER_PIXEL = 0.4


@dataclass(frozen=True)
class MaskPlan:
    """How one mask would be cut.

    Attributes
    ----------
    method
        Its name.
    grid
        Cores along ``([z], y, x)``.
    core, halo
        Pixels of the largest core, and read around it, per axis.
    n_shards
        Shards to compute: all, or those of the region.
    bytes_per_shard
        Predicted peak memory of one shard.
    seconds
        Rough estimate for one core of a processor.
    """

    method: str
    grid: tuple[int, ...]
    core: tuple[int, ...]
    halo: tuple[int, ...]
    n_shards: int
    bytes_per_shard: int
    seconds: float


@dataclass(frozen=True)
class RunPlan:
    """What a run would take; printed, it reads as a summary.

    Attributes
    ----------
    shape
        ``([z], y, x)`` of the image.
    masks
        The plan of each mask.
    memory_bytes
        Predicted peak memory of the shards in flight.
    disk_bytes
        Predicted size of scratch and labels on disk; dense tissue takes more, sparse less.
    seconds
        Rough estimate of the whole run.
    outputs
        Names of the elements that would be written, and their kinds.
    """

    shape: tuple[int, ...]
    masks: dict[str, MaskPlan]
    memory_bytes: int
    disk_bytes: int
    seconds: float
    outputs: dict[str, str]

    def __str__(self) -> str:
        lines = [f"image {' x '.join(map(str, self.shape))} px"]
        for name, mask in self.masks.items():
            lines.append(
                f"{name}: {mask.method}, {mask.n_shards} shards of {' x '.join(map(str, mask.core))} px "
                f"(halo {', '.join(map(str, mask.halo))}), {mask.bytes_per_shard / 1e6:.0f} MB each"
            )
        lines.append(
            f"memory {self.memory_bytes / 1e9:.2f} GB, disk {self.disk_bytes / 1e9:.2f} GB, about {self.seconds:.0f} s"
        )
        lines.append(f"writes {', '.join(self.outputs)}")
        return "\n".join(lines)


def plan(
    sdata: SpatialData,
    image_key: str,
    workflow: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any] = "dapi",
    *,
    n_jobs: int | Mapping[str, int] | None = None,
    **options: Any,
) -> RunPlan:
    """Plan a run without reading a pixel.

    Parameters
    ----------
    sdata, image_key, workflow, n_jobs
        As for `segment`.
    **options
        Any of the options of `segment` that decide what is read, run and written: ``channels``, ``scale``,
        ``roi_key``, ``bounding_box``, ``key_added``, ``measure_channels``, ``to_coordinate_system``,
        ``pixel_size``, ``shard_size``, ``overlap_px``, ``devices``, ``shapes``, ``table``; others change nothing.

    Returns
    -------
    The shards, and what they take in memory, on disk and in time. The times are rough.

    Raises
    ------
    MissingError, InputError
        As `segment` would, for what can be known before it runs.
    """
    executor = Executor(n_jobs)
    return plan_of(resolve(sdata, image_key, as_workflow(workflow), executor=executor, **_planned(options)), executor)


def plan_of(request: Request, executor: Executor) -> RunPlan:
    """Return what a checked call would take."""
    methods = request.methods
    masks = {name: _mask_plan(request, name, method) for name, method in methods.items()}
    pixels = float(np.prod(request.info.shape))
    per_pixel = _SCRATCH_BYTES_PER_PIXEL * len(masks) + _RESULT_BYTES_PER_PIXEL * len(request.written)
    flying = min(executor.in_flight, max(m.n_shards for m in masks.values()))
    return RunPlan(
        shape=request.info.shape,
        masks=masks,
        memory_bytes=max(m.bytes_per_shard for m in masks.values()) * flying,
        disk_bytes=int(pixels * per_pixel),
        seconds=sum(m.seconds for m in masks.values()) / min(executor.n_jobs, flying),
        outputs=request.names(),
    )


_RUN = "scratch", "resume", "keep_maps", "overwrite", "progress"
PLANNED: dict[str, Any] = {
    "channels": None,
    "scale": "scale0",
    "roi_key": None,
    "bounding_box": None,
    "key_added": "segmentation",
    "measure_channels": None,
    "to_coordinate_system": "global",
    "pixel_size": None,
    "shard_size": None,
    "overlap_px": None,
    "devices": "auto",
    "shapes": True,
    "table": True,
}


def _mask_plan(request: Request, name: str, method: Method) -> MaskPlan:
    cut = request.plans[name]
    core = tuple(max(c) for c in cut.chunks)
    n = len(needed_shards(request, name))
    window = float(np.prod([min(c + 2 * h, s) for c, h, s in zip(core, cut.halo, cut.shape, strict=True)]))
    return MaskPlan(
        method=method.name,
        grid=cut.grid,
        core=core,
        halo=cut.halo,
        n_shards=n,
        bytes_per_shard=shard_bytes(cut, method, request.images[name]),
        seconds=n * window / 1e6 * method.seconds_per_megapixel,
    )


def preview(
    sdata: SpatialData,
    image_key: str,
    workflow: str | Workflow | Method | Callable[..., Any] | Mapping[str, Any] = "dapi",
    *,
    size: int = 1024,
    center: Sequence[float] | None = None,
    scale: str = "scale0",
    n_jobs: int | Mapping[str, int] | None = None,
    progress: bool = False,
    **options: Any,
) -> SpatialData:
    """Segment a crop in seconds, before the long run.

    The statistics of the image are estimated from sixteen small windows spread over it, so that thresholds
    are close to those of the whole image, but not the same. The crop and the windows are preprocessed each by itself.

    Parameters
    ----------
    sdata, image_key, workflow, scale, n_jobs, progress
        As for `segment`; ``sdata`` is not changed.
    size
        Side of the crop, in px of the scale.
    center
        ``(x, y)`` of the crop's centre, in px of the scale; None: the middle of the image.
    **options
        Further options of `segment`, see `plan`; no region.

    Returns
    -------
    A new object in memory with the crop, in its place in every coordinate system, and the result.

    Raises
    ------
    InputError
        If the crop misses the image.
    """
    ref = _elements.read_image(sdata, image_key, scale)
    shape = tuple(int(n) for n in ref.data.shape[1:])
    flow = as_workflow(workflow)
    executor = Executor(n_jobs)
    crop = _elements.crop_image(ref, _crop(shape, size, center))
    if refused := {"roi_key", "bounding_box"} & options.keys():
        raise InputError(f"preview takes no {sorted(refused)[0]}: place the crop with size= and center=")
    settings = _planned(options)
    with progress_bars(progress):
        whole = resolve(sdata, image_key, flow, executor=executor, **(settings | {"scale": scale}))
        measured = {m: _estimate(whole, m, method, executor) for m, method in whole.methods.items()}
        request = resolve(crop, image_key, flow, executor=executor, **settings)
        execute(crop, request, executor, measured=measured)
    return crop


def _planned(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a plan; of `segment`'s other options there may be some."""
    return PLANNED | {name: value for name, value in options.items() if name not in _RUN}


def _crop(shape: tuple[int, ...], size: int, center: Sequence[float] | None) -> Box:
    middle = [n / 2 for n in reversed(shape[-2:])] if center is None else list(center)
    start = [round(c - size / 2) for c in reversed(middle)]
    whole = Box.whole(shape)
    flat = Box((*whole.start[:-2], *start), (*whole.stop[:-2], *(s + size for s in start)))
    box = flat.intersect(whole)
    if box.size == 0:
        raise InputError(f"a crop of {size} px around {center} misses the image of shape {shape}")
    return box


def _estimate(request: Request, mask: str, method: Method, executor: Executor) -> Measured:
    """Measure what a preprocessing and a method ask for on windows spread over the image."""
    source, shape, before = request.source(mask), request.info.shape, request.preprocessing[mask]
    side = round(_SAMPLES**0.5)
    starts = [np.unique(np.linspace(0, max(n - _SAMPLE, 0), side).astype(int)) for n in shape[-2:]]
    parts = [source[..., y : y + _SAMPLE, x : x + _SAMPLE] for y in starts[0] for x in starts[1]]
    sample = da.concatenate(parts, axis=-1)
    cut = Plan.fewest(tuple(sample.shape[1:]), 1 << 24, (0,) * (sample.ndim - 1))
    levels = measure_image(sample, before.statistics(), cut, executor, f"{mask} levels")
    changed = da.concatenate([before.apply(part, levels) for part in parts], axis=-1)
    image = request.images[mask]
    read = before.reader(partial(read_source, source), shape, levels)
    diameter = partial(
        estimate_diameter, method, image, request.devices, partial(read_source, source) if read is None else read.read
    )
    found = measure_image(
        changed,
        list(dict.fromkeys(replace(s, axis=None, plane=0) for s in method.statistics(image))),
        cut,
        executor,
        f"{mask} statistics",
        least=before.least(),
        diameter=lambda _, known: diameter(known),
        by_plane=isinstance(method, Planes),
    )
    return Measured(levels, found)

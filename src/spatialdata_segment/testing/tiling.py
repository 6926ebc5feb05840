"""Run a method over an array by any shard plan, without SpatialData: what tiling tests compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment._prepare import seeds_of
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.maps import predict_maps
from spatialdata_segment.engine.mask import run_mask
from spatialdata_segment.engine.shard import Job
from spatialdata_segment.engine.whole import measure_image
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.planes import Planes, suited

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.mask import Mask
    from spatialdata_segment.methods.base import Method


@dataclass(frozen=True)
class Tiled:
    """What a plan gave.

    Attributes
    ----------
    labels
        ``([z], y, x)`` int64, ids 1..n in raster order of the anchors.
    anchors
        ``(n, ndim)`` of the objects that hold pixels.
    covered
        Candidates that lost every pixel to others.
    mask
        The engine's own answer, with the evidence of the seams.
    """

    labels: NDArray[np.int64]
    anchors: NDArray[np.int64]
    covered: int
    mask: Mask

    def same_as(self, other: Tiled) -> bool:
        """Tell whether labels and anchors are equal."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.anchors, other.anchors)


def make_plan(
    shape: Sequence[int], core: Sequence[int], halo: Sequence[int], first: Sequence[int] | None = None
) -> Plan:
    """Return a plan with cores of any shape; the first one along an axis may be smaller.

    Parameters
    ----------
    shape, core, halo
        Pixels along ``([z], y, x)``.
    first
        Sizes of the first cores; 0 or more than the core: as the others.
    """
    starts = (0,) * len(shape) if first is None else first
    chunks = tuple(_chunks(*at) for at in zip(shape, core, starts, strict=True))
    return Plan(tuple(shape), chunks, tuple(halo))


def whole_plan(shape: Sequence[int]) -> Plan:
    """Return the plan of one shard."""
    return make_plan(shape, shape, (0,) * len(shape))


def tile(
    image: NDArray[Any] | da.Array,
    method: Method,
    plan: Plan,
    folder: Path,
    *,
    nucleus: Method | None = None,
    pixel_size: tuple[float, ...] | None = None,
    executor: Executor | None = None,
    resume: bool = False,
    two_phases: bool = False,
) -> Tiled:
    """Segment an array by a plan.

    Parameters
    ----------
    image
        ``(c, [z], y, x)``: the channels that the method reads, in its order.
    method
        A seeded one needs ``nucleus``, the method of its seeds; it reads the same channels.
    plan
        Cores and halo; the halo is widened to the context of the method as it is adapted to the image.
    folder
        Empty folder for the scratch.
    nucleus
        Runs first, with the same cores, and with the larger of both halos.
    pixel_size
        µm a pixel along ``([z], y, x)``.
    executor
        None: this thread.
    resume
        Trust the shards that lie in ``folder``.
    two_phases
        Keep the maps of the whole image, in small blocks of their own, and decode these.
    """
    source = image if isinstance(image, da.Array) else da.from_array(image, chunks=_stored(image.shape))
    info = ImageInfo(tuple(source.shape[1:]), source.dtype, pixel_size, source.shape[0])
    methods = suited({"cell": method} if nucleus is None else {"nucleus": nucleus, "cell": method}, info.shape)
    method, nucleus = methods["cell"], methods.get("nucleus")
    job = Job(method, info, plan, {}, source, verify=not resume)
    seeds, before = None, None
    runner = executor or Executor(1)
    if nucleus is not None:
        halo = tuple(max(a, b) for a, b in zip(plan.halo, nucleus.context(info), strict=True))
        nuclei = replace(job, method=nucleus, plan=replace(plan, halo=halo))
        before = _run(nuclei, folder / "nucleus", runner, "nucleus", two_phases)
        seeds = seeds_of(before.labels, method)
    if method.default_channels == ():
        job = replace(job, source=source[:0])
    mask = _run(replace(job, seeds=seeds), folder / "cell", runner, "cell", two_phases)
    labels = mask.labels.read(Box.whole(plan.shape)).astype(np.int64)
    return Tiled(labels, mask.objects.anchor, len(mask.covered), mask)


def _run(job: Job, folder: Path, executor: Executor, stage: str, two_phases: bool) -> Mask:
    assert job.source is not None
    wanted = job.method.statistics(job.image)
    values = measure_image(job.source, wanted, job.plan, executor, stage, by_plane=isinstance(job.method, Planes))
    method = job.method.adapted(job.image, values)
    halo = tuple(max(h, c) for h, c in zip(job.plan.halo, method.context(job.image), strict=True))
    job = replace(job, method=method, plan=replace(job.plan, halo=halo), statistics=values)
    if two_phases:
        maps = predict_maps(
            job, folder / "kept", None, max(16, int(np.prod([max(c) for c in job.plan.chunks])) // 3), executor, stage
        )
        job = replace(job, maps=maps, source=None)
    return run_mask(job, folder, range(len(job.plan)), executor, stage)


def _chunks(length: int, core: int, first: int) -> tuple[int, ...]:
    edges = [*range(first if 0 < first < core else core, length, core), length]
    return tuple(b - a for a, b in zip([0, *edges[:-1]], edges, strict=True))


def _stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return chunks of storage that no core is likely to meet."""
    return (1, *(max(1, n * 5 // 13) if n < 512 else 509 for n in shape[1:]))

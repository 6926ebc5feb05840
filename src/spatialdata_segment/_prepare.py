"""A request and an image made ready, and its masks run one after the other."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._elements import ImageRef
from spatialdata_segment._request import Request, halo_of, make_plans
from spatialdata_segment.engine.arrays import zarr_array
from spatialdata_segment.engine.join import JoinedLabels
from spatialdata_segment.engine.mask import Mask, run_mask
from spatialdata_segment.engine.memory import check_memory
from spatialdata_segment.engine.preprocess import Measured, measure
from spatialdata_segment.engine.shard import Job
from spatialdata_segment.engine.stitch import MissingCoresError
from spatialdata_segment.engine.stored import folders_of, is_carried, put_down
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import dask.array as da

    from spatialdata_segment._region import Region
    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.stitch import StitchedLabels
    from spatialdata_segment.methods.base import Method, Seeds


@contextmanager
def at_hand(request: Request, folder: Path, executor: Executor) -> Iterator[Request]:
    """Yield the request with an image that workers read by themselves.

    What lies in memory would travel with the tasks: it is written into the folder, for as long as it is needed.

    Raises
    ------
    InputError
        If workers do not see the image's files, or cannot load what makes its pixels.
    ScratchError
        If the folder cannot be written.
    """
    ref = request.ref
    if executor.client is None or not isinstance(ref, ImageRef):
        yield request
        return
    for path in folders_of(request.pixels):
        executor.check_seen(path, f"image {ref.key!r}")
    if not is_carried(request.pixels):
        executor.check_loads(_first_chunk(request.pixels), f"image {ref.key!r}")
        yield request
        return
    try:
        pixels = ref.data.copy(data=put_down(request.pixels, folder, executor.n_jobs))
        yield replace(request, ref=replace(ref, data=pixels, array=zarr_array(pixels.data)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_chunk(pixels: da.Array) -> Any:
    """Return the graph of one chunk: with the functions of the others, and small."""
    graph: Any = pixels.__dask_graph__()
    return graph.cull([(pixels.name, *(0,) * pixels.ndim)])


@dataclass(frozen=True)
class Prepared:
    """A request whose methods know the image.

    Attributes
    ----------
    request
        With the plans of these methods.
    jobs
        What the shards of each mask share.
    measured
        The numbers of the whole image.
    """

    request: Request
    jobs: dict[str, Job]
    measured: dict[str, Measured]

    def numbers(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each mask by their names."""
        return {name: found.labelled() for name, found in self.measured.items()}


def prepare(
    request: Request,
    part: Callable[[str], Path],
    executor: Executor,
    measured: Mapping[str, Measured] | None = None,
    *,
    kept: bool = False,
) -> Prepared:
    """Measure the image and adapt the methods to it.

    The numbers of a mask are measured unless they are handed in; they are kept in the folder that ``part`` returns for
    it. ``kept``: the scratch outlives a failure.
    """
    found: dict[str, Measured] = {}
    jobs, plans = {}, {}
    for name, method in request.methods.items():
        plan, image = request.plans[name], request.images[name]
        source, preprocessing = request.source(name), request.preprocessing[name]
        numbers = (measured or {}).get(name)
        if numbers is None:
            path = part(name) if request.files is not None else None
            stored = request.raw(name)
            numbers = measure(
                source,
                preprocessing,
                method,
                image,
                plan,
                executor,
                name,
                path,
                devices=request.devices,
                raw=None if stored is None else stored.read,
            )
        found[name] = numbers
        method = method.adapted(image, numbers.statistics)
        plans[name] = replace(plan, halo=halo_of(method, image, request.overlap_px))
        reader = request.reader(name, numbers.levels)
        jobs[name] = Job(
            method,
            image,
            plans[name],
            numbers.statistics,
            preprocessing.apply(source, numbers.levels) if reader is None else None,
            reader,
            devices=request.devices,
            verify=request.files is None,
            kept=kept and request.workflow.resumable,
        )

    def cut(shard_size: int) -> dict[str, Plan]:
        cores = make_plans(request.methods, request.info, shard_size, request.overlap_px)
        return {name: replace(plan, halo=plans[name].halo) for name, plan in cores.items()}

    check_memory(plans, {name: job.method for name, job in jobs.items()}, request.images, executor, cut)
    return Prepared(replace(request, plans=plans), jobs, found)


def run_masks(ready: Prepared, executor: Executor, part: Callable[[str], Path]) -> dict[str, Mask]:
    """Run the masks one after the other; their shards go into the folder that ``part`` returns."""
    request, jobs = ready.request, ready.jobs
    masks: dict[str, Mask] = {}
    needed = {name: needed_shards(request, name) for name in jobs}
    while len(masks) < len(jobs):
        try:
            for name, job in jobs.items():
                before = masks.get("nucleus") if name == "cell" else None
                masks[name] = run_mask(
                    replace(job, seeds=None if before is None else seeds_of(before.labels, job.method)),
                    part(name),
                    needed[name],
                    executor,
                    name,
                    before.labels if before is not None else None,
                    measured=request.is_measured,
                )
        except MissingCoresError as error:  # a cell at the region's edge needs nuclei from farther away
            needed["nucleus"] = sorted({*needed["nucleus"], *error.cores})
            masks.clear()
            continue
        if request.region is not None and (lacking := _lacking(request.region, masks)):
            needed = {name: sorted({*cores, *lacking.get(name, ())}) for name, cores in needed.items()}
            masks.clear()
    return masks


def seeds_of(nuclei: StitchedLabels, method: Method) -> Callable[[Box], Seeds] | None:
    """Return what reads the seeds of a method: a plane is grown from the nuclei of that plane."""
    if not method.seeded:
        return None
    if isinstance(method, Planes) and isinstance(nuclei, JoinedLabels):
        return nuclei.seeds_of_planes
    return nuclei.seeds


def _lacking(region: Region, masks: Mapping[str, Mask]) -> dict[str, set[int]]:
    """Return the cores without which objects joined of planes, inside a region or matched with one, may be cut."""
    wanted = {name: mask.objects.ids[region.holds(mask.objects.anchor)] for name, mask in masks.items()}
    pairs = masks["cell"].pairs if len(masks) == 2 else None
    if pairs is not None:
        nuclei, cells = pairs.a[np.isin(pairs.b, wanted["cell"])], pairs.b[np.isin(pairs.a, wanted["nucleus"])]
        wanted = {"nucleus": np.union1d(wanted["nucleus"], nuclei), "cell": np.union1d(wanted["cell"], cells)}
    found = {
        name: set().union(*(mask.open[i] for i in wanted[name].tolist() if i in mask.open))
        for name, mask in masks.items()
    }
    return {name: cores for name, cores in found.items() if cores}


def needed_shards(request: Request, mask: str) -> list[int]:
    """Return the shards that a mask must be computed in: all, or those of the region."""
    plan = request.plans[mask]
    if request.region is None:
        return list(range(len(plan)))
    wanted = request.region.shards(plan)
    if not wanted:
        raise InputError(
            f"the region of interest misses the image {request.ref.key!r} (pixels {plan.image}): check its "
            "coordinates and to_coordinate_system"
        )
    if mask == "cell" or not request.workflow.is_pair:
        return wanted
    around = (plan.touched(request.plans["cell"].window(i).box) for i in wanted)
    return sorted(set().union(*around))

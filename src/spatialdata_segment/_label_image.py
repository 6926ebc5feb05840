"""`label_image`: one method on one array, lazily. Knows neither SpatialData nor tables."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from spatialdata_segment._channels import Channel, base_channels, method_channels, named_channels, read_channels, roles
from spatialdata_segment._request import checked_pixel_size, checked_shard_size, halo_of
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.lazy import lazy_labels
from spatialdata_segment.engine.preprocess import measure
from spatialdata_segment.engine.shard import Job
from spatialdata_segment.engine.whole import read_source
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.planes import Planes, suited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.statistics import Statistic
    from spatialdata_segment.methods.base import Method


def label_image(
    image: xr.DataArray | da.Array | NDArray[Any],
    method: Method | Workflow | Callable[..., Any],
    *,
    channels: Sequence[str | int] | str | int | None = None,
    pixel_size: float | Sequence[float] | None = None,
    shard_size: int | None = None,
    overlap_px: int | Sequence[int] | None = None,
    statistics: Mapping[Statistic, float] | None = None,
    n_jobs: int | None = None,
    devices: str | int | Sequence[str] = "auto",
) -> xr.DataArray | da.Array:
    """Label an image lazily: nothing but its statistics is computed before the labels are.

    Parameters
    ----------
    image
        ``(c, y, x)`` or ``(c, z, y, x)``; the dimensions of a `xarray.DataArray` have these names.
    method
        A method that starts from pixels, or a function from ``(c, [z], y, x)`` to ``([z], y, x)`` integers; or a
        `Workflow` of one such mask, whose channel rules and preprocessing then hold.
    channels
        Names (of the coordinate ``c``) or 0-based indices of the channels that the method gets, in its order;
        None: those that it names itself, or its default ones. "haematoxylin": see `segment`.
    pixel_size
        µm a pixel, a number or one per axis.
    shard_size, overlap_px
        Pixels of a core, and of the halo around it; see `segment`.
    statistics
        What the method asks for, if it is known already. None: the whole image is read once, now. (A quantile
        normalization reads it as well.)
    n_jobs
        For the statistics.
    devices
        Where networks run; see `segment`.

    Returns
    -------
    uint64 labels ``([z], y, x)``, of the kind of ``image`` (dask for an array), with the cores as chunks. An id
    is the raster index of the object's anchor plus 1, so that a crop computes only the shards that it needs
    and agrees with the whole. Filters that need the whole image (sizes, matching) are not in it.

    Raises
    ------
    InputError
        If the image or a value is not as said above, or the method needs nuclei or proposals: use `segment`.
    """
    data = _pixels(image)
    flow, mask, chosen = _only(method)
    shape = tuple(int(n) for n in data.shape[1:])
    info = ImageInfo(shape, data.dtype, checked_pixel_size(pixel_size, len(shape)))
    chosen = suited({mask: chosen}, shape)[mask]
    if isinstance(chosen, Planes) and chosen.joins:
        raise InputError(
            f"stitch_threshold={chosen.plane.stitch_threshold}: which planes hold an object is known when all are "
            "labelled, and label_image labels a crop by itself. Give 0 and join the planes with stitch_planes(), or "
            "use segment()"
        )
    at = _channels(image, channels, flow, mask, data)
    plan = Plan.fewest(shape, checked_shard_size(shard_size, len(shape)), halo_of(chosen, info, overlap_px))
    source, before = read_channels(data, at), flow.preprocessing({mask: roles(chosen, mask, len(at))})[mask]
    info = replace(info, dtype=before.dtype(source.dtype), n_channels=len(at))
    chosen.check(info)
    if lacking := [s.label for s in chosen.statistics(info) if statistics is not None and s not in statistics]:
        raise InputError(f"statistics lack {', '.join(lacking)}, which {chosen.name} needs: add them, or pass None")
    executor = Executor(n_jobs)
    on = executor.devices(devices, used=chosen.uses_device)
    found = measure(source, before, chosen, info, plan, executor, mask, devices=on, known=statistics)
    numbers = found.statistics
    chosen = chosen.adapted(info, numbers)
    plan = replace(plan, halo=halo_of(chosen, info, overlap_px))
    reader = before.reader(partial(read_source, source), shape, found.levels)
    labels = lazy_labels(Job(chosen, info, plan, numbers, before.apply(source, found.levels), reader, devices=on))
    if not isinstance(image, xr.DataArray):
        return labels
    dims = [d for d in ("z", "y", "x") if d in image.dims]
    return xr.DataArray(labels, dims=dims, coords={d: image.coords[d] for d in dims if d in image.coords})


def _only(given: Any) -> tuple[Workflow, str, Method]:
    """Return the workflow, and its one mask and method."""
    flow = as_workflow(given)
    mask, method = list(flow.methods().items())[-1]
    is_lazy = not (method.seeded or method.proposes or method.tallies)
    if isinstance(given, str) or flow.is_pair or flow.filter_masks_size or not is_lazy:
        raise InputError(
            "label_image takes one method that starts from pixels, without a pass over the whole image in between, and "
            f"no size filter; for {given!r} use segment()"
        )
    return flow, mask, method


def _pixels(image: xr.DataArray | da.Array | NDArray[Any]) -> da.Array:
    if isinstance(image, xr.DataArray):
        wanted = [d for d in ("c", "z", "y", "x") if d in image.dims]
        if len(wanted) != image.ndim or wanted[:1] != ["c"]:
            raise InputError(f"image has the dimensions {image.dims}, expected c, [z], y, x")
        image = image.transpose(*wanted).data
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise InputError(f"image has shape {image.shape}, expected (c, y, x) or (c, z, y, x) with pixels in it")
    return image if isinstance(image, da.Array) else da.from_array(np.asarray(image), chunks="auto")


def _channels(image: Any, given: Any, flow: Workflow, mask: str, data: da.Array) -> tuple[Channel, ...]:
    """Return the channels that the method reads: those given, its own, or those of its roles."""
    method = flow.methods()[mask]
    if method.roles(mask) == ():
        return ()
    names = [str(i) for i in range(data.shape[0])]
    if isinstance(image, xr.DataArray) and "c" in image.coords:
        names = [str(c) for c in image.coords["c"].values]
    if given is not None:
        return named_channels(names, given, data.dtype)
    base = base_channels(names, flow, None, data.dtype)
    return method_channels(names, method, mask, base, data.dtype, "the image")

"""Statistics of the whole image: streamed, and kept in the scratch."""

from __future__ import annotations

import json
import logging
import zlib
from functools import partial, reduce
from itertools import product
from operator import add
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment._channels import pick_channels
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.distance import squared_distance
from spatialdata_segment.core.shards import as_volume
from spatialdata_segment.core.smooth import smooth
from spatialdata_segment.core.statistics import Histogram, Statistic
from spatialdata_segment.engine.scratch import write_json
from spatialdata_segment.engine.whole_planes import measure_planes
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.planes import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor

logger = logging.getLogger(__name__)

_BATCH = 8
_WINDOW = {2: (512, 6), 3: (96, 3)}
"""Side in px, and how many along an axis at most, of the windows in which sizes are estimated."""
_FAR = {2: 64, 3: 24}
"""px; greater distances to the background count as this."""
_USUAL = 10.0
"""px; where nothing is bright."""
_RADII = 4.0, 60.0


def measure_image(
    source: da.Array,
    wanted: Sequence[Statistic],
    plan: Plan,
    executor: Executor,
    stage: str,
    path: Path | None = None,
    *,
    least: float | None = None,
    read: Callable[[Box], NDArray[Any]] | None = None,
    diameter: Callable[[Callable[[Box], NDArray[Any]], Mapping[Statistic, float]], float] | None = None,
    by_plane: bool = False,
) -> dict[Statistic, float]:
    """Compute the statistics that a method asks for; ``path`` keeps them for a resumed run.

    ``least`` is the least value there can be, where that is known; it saves a pass where values are not counted
    exactly. ``read`` reads a box of the source, where something does so faster than dask. ``diameter`` estimates the
    statistic of that name, from what reads a box and from the others. ``by_plane``: the objects of a volume are those
    of its planes.

    Raises
    ------
    InputError
        If a pixel is NaN or infinite.
    """
    if not wanted:
        return {}
    before = _kept(path)
    if before is not None and all(s.label in before for s in wanted):
        return {s: before[s.label] for s in wanted}
    of_planes = [s for s in wanted if s.axis is not None]
    reader = read or partial(read_source, source)
    itemsize = source.shape[0] * source.dtype.itemsize
    values = measure_planes(reader, source.shape[1:], of_planes, executor, stage, itemsize) if of_planes else {}
    wanted = [s for s in wanted if s.axis is None]
    channels = sorted({s.channel for s in wanted})
    histograms = _histograms(source, channels, plan, executor, stage, least) if channels else {}
    bad = sum(h.non_finite for h in histograms.values())
    if bad:
        raise InputError(
            f"the image holds {bad} NaN or infinite pixels, expected finite values: replace them, for example by "
            "0 (numpy.nan_to_num)"
        )
    values |= {s: histograms[s.channel].compute(s) for s in wanted if s.kind not in ("radius", "diameter")}
    for s in wanted:
        if s.kind == "radius":
            between = histograms[s.channel].clipped(s.value).between_classes()
            box = None if read is None else partial(_read_channel, read, s.channel)
            title = f"{stage}: object size"
            values[s] = usual_radius(source[s.channel], between, executor, title, box, by_plane=by_plane)
    for s in wanted:
        if s.kind == "diameter":
            assert diameter is not None
            (values[s],) = executor.map(  # a network, where networks run
                partial(diameter, reader), [values], f"{stage}: diameter", on_device=True
            )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {s.label: v for s, v in values.items()}
        write_json(path, {"values": kept, "check": _check(kept)})
    return values


def read_source(source: da.Array, box: Box) -> NDArray[Any]:
    """Return a box of a lazy image ``(..., [z], y, x)``, read in this thread."""
    return np.asarray(source[(..., *box.slices)].compute(scheduler="synchronous"))


def _read_channel(read: Callable[[Box], NDArray[Any]], channel: int, box: Box) -> NDArray[Any]:
    return np.asarray(read(box)[channel])


def usual_radius(
    channel: da.Array,
    threshold: float,
    executor: Executor,
    stage: str = "object size",
    read: Callable[[Box], NDArray[Any]] | None = None,
    *,
    by_plane: bool = False,
) -> float:
    """Estimate the radius of the bright objects of a ``([z], y, x)`` image, in px, to a tenth.

    The distances of the pixels of a disk to its edge have a mean of a third of its radius (a ball's a quarter);
    counted from pixel to pixel they are about 0.35 px more.
    They are taken above the threshold, in windows spread evenly over the image, which cover a small one whole.
    ``by_plane``: the radius of the disks in the planes of a volume, of which a few are looked at.
    """
    ndim = 2 if by_plane else channel.ndim
    shape = channel.shape[-ndim:]
    side, at_most = _WINDOW[ndim]
    counts = [min(-(-n // side), at_most) for n in shape]
    starts = [np.linspace(0, max(n - side, 0), k).astype(int).tolist() for n, k in zip(shape, counts, strict=True)]
    boxes = [Box(at, tuple(a + side for a in at)).intersect(Box.whole(shape)) for at in product(*starts)]
    if by_plane:
        boxes = [box.in_plane(z) for z in spread(channel.shape[0]) for box in boxes]
    image = Box.whole(channel.shape)
    found = partial(_distances, read or partial(read_source, channel), image, threshold, ndim)
    counted = np.sum(executor.map(found, boxes, stage), axis=0)
    if not counted.any():
        return _USUAL
    mean = float(counted @ np.sqrt(np.arange(len(counted))) / counted.sum()) - 0.35
    return float(np.clip(round((ndim + 1) * mean, 1), *_RADII))


def _distances(
    read: Callable[[Box], NDArray[Any]], image: Box, threshold: float, ndim: int, box: Box
) -> NDArray[np.int64]:
    """Count the squared distances to the background of the foreground of a box, those beyond `_FAR` as that.

    They are taken along the last ``ndim`` axes; along z the box is one plane if these are two of three.
    """
    far = _FAR[ndim]
    wide = box.grow((0,) * (box.ndim - ndim) + (far + 4,) * ndim, image)
    pixels = read(wide)
    mask = smooth(pixels.reshape(pixels.shape[-ndim:]), 1.0) > threshold
    squared = squared_distance(as_volume(mask)).reshape(mask.shape)[box.within(wide)[-ndim:]]
    return np.bincount(np.minimum(squared[squared > 0], far**2), minlength=far**2 + 1)


def _kept(path: Path | None) -> dict[str, float] | None:
    if path is None or not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        values: dict[str, float] = content["values"]
        sound = content["check"] == _check(values)
    except (ValueError, KeyError, TypeError):
        sound = False
    if sound:
        return values
    logger.warning("scratch entry damaged, computed again: %s", path)
    return None


def _check(values: Mapping[str, float]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _histograms(
    source: da.Array, channels: list[int], plan: Plan, executor: Executor, stage: str, least: float | None
) -> dict[int, Histogram]:
    image = pick_channels(source, channels).rechunk((len(channels), *plan.chunks), threshold=1 << 40)
    origins = [least or 0.0] * len(channels)
    if image.dtype.itemsize > 2 and least is None:  # what is not counted exactly is counted from its least value
        parts = [part for batch in _over_blocks(_least, image, plan, executor, f"{stage}: range") for part in batch]
        origins = np.min(parts, axis=0).tolist()
    total: list[Histogram] | None = None
    for batch in _over_blocks(partial(_count, origins=origins), image, plan, executor, stage):
        merged = [reduce(add, column) for column in zip(*batch, strict=True)]
        total = merged if total is None else [a + b for a, b in zip(total, merged, strict=True)]
    assert total is not None
    return dict(zip(channels, total, strict=True))


def _over_blocks(
    function: Callable[[NDArray[Any]], Any], image: da.Array, plan: Plan, executor: Executor, stage: str
) -> Iterator[list[Any]]:
    """Yield what a function says of the blocks, in batches."""
    told = da.map_blocks(
        partial(_told, function),
        image,
        dtype=object,
        chunks=((1,), *((1,) * n for n in plan.grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    keys = [(told.name, 0, *at) for at in np.ndindex(*plan.grid)]
    graph: Any = told.__dask_graph__()
    size = max(_BATCH, 2 * executor.at_once)
    for start in range(0, len(keys), size):
        batch = keys[start : start + size]
        yield [r.item() for r in executor.run(graph.cull(batch), batch, stage, start, len(keys))]


def _told(function: Callable[[NDArray[Any]], Any], block: NDArray[Any]) -> NDArray[Any]:
    out = np.empty((1,) * block.ndim, object)
    out.flat[0] = function(block)
    return out


def _least(block: NDArray[Any]) -> NDArray[np.float64]:
    """Return the least finite value of each channel."""
    values = block.reshape(len(block), -1)
    finite = np.isfinite(values) if values.dtype.kind == "f" else True
    top = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    least = np.min(values, axis=1, initial=top, where=finite).astype(np.float64)
    return np.where(np.isfinite(least), least, 0.0)


def _count(block: NDArray[Any], origins: Sequence[float]) -> list[Histogram]:
    return [Histogram.of(channel, origin) for channel, origin in zip(block, origins, strict=True)]

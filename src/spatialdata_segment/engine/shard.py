"""What runs for one shard: predict, decode, and again with a larger halo where that did not suffice."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.shards import Labels, ShardObjects, ShardResult
from spatialdata_segment.engine.again import Seen, look_again
from spatialdata_segment.engine.devices import borrowed, load, turn
from spatialdata_segment.engine.entries import Entry, sound, write_entry
from spatialdata_segment.engine.memory import release
from spatialdata_segment.engine.planes import see_planes
from spatialdata_segment.errors import InputError, MethodError, ScratchError, ShardError
from spatialdata_segment.methods.base import Seeds, View
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import dask.array as da
    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.core.statistics import Statistic
    from spatialdata_segment.engine.devices import Turns
    from spatialdata_segment.engine.maps import Maps
    from spatialdata_segment.engine.planes import PlaneReader
    from spatialdata_segment.engine.preprocess import BoxReader
    from spatialdata_segment.engine.stored import Stored
    from spatialdata_segment.engine.tally import Tallies
    from spatialdata_segment.methods.base import Decoded, ImageInfo, Method

logger = logging.getLogger(__name__)

_SLAB_BYTES = 64e6
"""Of pixels that are read at once for a checksum, about."""


@dataclass(frozen=True)
class Job:
    """All that the shards of one mask share. Small: it travels with the tasks.

    Attributes
    ----------
    method, image, plan, statistics, devices
        What to run, on what, where.
    source
        The method's channels of the whole image, lazy; None where ``stored`` reads them, or where no image is at
        hand, but maps are.
    stored
        Reads a box of the same, where something does so faster.
    seeds
        Reads the seeds of a box, where the method needs some.
    folder
        Where entries are committed; None: results are returned.
    verify
        The image is not a file whose changes could be seen: a finished shard counts only if its input has
        the same checksum.
    maps
        The maps of an earlier phase, in place of pixels, as far as they reach.
    kept
        Finished shards outlive a failure of others.
    tallies
        What all shards have counted, of methods that `tally`.
    turns
        How many shards predict at the same time, and how many decode; None: as many as there are.
    run
        See `View`.
    """

    method: Method
    image: ImageInfo
    plan: Plan
    statistics: Mapping[Statistic, float]
    source: da.Array | None
    stored: Stored | BoxReader | PlaneReader | None = None
    devices: tuple[str, ...] = ("cpu",)
    seeds: Callable[[Box], Seeds] | None = None
    folder: Path | None = None
    verify: bool = False
    maps: Maps | None = None
    kept: bool = False
    tallies: Tallies | None = None
    turns: Turns | None = None
    run: str = field(default_factory=lambda: uuid4().hex)

    def path(self, index: int) -> Path:
        """File of a shard's result."""
        assert self.folder is not None
        return shard_path(self.folder, index)

    @property
    def on_device(self) -> bool:
        """Whether the shards keep a device busy."""
        return (self.maps is None and self.method.uses_device) or self.method.decodes_on_device

    @property
    def reads_itself(self) -> bool:
        """Whether a shard has what it needs without a block that is handed to it."""
        return self.maps is not None or self.source is None or self.source.shape[0] == 0 or self.stored is not None


def shard_path(folder: Path, index: int) -> Path:
    """File of a shard's result."""
    return folder / f"{index:07d}.shard"


@dataclass(frozen=True)
class Report:
    """What a shard says of itself when it is done."""

    index: int
    window: Box
    n_objects: int
    computed: bool = True
    rounds: int = 1


@dataclass(frozen=True)
class Failure:
    """A shard that raised."""

    index: int
    core: Box
    error: BaseException


def shard_error(failures: list[Failure], total: int, *, kept: bool = False) -> ShardError:
    """Return the error that names the first of the shards that failed."""
    first = min(failures, key=lambda f: f.index)
    others = f" ({len(failures) - 1} other shards failed as well)" if len(failures) > 1 else ""
    then = (
        "The finished shards are kept: the same call goes on from them"
        if kept
        else "Nothing is kept: to go on from finished shards, pass scratch= (or work in a store), and give a function "
        "a version, as in Function(function=..., version='1')"
    )
    error = ShardError(
        f"shard {first.index} of {total}, core [{first.core}], failed: {type(first.error).__name__}: "
        f"{first.error}{others}. {then}"
    )
    error.__cause__ = first.error
    return error


def run_shard(job: Job, index: int, block: NDArray[Any] | None) -> ShardResult | Report | Failure:
    """Run one shard and commit or return its result.

    ``block`` holds ``(c, [z], y, x)`` of what the window's `predict` reads, or of a smaller box around the core
    (map_overlap cannot reach beyond the neighbouring core); None where the method reads no pixels.
    """
    window = job.plan.window(index)
    if job.folder is not None and not job.verify and (entry := sound(job.path(index))) is not None:
        return replace(report_of(index, entry), computed=True)  # by a worker that died before it could tell
    try:
        pixels = None if job.maps is not None else read_pixels(job, window, block)
        crc = _input(job, window, pixels)
        if job.verify and (report := _finished(job, index, crc)) is not None:
            return report
        seen, rounds = _see_planes(job, window, pixels) if isinstance(job.method, Planes) else _see(job, window, pixels)
        result = seen.result(index)
        if job.folder is None:
            return result
        _commit(job.path(index), result, {"input": crc, "rounds": rounds})
        release()
    except ScratchError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a method raises is told with its shard)
        return Failure(index, window.core, error)
    return Report(index, result.window.box, len(result.objects), rounds=rounds)


def _input(job: Job, window: Window, pixels: NDArray[Any] | None) -> int:
    """Return a checksum of what a shard starts from: pixels or maps; statistics and seeds follow from files."""
    if pixels is None:
        if not job.verify:
            return 0
        assert job.maps is not None
        pixels = np.ascontiguousarray(job.maps.read(job.method.maps_box(job.image, window.box)))
        crc = zlib.crc32(pixels.data)
    else:
        crc = checksum(job, window, pixels)
    if not job.verify:
        return crc
    crc = zlib.crc32(repr(sorted((s.label, v) for s, v in job.statistics.items())).encode(), crc)
    if job.seeds is not None:
        seeds = job.seeds(window.box)
        for part in (seeds.labels, seeds.anchors):
            crc = crc if part is None else zlib.crc32(np.ascontiguousarray(part).data, crc)
    if job.tallies is not None:
        crc = zlib.crc32(job.tallies.read(job.method.maps_box(job.image, window.box)).data, crc)
    return crc


def _finished(job: Job, index: int, crc: int) -> Report | None:
    entry = sound(job.path(index))
    if entry is None or entry.meta["input"] != crc or entry.meta["rounds"] > 1:
        return None
    return report_of(index, entry)


def report_of(index: int, entry: Entry) -> Report:
    """Return the report of a shard that an earlier run finished."""
    meta = entry.meta
    return Report(index, Box(*map(tuple, meta["window"])), meta["n"], computed=False, rounds=meta["rounds"])


def read_pixels(job: Job, window: Window, block: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return what `predict` is given of a window: the block where it suffices, else read from the source."""
    if job.method.reads_parts:
        return np.zeros((job.image.n_channels, *(0 for _ in window.box.shape)), job.image.dtype)
    box = window.box.grow(job.method.reach(job.image), window.image)
    if block is None or block.shape[1:] != box.shape:
        return read_box(job, box)
    return _checked(block, box)


def read_box(job: Job, box: Box) -> NDArray[Any]:
    """Return the method's channels of any box, read-only.

    Raises
    ------
    InputError
        If a pixel is NaN or infinite.
    """
    return _checked(_read(job, box), box)


def checksum(job: Job, window: Window, pixels: NDArray[Any]) -> int:
    """Return the checksum of what `read_pixels` returned, or of all that `predict` may read for itself."""
    if not (job.method.reads_parts and job.verify):
        return zlib.crc32(pixels.data)
    crc, box = 0, window.box.grow(job.method.reach(job.image), window.image)
    thick = max(1, int(_SLAB_BYTES / (box.size / box.shape[0] * job.image.n_channels * job.image.dtype.itemsize)))
    for first in range(box.start[0], box.stop[0], thick):
        slab = Box((first, *box.start[1:]), (min(first + thick, box.stop[0]), *box.stop[1:]))
        crc = zlib.crc32(np.ascontiguousarray(_read(job, slab)).data, crc)
    return crc


def _checked(block: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a block of pixels, locked; raise where one is not finite."""
    block = np.ascontiguousarray(block)
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        at = np.argwhere(~np.isfinite(block))[0]
        where = dict(zip("czyx" if block.ndim == 4 else "cyx", (int(i) for i in at), strict=True))
        where |= {a: where[a] + o for a, o in zip("zyx"[-box.ndim :], box.start, strict=True)}
        raise InputError(
            f"pixel {where} is {block[tuple(at)]}, expected finite values: replace NaN and infinite pixels, "
            "for example by 0 (numpy.nan_to_num)"
        )
    block = block.view()
    block.flags.writeable = False
    return block


def _read(job: Job, box: Box) -> NDArray[Any]:
    if job.stored is not None:
        return job.stored.read(box)
    assert job.source is not None
    return np.asarray(job.source[(slice(None), *box.slices)].compute(scheduler="synchronous"))


def _see_planes(job: Job, window: Window, pixels: NDArray[Any] | None) -> tuple[Seen, int]:
    return see_planes(job, window, pixels, _see, _read)


def _see(job: Job, window: Window, pixels: NDArray[Any] | None) -> tuple[Seen, int]:
    """Predict and decode; look again, farther, at what the core holds and the window does not show whole."""
    context = job.method.context(job.image)

    def look(window: Window, pixels: NDArray[Any] | None = None) -> Seen:
        tally = None if job.tallies is None else job.tallies.read
        view = View(window, job.image, job.statistics, run=job.run, tally=tally)
        with turn(job.turns, "predict"):
            maps = _maps(job, view, pixels)
        if job.seeds is not None:
            view = replace(view, seeds=_seeds(job.seeds, window.box, maps, sparse=job.method.sparse))
        with turn(job.turns, "decode"):
            return Seen.of(_decode(job, maps, view), window, context)

    seen, rounds = look(window, pixels), 1
    if not seen.is_resolved:
        logger.debug("a shard looks again beyond %s", window.box)
        seen, rounds = look_again(seen, job.plan.halo, context, look), 2
    return seen, rounds


def _seeds(seeds: Callable[[Box], Seeds], box: Box, maps: NDArray[Any], *, sparse: bool) -> Seeds:
    """Return the seeds of a window: of points, all that are among them, wherever they lie."""
    if not sparse or not len(maps):
        return seeds(box)
    points = maps["point"]
    every = box.union(Box(tuple(points.min(axis=0).tolist()), tuple((points.max(axis=0) + 1).tolist())))
    found = seeds(every)
    return replace(found, anchors=found.anchors + np.array(every.start) - np.array(box.start))


def _decode(job: Job, maps: NDArray[Any], view: View) -> Decoded:
    if not job.method.decodes_on_device:
        return job.method.decode(maps, view)
    with borrowed(job.devices) as device:
        return job.method.decode(maps, replace(view, device=device))


def _maps(job: Job, view: View, pixels: NDArray[Any] | None) -> NDArray[Any]:
    """Return the maps of a window, from an earlier phase where it left them, in their stored precision."""
    if job.maps is not None:
        box = job.method.maps_box(job.image, view.window.box)
        if job.maps.holds(box):
            return job.maps.read(box)
        if job.source is None and job.stored is None:
            raise MethodError(
                f"the maps in {job.maps.folder} do not reach as far as [{view.window.box}], and no image is at hand: "
                "predict the whole image or a larger region, or pass sdata= with the image"
            )
    return dense_maps(job, view.window, pixels)


def dense_maps(job: Job, window: Window, pixels: NDArray[Any] | None = None) -> NDArray[Any]:
    """Predict the maps of a window, of pixels that were read or are read now, in their stored precision."""
    method = job.method
    view = View(window, job.image, job.statistics, run=job.run, read=partial(read_box, job))
    image = read_pixels(job, window) if pixels is None else pixels
    if method.uses_device:
        with borrowed(job.devices) as device:
            maps = np.asarray(method.predict(image, replace(view, model=load(method, device))))
    else:
        maps = np.asarray(method.predict(image, replace(view, model=load(method, job.devices[0]))))
    expected = method.maps_box(job.image, window.box).shape
    if method.sparse:
        if maps.ndim != 1 or maps.dtype.names is None or "point" not in maps.dtype.names:
            raise MethodError(
                f"{method.name}.predict returned maps of shape {maps.shape} and dtype {maps.dtype}, expected (n,) with "
                'a field "point"'
            )
    elif maps.shape[1:] != expected:
        raise MethodError(
            f"{method.name}.predict returned maps of shape {maps.shape}, expected (k, {', '.join(map(str, expected))})"
        )
    return method.stored(maps)


def run_proposal(job: Job, index: int) -> Report | Failure:
    """List the candidates anchored in a core, and the pairs they are in, from maps that are there."""
    window = job.plan.window(index)
    try:
        crc = _input(job, window, None)
        if (report := _finished(job, index, crc)) is not None:
            return report
        view = View(window, job.image, job.statistics, run=job.run)
        maps = _maps(job, view, None)
        if job.method.sparse:
            window, maps = _all_around(job, window, maps)
            view = replace(view, window=window)
        found = job.method.propose(maps, view)
        anchors = np.asarray(found.anchors, np.int64) + np.array(window.box.start)
        inside = window.core.holds(anchors)
        edges = np.asarray(found.edges, np.int64).reshape(-1, 2)
        edges = edges[inside[edges].any(axis=1)]
        arrays = {
            "anchors": anchors[inside],
            "scores": np.asarray(found.scores, np.float64)[inside],
            "pairs": anchors[edges].reshape(len(edges), 2 * window.box.ndim),
            **{f"column_{name}": np.asarray(values)[inside] for name, values in found.columns.items()},
        }
        box = window.box
        write_entry(job.path(index), arrays, {"input": crc, "rounds": 1, "window": [box.start, box.stop], "n": 0})
    except ScratchError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a method raises is told with its shard)
        return Failure(index, window.core, error)
    return Report(index, box, int(inside.sum()))


def run_tally(job: Job, index: int) -> Report | Failure:
    """Count what a core adds, from maps that are there, in a window that is large enough for it."""
    window, far = job.plan.window(index), 1
    try:
        crc = _input(job, window, None)
        if (report := _finished(job, index, crc)) is not None:
            return report
        view = View(window, job.image, job.statistics, run=job.run)
        while (counts := job.method.tally(_maps(job, view, None), view)) is None:
            if view.window.is_whole:
                raise MethodError(f"{job.method.name}.tally returned None for the whole image, expected counts")
            far *= 2
            halo = tuple(far * max(h, 1) for h in job.plan.halo)
            view = replace(view, window=job.plan.window(index, halo))
        box = job.method.maps_box(job.image, view.window.box)
        meta = {"input": crc, "rounds": 1, "window": [box.start, box.stop], "n": 0}
        write_entry(job.path(index), {"counts": counts}, meta)
    except ScratchError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a method raises is told with its shard)
        return Failure(index, window.core, error)
    return Report(index, box, 0)


def _all_around(job: Job, window: Window, points: NDArray[Any]) -> tuple[Window, NDArray[Any]]:
    """Return the window that holds the extents of all points of the core, and the points that meet it."""
    assert job.maps is not None
    ndim = window.box.ndim
    boxes = job.method.extents(points[window.core.holds(points["point"])], job.image)
    if not len(boxes):
        return window, points
    wide = window.box.union(
        Box(tuple(boxes[:, :ndim].min(axis=0).tolist()), tuple(boxes[:, ndim:].max(axis=0).tolist()))
    )
    if wide == window.box:
        return window, points
    return replace(window, box=wide), job.maps.read(wide)


def _commit(path: Path, result: ShardResult, meta: Mapping[str, Any]) -> None:
    objects, box = result.objects, result.window.box
    labels = result.labels.read(box).astype(np.uint16 if len(objects) < 1 << 16 else np.int32, copy=False)
    arrays = {"labels": labels, **{f.name: getattr(objects, f.name) for f in fields(objects)}}
    write_entry(path, arrays, {**meta, "window": [box.start, box.stop], "n": len(objects)})


class StoredLabels(Labels):
    """Labels of a box that lie in an entry."""

    def __init__(self, box: Box, entry: Entry) -> None:
        self.box = box
        self._entry = entry

    def read(self, box: Box) -> NDArray[np.integer]:
        """Return the labels of ``box``, which lies inside."""
        inner = Box(
            tuple(a - o for a, o in zip(box.start, self.box.start, strict=True)),
            tuple(b - o for b, o in zip(box.stop, self.box.start, strict=True)),
        )
        return self._entry.read("labels", inner)


def read_result(path: Path, index: int, plan: Plan) -> ShardResult:
    """Return a committed result; its labels stay on disk."""
    status = path.stat()
    return _read_result(path, (status.st_mtime_ns, status.st_size, status.st_ino), index, plan)


@lru_cache(maxsize=24)
def _read_result(path: Path, _state: tuple[int, ...], index: int, plan: Plan) -> ShardResult:
    entry = Entry(path)
    objects = ShardObjects(**{f.name: entry.read(f.name) for f in fields(ShardObjects)})
    box = Box(*map(tuple, entry.meta["window"]))
    return ShardResult(index, Window(box, plan.core(index), plan.image), StoredLabels(box, entry), objects)

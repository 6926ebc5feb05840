"""What a window of a volume shows, seen plane by plane: each as an image by itself, looked at again by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.shards import ShardObjects
from spatialdata_segment.engine.again import Seen
from spatialdata_segment.methods.base import Seeds
from spatialdata_segment.methods.plane_points import by_plane, in_plane
from spatialdata_segment.methods.planes import Planes, run_of_plane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.engine.maps import Maps
    from spatialdata_segment.engine.shard import Job


@dataclass(frozen=True)
class PlaneReader:
    """Boxes ``(y, x)`` of one plane, from what reads boxes of the volume."""

    volume: Callable[[Box], NDArray[Any]]
    z: int

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels ``(c, y, x)`` of a box."""
        plane: NDArray[Any] = self.volume(box.in_plane(self.z))[:, 0]
        return plane


def see_planes(
    job: Job,
    window: Window,
    pixels: NDArray[Any] | None,
    see: Callable[[Job, Window, NDArray[Any] | None], tuple[Seen, int]],
    read: Callable[[Job, Box], NDArray[Any]],
) -> tuple[Seen, int]:
    """Return what the planes of a window show, and how often the hardest of them was looked at.

    Parameters
    ----------
    job
        Of `Planes`.
    window
        Of the volume.
    pixels
        ``(c, z, y, x)``; None where maps are there.
    see
        Returns what a window of one image shows, all in its core seen whole.
    read
        Reads a box of the volume.
    """
    assert isinstance(job.method, Planes)
    flat = replace(job, method=job.method.decoder(job.image), image=job.image.flat, plan=job.plan.flat, source=None)
    has_pixels = job.source is not None or job.stored is not None
    found = []
    for z, maps in _maps_of_planes(job, window):
        one = replace(
            flat,
            stored=PlaneReader(partial(read, job), z) if has_pixels else None,
            maps=maps,
            seeds=None if job.seeds is None else partial(_seeds_of_plane, job.seeds, z),
            run=run_of_plane(job.run, z),
        )
        found.append(see(one, window.flat, None if pixels is None else _locked(pixels[:, z - window.box.start[0]])))
    return _stacked(window, [seen for seen, _ in found]), max(rounds for _, rounds in found)


def _maps_of_planes(job: Job, window: Window) -> Iterator[tuple[int, Maps | None]]:
    """Yield the planes of a window, and what reads their maps: points lie by blocks of planes, and are read once."""
    maps, planes = job.maps, range(window.core.start[0], window.core.stop[0])
    if maps is None:
        yield from ((z, None) for z in planes)
    elif not maps.sparse or not maps.holds(window.box):
        yield from ((z, replace(maps, plane=z)) for z in planes)
    else:
        points = maps.read(window.box)
        for z, at in by_plane(points, planes.start, planes.stop):
            yield z, replace(maps, plane=z, held=(window.box.flat, in_plane(points[at])))


def _seeds_of_plane(seeds: Callable[[Box], Seeds], z: int, box: Box) -> Seeds:
    found = seeds(box.in_plane(z))
    return Seeds(None if found.labels is None else found.labels[0], found.anchors[:, 1:])


def _locked(plane: NDArray[Any]) -> NDArray[Any]:
    plane = np.ascontiguousarray(plane).view()
    plane.flags.writeable = False
    return plane


def _stacked(window: Window, planes: Sequence[Seen]) -> Seen:
    """Put the planes of the core, of which some show more than the window, into one volume."""
    first, flat = window.core.start[0], window.box.flat
    for seen in planes:
        flat = flat.union(seen.window.box)
    box = Box((first, *flat.start), (window.core.stop[0], *flat.stop))
    canvas = np.zeros(box.shape, np.int32)
    anchors, count = [], 0
    for k, seen in enumerate(planes):
        part = canvas[k][seen.window.box.within(flat)]
        np.add(seen.labels, np.int32(count), out=part, where=seen.labels > 0)
        anchors.append(np.insert(seen.objects.anchor, 0, first + k, axis=1))
        count += len(seen.objects)
    wide = Window(box, window.core, window.image)
    reason = np.concatenate([seen.objects.reason for seen in planes])
    objects = ShardObjects.of(canvas, np.concatenate(anchors), wide, reason)
    objects = replace(objects, owned=objects.owned & (objects.area > 0))
    return Seen(wide, canvas, objects, np.concatenate([seen.complete for seen in planes]))

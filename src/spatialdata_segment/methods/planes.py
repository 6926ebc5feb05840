"""A method of planes on a volume: every plane is an image by itself, and what is measured is that of the volume.

How the planes of a window are decoded is the business of `engine.planes`, how their objects are joined that of
`engine.join`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.methods.base import Candidates, ImageInfo, Method, View
from spatialdata_segment.methods.plane_points import by_plane, in_plane, in_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.statistics import Statistic

_STACK_BYTES = 24.0
"""Working memory of a voxel, beside that of the plane at work."""


class Planes(Method):
    """A volume, plane by plane.

    Parameters
    ----------
    plane
        Segments a plane; its ``stitch_threshold`` says what becomes of the planes' objects.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({3})

    plane: Method

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the method of planes."""
        return self.plane.name

    @property
    def default_channels(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """Those of the method of planes."""
        return self.plane.default_channels

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether a plane starts from its nuclei."""
        return self.plane.seeded

    @property
    def proposes(self) -> bool:  # type: ignore[override]
        """Whether candidates of a plane are resolved first."""
        return self.plane.proposes

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        """Whether the maps of a plane are points."""
        return self.plane.sparse

    @property
    def uses_device(self) -> bool:  # type: ignore[override]
        """Whether planes are predicted on a device."""
        return self.plane.uses_device

    @property
    def decodes_on_device(self) -> bool:
        """Whether planes are decoded on a device."""
        return self.plane.decodes_on_device

    @property
    def fixed_bytes(self) -> int:
        """Memory that does not depend on the window."""
        return self.plane.fixed_bytes

    @property
    def seconds_per_megapixel(self) -> float:  # type: ignore[override]
        """That of the method of planes."""
        return self.plane.seconds_per_megapixel

    @property
    def joins(self) -> bool:
        """Whether objects of consecutive planes are joined."""
        return bool(self.plane.stitch_threshold)

    def decoder(self, image: ImageInfo) -> Method:
        """Return what decodes a plane: where planes are joined, only whole objects can be too small."""
        return self.plane.without_least_size(image.flat)[0] if self.joins else self.plane

    def least_size(self, image: ImageInfo) -> float:
        """Return the voxels that a joined object must have."""
        return self.plane.without_least_size(image.flat)[1] if self.joins else 0.0

    def working_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the memory of one plane at work, and of what is kept of the others: of points, all."""
        at_work = shape if self.sparse else shape[1:]
        return int(np.prod(shape) * _STACK_BYTES) + self.plane.working_bytes(at_work)

    def roles(self, mask: str) -> tuple[int, ...] | None:
        """Return those of the method of planes."""
        return self.plane.roles(mask)

    def check(self, image: ImageInfo) -> None:
        """Check a plane."""
        self.plane.check(image.flat)
        self.plane.check_planes()

    def check_decoding(self) -> None:
        """Check whether maps of planes serve."""
        self.plane.check_decoding()
        self.plane.check_planes()

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return what a plane asks for: it is measured once, for the whole volume."""
        return self.plane.statistics(image.flat)

    def foreseen(self, image: ImageInfo) -> Self:
        """Return it with the method of planes as it is foreseen."""
        return self.model_copy(update={"plane": self.plane.foreseen(image.flat)})

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Adapt the method of planes."""
        return self.model_copy(update={"plane": self.plane.adapted(image.flat, statistics)})

    def estimate(
        self,
        read: Callable[[Box], NDArray[Any]],
        image: ImageInfo,
        statistics: Mapping[Statistic, float],
        model: object,
    ) -> float:
        """Return the median over a few planes, spread over the volume."""
        planes = [partial(_read_plane, read, z) for z in spread(image.shape[0])]
        return float(np.median([self.plane.estimate(plane, image.flat, statistics, model) for plane in planes]))

    def load(self, device: str) -> object:
        """Load the model of the method of planes."""
        return self.plane.load(device)

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none along z."""
        return (0, *self.plane.context(image.flat))

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none along z."""
        return (0, *self.plane.reach(image.flat))

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none along z."""
        return (0, *self.plane.halo(image.flat))

    def map_context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none along z."""
        return (0, *self.plane.map_context(image.flat))

    def maps_box(self, image: ImageInfo, box: Box) -> Box:
        """Return the box in each plane, of the same planes."""
        return _stacked(box, self.plane.maps_box(image.flat, box.flat))

    def maps_window(self, image: ImageInfo, box: Box) -> Box:
        """Return the window in each plane, of the same planes."""
        return _stacked(box, self.plane.maps_window(image.flat, box.flat))

    def extents(self, points: NDArray[Any], image: ImageInfo) -> NDArray[np.int64]:
        """Return those in each plane, of that plane."""
        z, flat = points["point"][:, :1].astype(np.int64), self.plane.extents(in_plane(points), image.flat)
        return np.hstack([z, flat[:, :2], z + 1, flat[:, 2:]])

    def block_multiple(self, image: ImageInfo) -> tuple[int, ...] | None:
        """Return that of a plane, of single planes."""
        multiple = self.plane.block_multiple(image.flat)
        return None if multiple is None else (1, *multiple)

    def predict(self, image: NDArray[Any], view: View) -> NDArray[Any]:
        """Predict plane by plane."""
        out: NDArray[Any] | None = None
        found = []
        for k, z in enumerate(range(view.window.box.start[0], view.window.box.stop[0])):
            pixels = np.ascontiguousarray(image[:, k])
            pixels.flags.writeable = False
            maps = self.plane.stored(np.asarray(self.plane.predict(pixels, _view_of(view, z))))
            if self.sparse:
                found.append(in_volume(maps, z))
                continue
            if out is None:
                out = np.empty((len(maps), image.shape[1], *maps.shape[1:]), maps.dtype)
            out[:, k] = maps
        return np.concatenate(found) if out is None else out

    def stored(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Return maps in the precision in which those of a plane are stored."""
        return self.plane.stored(maps)

    def propose(self, maps: NDArray[Any], view: View) -> Candidates:
        """List the possible objects plane by plane."""
        anchors, scores, edges, columns, count = [], [], [], [], 0
        for k, (z, flat) in enumerate(self._maps_of_planes(maps, view)):
            found = self.plane.propose(flat, _view_of(view, z))
            anchors.append(np.insert(np.asarray(found.anchors, np.int64).reshape(-1, 2), 0, k, axis=1))
            scores.append(np.asarray(found.scores, np.float64))
            edges.append(np.asarray(found.edges, np.int64).reshape(-1, 2) + count)
            columns.append(found.columns)
            count += len(anchors[-1])
        said = {name: np.concatenate([np.asarray(c[name]) for c in columns]) for name in columns[0]}
        return Candidates(np.concatenate(anchors), np.concatenate(scores), np.concatenate(edges), said)

    def _maps_of_planes(self, maps: NDArray[Any], view: View) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield each plane of a window, and its maps."""
        first, stop = view.window.box.start[0], view.window.box.stop[0]
        if self.sparse:
            yield from ((z, in_plane(maps[at])) for z, at in by_plane(maps, first, stop))
        else:
            yield from ((z, maps[:, z - first]) for z in range(first, stop))

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the method of planes."""
        kind = type(self.plane)
        return {"planes": self.plane.fingerprint(), "class": f"{kind.__module__}.{kind.__qualname__}"}


def suited(methods: Mapping[str, Method], shape: tuple[int, ...]) -> dict[str, Method]:
    """Return what segments the masks of an image ``([z], y, x)``: the methods, of planes where they ask for that.

    Raises
    ------
    InputError
        If one does not work on such an image.
    """
    found = {mask: _suited(method, shape) for mask, method in methods.items()}
    cell, nucleus = found.get("cell"), found.get("nucleus")
    if isinstance(cell, Planes) and cell.seeded and not isinstance(nucleus, Planes):
        assert nucleus is not None
        raise InputError(
            f"{cell.name} grows plane by plane, and its nuclei are made in 3D by {nucleus.name}: give the nucleus "
            "method a stitch_threshold as well, such as 0.25"
        )
    return found


def by_planes(method: Method, ndim: int) -> bool:
    """Tell whether a method segments images of so many spatial axes plane by plane."""
    return ndim == 3 and (method.stitch_threshold is not None or 3 not in method.ndims)


def _suited(method: Method, shape: tuple[int, ...]) -> Method:
    threshold, ndim = method.stitch_threshold, len(shape)
    if ndim in method.ndims and not by_planes(method, ndim):
        return method
    if ndim == 2 or 2 not in method.ndims:
        if ndim in method.ndims:
            raise InputError(
                f"stitch_threshold={threshold}: {method.name} works on volumes alone, and has no planes to stitch; "
                "leave it out"
            )
        model = getattr(method, "model", None)
        raise InputError(
            f"{method.name}{'' if model is None else f' with the model {model}'} works on "
            f"{' and '.join(f'{n}D' for n in sorted(method.ndims))} images, and this one is {ndim}D with shape "
            f"{shape}{': leave do_3D out' if getattr(method, 'do_3D', False) else ''}"
        )
    if threshold is None and shape[0] > 1:
        warnings.warn(
            f"{method.name} works on planes: the objects of the {shape[0]} planes get ids of their own. To join them "
            "into 3D objects pass stitch_threshold=, such as 0.25; 0 keeps them apart without this warning",
            SegmentationWarning,
            stacklevel=5,
        )
    return Planes(plane=method)


def spread(n: int, most: int = 3) -> list[int]:
    """Return some of ``n`` planes, spread evenly."""
    return sorted({(2 * k + 1) * n // (2 * most) for k in range(most)})


def _stacked(box: Box, plane: Box) -> Box:
    return Box((box.start[0], *plane.start), (box.stop[0], *plane.stop))


def _read_plane(read: Callable[[Box], NDArray[Any]], z: int, box: Box) -> NDArray[Any]:
    plane: NDArray[Any] = read(box.in_plane(z))[:, 0]
    return plane


def _view_of(view: View, z: int) -> View:
    """Return what is known of one plane."""
    return replace(view, window=view.window.flat, image=view.image.flat, run=run_of_plane(view.run, z))


def run_of_plane(run: str, z: int) -> str:
    """Return the name under which a plane's results may be used again, see `View`."""
    return run and f"{run}/{z}"

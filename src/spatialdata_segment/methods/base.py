"""What a segmentation method is: the contract between the engine and every algorithm.

The engine cuts the image into windows and calls, for each of them, `Method.predict` (pixels -> dense maps)
and `Method.decode` (maps -> labels with anchors). A method knows nothing of shards, dask or SpatialData.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.core.plan import Window
    from spatialdata_segment.core.statistics import Statistic


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"is {value}, expected a number from 0 to 1")
    return value


Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_flag)]
"""A part of a whole, 0 to 1."""


@dataclass(frozen=True)
class ImageInfo:
    """What a method may know of the image before it sees a pixel.

    Attributes
    ----------
    shape
        ``([z], y, x)`` of the whole image.
    dtype
        Of its pixels.
    pixel_size
        µm a pixel along ``([z], y, x)``, or None.
    n_channels
        That the method reads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pixel_size: tuple[float, ...] | None = None
    n_channels: int = 1

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def flat(self) -> ImageInfo:
        """What is known of each plane of a volume."""
        size = None if self.pixel_size is None else self.pixel_size[-2:]
        return replace(self, shape=self.shape[-2:], pixel_size=size)


@dataclass(frozen=True)
class Decoded:
    """What `Method.decode` returns for one window.

    Attributes
    ----------
    labels
        ``([z], y, x)`` integers: 0 background, ``1..n`` the objects. -1 marks pixels that belong to
        something which the window does not show; where such a pixel lies in the core, the shard runs again
        with a larger halo.
    anchors
        ``(n, ndim)`` pixel of each object, *in indices of the window*, by which the object is owned: a flow
        sink, a distance peak. It must not depend on the window. None: the object's pixel nearest its
        centroid.
    complete
        ``(n,)`` bool: the object is what the whole image would give. None: the engine holds an object for
        complete when more than `Method.context` pixels lie between it and the window's open sides.
    reasons
        ``(n,)`` codes of `core.matching.Reason`: why the method rejects an object, 0 where it does not. What is
        rejected stays a candidate, with its reason on record, and is not in the result. Judge whole objects
        only: of one that is not complete the code does not count. None: nothing is rejected.
    """

    labels: NDArray[np.integer]
    anchors: NDArray[np.integer] | None = None
    complete: NDArray[np.bool_] | None = None
    reasons: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class Candidates:
    """What `Method.propose` returns for one window: possible objects, and who suppresses whom.

    A rule that chains (greedy non-maximum suppression) has no bounded context. Its pairs are gathered from
    all shards and resolved once for the whole image; `Method.decode` then gets those that remain.

    Attributes
    ----------
    anchors
        ``(n, ndim)`` pixels in indices of the window, unique.
    scores
        ``(n,)`` float: the higher goes first, ties by raster position.
    edges
        ``(m, 2)`` positions of two candidates, of which only one may stay.
    columns
        What the table of the cells says of each candidate besides: names, and ``(n,)`` or ``(n, k)`` values; of nuclei
        with cells the names are ``nucleus_...``. Of objects of planes that are joined, those of the highest score
        count. Those of a name that begins with "_" are for `Method.polygons`.
    """

    anchors: NDArray[np.integer]
    scores: NDArray[np.floating]
    edges: NDArray[np.integer]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seeds:
    """What a method starts from, in one window: the objects of an earlier mask, or resolved candidates.

    Attributes
    ----------
    labels
        ``([z], y, x)`` int32, ``1..n``; None where the seeds are points.
    anchors
        ``(n, ndim)`` in indices of the window; they may lie outside of it.
    """

    labels: NDArray[np.int32] | None
    anchors: NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """All that a method may know of the block it works on.

    Attributes
    ----------
    window
        Where the block lies. What depends on a grid (tiles) must take it from here, fixed to the image.
    image
        The whole image's shape, dtype and pixel size.
    statistics
        The numbers that `Method.statistics` asked for.
    seeds
        For `Method.decode` of a seeded or a proposing method.
    model
        For `Method.predict`: what `Method.load` returned.
    run
        Names the image, the method and the statistics: under it what was computed of a place may be used again, by
        other windows of this process. Empty: it may not.
    device
        For `Method.decode`, where `Method.decodes_on_device` is set.
    tally
        For `Method.decode` of a method that `tallies`: returns the sums of what `Method.tally` counted, in any box of
        the maps' grid.
    read
        For `Method.predict`, where `Method.reads_parts` is set: returns the method's channels ``(c, [z], y, x)`` of any
        box of the image.
    """

    window: Window
    image: ImageInfo
    statistics: Mapping[Statistic, float]
    seeds: Seeds | None = None
    model: object = None
    run: str = ""
    device: str = "cpu"
    tally: Callable[[Box], NDArray[np.int32]] | None = None
    read: Callable[[Box], NDArray[Any]] | None = None


class Method(BaseModel):
    """Base of all methods: frozen, validated parameters, and two phases.

    Subclass it, set the class variables, and implement `predict` and `decode`. `testing.MethodTests` holds a
    subclass to the contract.

    Parameters
    ----------
    channels
        Names or 0-based indices of the channels, in the method's order; None: the workflow's.
    stitch_threshold
        Of a volume: every plane is segmented by itself in 2D, and objects of consecutive planes whose IoU reaches
        this, above 0 and up to 1, are joined; 0: planes keep distinct ids. None: in 3D, where the method can, else as
        0. An image of one plane ``(y, x)`` has nothing to join.

    Attributes
    ----------
    name
        The method's name in configurations.
    method_version
        Changes whenever the same input may give other labels: part of the fingerprint by which runs resume.
    ndims
        Numbers of spatial axes that it works on.
    default_channels
        Which of the workflow's channels it reads where `channels` does not say: 0 is the nuclear, 1 the
        membrane stain. None: all of them. Empty: no pixels at all.
    seeded
        `decode` starts from the objects of the nucleus mask.
    proposes
        `propose` comes before `decode`.
    map_dtype
        Stored precision of the maps. They are rounded to it before they are decoded, so that a run in two
        phases gives the labels of a run in one. None: that in which `predict` returns them.
    sparse
        The maps are points with values, as many as there are: `predict` returns a structured array ``(n,)`` with a
        field "point" ``(ndim,)`` int32, the pixel in the whole image, which lies in the window and comes once. A window
        of `propose` or `decode` gets all points whose `extents` meet it, also of points outside; `propose` gets a
        window that holds the extents of all points of its core. Goes with `proposes`.
    maps_are_local
        A map's value is the same in every window that shows `map_context` pixels around it, so that maps can be kept
        and decoded later, in other windows. False for maps that number objects.
    decode_parameters
        Names of the parameters that `predict` does not read: maps that are kept serve for any value of them.
    tallies
        `tally` comes before `decode`.
    reads_parts
        `predict` reads for itself, with ``view.read``, what it needs one after the other: the pixels of all that it
        reads at once would not fit (planes along all axes of a volume). ``image`` is then empty.
    maps_first
        The maps of all of the image come before any window is decoded: halos are predicted once.
    uses_device
        `predict` runs on one of the devices of the run, which several threads may use at once.
    example
        Values of parameters that have no default, for templates.
    bytes_per_pixel
        Peak working memory a window pixel, for the plan.
    seconds_per_megapixel
        Rough time of one core for a million window pixels, for the plan.
    scratch_bytes_per_pixel
        Bytes on disk, until a run ends, of the maps of an image pixel, where all of them are there at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    name: ClassVar[str] = "method"
    method_version: ClassVar[str] = "1"
    ndims: ClassVar[frozenset[int]] = frozenset({2})
    default_channels: ClassVar[tuple[int, ...] | None] = (0,)
    seeded: ClassVar[bool] = False
    proposes: ClassVar[bool] = False
    map_dtype: ClassVar[str | None] = "float32"
    sparse: ClassVar[bool] = False
    maps_are_local: ClassVar[bool] = True
    decode_parameters: ClassVar[frozenset[str]] = frozenset()
    tallies: ClassVar[bool] = False
    reads_parts: ClassVar[bool] = False
    maps_first: ClassVar[bool] = False
    uses_device: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {}
    bytes_per_pixel: ClassVar[float] = 64.0
    seconds_per_megapixel: ClassVar[float] = 0.2
    scratch_bytes_per_pixel: ClassVar[float] = 0.0

    channels: tuple[str | int, ...] | None = None
    stitch_threshold: Share | None = None

    @field_validator("channels", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value

    def without_least_size(self, image: ImageInfo) -> tuple[Self, float]:
        """Return the method that rejects no object for being small, and the pixels that an object must have.

        Where planes are stitched, each is decoded with that method, and objects of fewer voxels in all are rejected.
        """
        return self, 0.0

    def working_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the working memory of a window of that shape, for the plan; `fixed_bytes` come besides."""
        return int(np.prod(shape) * self.bytes_per_pixel)

    @property
    def fixed_bytes(self) -> int:
        """Working memory a window that does not depend on its size (the batch of a network), for the plan."""
        return 0

    def roles(self, mask: str) -> tuple[int, ...] | None:
        """Return which of the workflow's channels it reads for a mask, "nucleus" or "cell"; see `default_channels`."""
        return self.default_channels

    def check(self, image: ImageInfo) -> None:
        """Raise what can be known to be wrong before anything runs: a file that is no network, too many channels."""

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Numbers of the whole image that `predict` and `decode` need. Never compute such of a window."""
        return ()

    @property
    def decodes_on_device(self) -> bool:
        """Whether `decode` runs on one of the devices of the run as well, which is ``view.device``."""
        return False

    def estimate(
        self,
        read: Callable[[Box], NDArray[Any]],
        image: ImageInfo,
        statistics: Mapping[Statistic, float],
        model: object,
    ) -> float:
        """Return the diameter, px, of a usual object, where `statistics` asks for the kind "diameter".

        Parameters
        ----------
        read
            Returns the method's channels ``(c, [z], y, x)`` of a box. Read windows spread over the image.
        image
            What is known of it.
        statistics
            The other numbers that were asked for.
        model
            What `load` returned.
        """
        raise NotImplementedError

    def foreseen(self, image: ImageInfo) -> Self:
        """Return the method with what it takes from the image's shape and pixel size alone: what a run would take."""
        return self

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Return the method with what it takes from the image filled in; its context may then be another."""
        return self

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Pixels, per axis, up to which a pixel's label may depend on its surroundings: the least halo."""
        raise NotImplementedError

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Pixels, per axis, beyond the window that `predict` is given besides, or reads (the tiles of a network)."""
        return (0,) * image.ndim

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Halo, per axis, that is taken when none is given: large enough for common objects."""
        return tuple(max(64, 2 * c) if image.ndim == 2 else max(16, 2 * c) for c in self.context(image))

    def load(self, device: str) -> object:
        """Load what the method needs (a network), once a process and device; handed to `predict` as ``model``."""
        return None

    def predict(self, image: NDArray[Any], view: View) -> NDArray[Any]:
        """Turn pixels into dense maps.

        Parameters
        ----------
        image
            ``(c, [z], y, x)``, read-only, the method's channels in its order, of the window and of `reach` around
            it, as far as the image goes.
        view
            What is known of the block.

        Returns
        -------
        ``(k, [z], y, x)`` of the window, cast to `map_dtype` by the engine.
        """
        raise NotImplementedError

    def map_context(self, image: ImageInfo) -> tuple[int, ...]:
        """Pixels, per axis, of the window around a pixel that its maps depend on; what `reach` gives is not counted."""
        return self.context(image)

    def maps_box(self, image: ImageInfo, box: Box) -> Box:
        """Return where the maps of a window lie among those of the whole image: there, unless they have an own grid."""
        return box

    def maps_window(self, image: ImageInfo, box: Box) -> Box:
        """Return the least window whose maps hold a box of those of the whole image; see `maps_box`."""
        return box

    def extents(self, points: NDArray[Any], image: ImageInfo) -> NDArray[np.int64]:
        """Return ``(n, 2 * ndim)`` the pixels that the object of each point may fill or be judged by, where `sparse`.

        Starts, then stops, cut at the image, and not empty. Two whose extents do not meet have nothing to do with
        each other.
        """
        raise NotImplementedError

    def block_multiple(self, image: ImageInfo) -> tuple[int, ...] | None:
        """Return pixels, per axis, of which blocks of maps are multiples, where `sparse`; None: as others."""
        return None

    def check_decoding(self) -> None:
        """Raise where maps that are kept do not serve for these parameters."""

    def check_planes(self) -> None:
        """Raise where the method, as it is set, does not serve for the planes of a volume; see `stitch_threshold`."""

    def polygons(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.object_] | None:
        """Return an outline for each object of a mask, of what `Candidates.columns` said; None: that of its pixels.

        Coordinates ``(x, y)`` have the centre of pixel 0 at 0.5.
        """
        return None

    def propose(self, maps: NDArray[Any], view: View) -> Candidates:
        """List the possible objects of a window, where `proposes` is set."""
        raise NotImplementedError

    def tally(self, maps: NDArray[Any], view: View) -> NDArray[np.int32] | None:
        """Count, where `tallies` is set, what the core of a window adds to places of it (ends of paths, votes).

        What the cores of all windows add is summed before `decode`, which then knows the sums of the whole image.

        Returns
        -------
        ``([z], y, x)`` of the maps. None: the window is too small for it, and a larger one is tried.
        """
        raise NotImplementedError

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Turn maps into labels, without the image."""
        raise NotImplementedError

    def stored(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Return maps in the precision in which they are stored."""
        return maps if self.map_dtype is None else maps.astype(self.map_dtype, copy=False)

    @property
    def resumable(self) -> bool:
        """Whether an equal fingerprint means equal results, so that a run may go on from another's shards."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the result, JSON-like."""
        return {"method": self.name, "method_version": self.method_version, **self.model_dump(mode="json")}


def pixels(distance: float, unit: str, image: ImageInfo) -> tuple[float, ...]:
    """Turn a distance in ``unit`` ("px" or "um") into pixels along ``(z, y, x)``.

    Raises
    ------
    InputError
        If the unit is "um" and the pixel size is not known.
    """
    from spatialdata_segment.errors import InputError

    if unit == "px":
        return (distance,) * 3
    if image.pixel_size is None:
        raise InputError(f"distance={distance} µm needs the pixel size: pass pixel_size=, or give it in px")
    size = (image.pixel_size[0],) * (3 - image.ndim) + image.pixel_size
    return tuple(distance / s for s in size)


def whole(distance: tuple[float, ...], ndim: int) -> tuple[int, ...]:
    """Round distances along ``(z, y, x)`` up to whole pixels along the image's own axes."""
    return tuple(ceil(d) for d in distance[3 - ndim :])

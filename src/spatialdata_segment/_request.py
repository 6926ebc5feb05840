"""What one call of `segment` asks for, resolved and checked before anything runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._channels import Channel, base_channels, method_channels, read_channels, roles
from spatialdata_segment._region import region_of
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.memory import check_memory
from spatialdata_segment.engine.stored import Stored
from spatialdata_segment.engine.whole import read_source
from spatialdata_segment.errors import InputError, SegmentationWarning, is_whole
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.planes import Planes, suited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dask.array as da
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment._region import Region
    from spatialdata_segment.config import Workflow
    from spatialdata_segment.core.statistics import Statistic
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.preprocess import BoxReader, Preprocessing
    from spatialdata_segment.methods.base import Method

SHARD_SIZE = {2: 2048 * 2048, 3: 256**3}
"""Pixels (voxels) of a core where none are asked for."""


@dataclass(frozen=True)
class Request:
    """A checked call: what to read, what to run, what to write.

    Attributes
    ----------
    ref, info
        The image; of one that is not at hand its grid.
    workflow
        The methods and rules.
    methods
        What segments each mask of this image: the workflow's methods, some of them plane by plane.
    channels
        The channels that each mask's method reads.
    preprocessing
        What is done to them before.
    images
        What each mask's method knows of the image: the dtype is that of the pixels it gets.
    plans
        Shard plan of each mask; all have the same cores.
    region
        Where cells are wanted; None: everywhere.
    measured
        Indices of the channels whose means go into the table.
    matrix
        From pixel coordinates (x, y[, z]) to the coordinate system of ``obsm["spatial"]``.
    key_added, shapes, table
        What to write, and under which prefix.
    devices
        Where networks run.
    options
        The options of `segment` that decide the result, and are not the default: as a file has them.
    files
        What tells the image, or the maps, without reading them; None: nothing does.
    said, made_on
        Fingerprints of the methods, and the kind of device, of an earlier phase that made the maps.
    """

    ref: _elements.Grid
    info: ImageInfo
    workflow: Workflow
    methods: dict[str, Method]
    channels: dict[str, tuple[Channel, ...]]
    preprocessing: dict[str, Preprocessing]
    images: dict[str, ImageInfo]
    plans: dict[str, Plan]
    region: Region | None
    measured: tuple[int, ...]
    matrix: NDArray[np.float64]
    key_added: str
    shapes: bool
    table: bool
    roi_key: str | None = None
    overlap_px: int | Sequence[int] | None = None
    devices: tuple[str, ...] = ("cpu",)
    options: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] | None = None
    said: dict[str, dict[str, Any]] | None = None
    made_on: str | None = None

    @property
    def pixels(self) -> da.Array:
        """The whole image, lazy, ``(c, [z], y, x)``."""
        assert isinstance(self.ref, _elements.ImageRef)
        pixels: da.Array = self.ref.data.data
        return pixels

    def source(self, mask: str) -> da.Array:
        """Return the channels that a mask's method reads, ``(c, [z], y, x)``, before they are preprocessed."""
        return read_channels(self.pixels, self.channels[mask])

    def reader(self, mask: str, levels: Mapping[Statistic, float]) -> Stored | BoxReader | None:
        """Return what reads a box of the pixels that a mask's method gets faster than dask does, if anything does."""
        preprocessing, stored = self.preprocessing[mask], self.raw(mask)
        if not preprocessing:
            return stored
        raw = partial(read_source, self.source(mask)) if stored is None else stored.read
        return preprocessing.reader(raw, self.info.shape, levels)

    def raw(self, mask: str) -> Stored | None:
        """Return what reads a box of the channels that a mask's method reads, before they are preprocessed."""
        channels = self.channels[mask]
        plain = all(c.is_plain for c in channels)
        return self.stored(tuple(c.indices[0] for c in channels)) if plain else None

    def stored(self, channels: tuple[int, ...]) -> Stored | None:
        """Return channels of the image in its store, where the pixels are nothing but what lies there."""
        array = self.ref.array if isinstance(self.ref, _elements.ImageRef) else None
        return None if array is None else Stored(array, channels)

    @property
    def is_measured(self) -> bool:
        """Whether anything asks for the sizes and places of the objects."""
        return self.table or self.workflow.filter_masks_size or self.workflow.is_pair

    @property
    def pixel_area(self) -> float | None:
        """µm² of a pixel (µm³ of a voxel), or None."""
        return None if self.info.pixel_size is None else float(np.prod(self.info.pixel_size))

    @property
    def written(self) -> dict[str, str]:
        """Name of each written mask -> the mask that it shows."""
        masks = {name: name for name in self.workflow.methods()}
        if self.workflow.duplicate_mask:
            (only,) = masks
            masks = {"nucleus": only, "cell": only}
        return masks

    def names(self) -> dict[str, str]:
        """Return every output's name and kind."""
        return output_names(self.key_added, tuple(self.written), self.shapes, self.table)

    def parameters(self) -> dict[str, Any]:
        """Return what decides the result, JSON-like; shards are not part of it."""
        return {
            "image": self.ref.key,
            "scale": self.ref.scale,
            "channels": {m: [c.label(self.ref.channels) for c in at] for m, at in self.channels.items()},
            "pixel_size": self.info.pixel_size,
            "region": None if self.region is None else self.region.fingerprint(),
            "workflow": self.workflow.fingerprint() if self.said is None else self.workflow.fingerprint(self.said),
            **self._precision(),
            "versions": {p: version(p) for p in ("spatialdata-segment", "numpy", "scipy", "scikit-image", "numba")},
        }

    def _precision(self) -> dict[str, Any]:
        """Return what of the devices decides the result: their kind."""
        used = any(m.uses_device for m in self.workflow.methods().values())
        return {"device": self.made_on or self.devices[0].partition(":")[0]} if used else {}

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the content of the scratch."""
        plan = {m: {"chunks": [list(c) for c in p.chunks], "halo": list(p.halo)} for m, p in self.plans.items()}
        shape = [len(self.ref.channels), *self.info.shape]
        image = {"shape": shape, "dtype": str(self.info.dtype), "files": self.files}
        content = {"parameters": self.parameters(), "image": image, "plan": plan}
        return dict(_jsonable(content))


def output_names(key_added: str, masks: Sequence[str], shapes: bool, table: bool) -> dict[str, str]:
    """Return the name and the kind of every element that a run writes."""
    names = {f"{key_added}_{m}_labels": "labels" for m in masks}
    if shapes:
        names |= {f"{key_added}_{m}_boundaries": "shapes" for m in masks}
    if table:
        names |= {f"{key_added}_table": "tables", f"{key_added}_candidates": "tables"}
    return names


def leftovers(key_added: str, names: Mapping[str, str]) -> list[str]:
    """Return names that an earlier result of the same prefix may have, and this one has not."""
    every = output_names(key_added, ("nucleus", "cell"), shapes=True, table=True)
    return [name for name in every if name not in names]


def resolve(
    sdata: SpatialData,
    image_key: str,
    workflow: Workflow,
    *,
    channels: Sequence[str | int] | str | int | None,
    scale: str,
    roi_key: str | None,
    bounding_box: Sequence[float] | None,
    key_added: str,
    measure_channels: Sequence[str | int] | str | int | None,
    to_coordinate_system: str,
    pixel_size: float | Sequence[float] | None,
    shard_size: int | None,
    overlap_px: int | Sequence[int] | None,
    executor: Executor,
    devices: str | int | Sequence[str],
    shapes: bool,
    table: bool,
) -> Request:
    """Check everything that can be known before a pixel is read, and put it into one object."""
    ref = _elements.read_image(sdata, image_key, scale)
    shape = tuple(int(n) for n in ref.data.shape[1:])
    info = ImageInfo(shape, ref.data.dtype, checked_pixel_size(pixel_size, len(shape)))
    if ref.data.dtype.kind not in "buif":
        raise InputError(f"image {image_key!r} has dtype {ref.data.dtype}, expected integers or floats")
    if to_coordinate_system not in ref.transformations:
        raise InputError(
            f"image {image_key!r} has no coordinate system {to_coordinate_system!r}: expected one of "
            f"{', '.join(sorted(ref.transformations))}"
        )
    if ref.data.dtype == np.float16:
        raise InputError(f"image {image_key!r} has dtype float16, which the kernels do not know: cast it to float32")
    matrix = _elements.pixel_matrix(ref.transformations[to_coordinate_system], len(shape))
    methods = suited(workflow.methods(), shape)
    foreseen = {mask: method.foreseen(info) for mask, method in methods.items()}
    inputs = _inputs(ref, workflow, channels)
    if info.pixel_size is None:
        _needs_no_pixel_size(workflow)
    preprocessing = workflow.preprocessing({m: roles(methods[m], m, len(c)) for m, c in inputs.items()})
    request = Request(
        ref=ref,
        info=info,
        workflow=workflow,
        methods=methods,
        channels=inputs,
        preprocessing=preprocessing,
        images={m: _image(ref, info, c, preprocessing[m]) for m, c in inputs.items()},
        plans=make_plans(foreseen, info, shard_size, overlap_px),
        region=region_of(sdata, ref, roi_key, bounding_box, matrix, to_coordinate_system),
        measured=measured_channels(ref, measure_channels),
        matrix=matrix,
        key_added=key_added,
        shapes=shapes,
        table=table,
        roi_key=roi_key,
        overlap_px=None if overlap_px is None else _plain(overlap_px),
        devices=executor.devices(devices, used=any(m.uses_device for m in methods.values())),
        options=_options(ref, info, channels, measure_channels, scale, roi_key, bounding_box, to_coordinate_system),
        files=_elements.stat_fingerprint(ref),
    )
    if isinstance(overlap_px, AtLeast):
        _tell_raised(methods, request.plans, overlap_px)
    for mask, method in methods.items():
        method.check(request.images[mask])
    executor.check_loads(workflow, "the workflow")
    check_memory(request.plans, foreseen, request.images, executor, lambda n: make_plans(foreseen, info, n, overlap_px))
    return request


def _options(
    ref: _elements.ImageRef,
    info: ImageInfo,
    channels: Sequence[str | int] | str | int | None,
    measure_channels: Sequence[str | int] | str | int | None,
    scale: str,
    roi_key: str | None,
    bounding_box: Sequence[float] | None,
    system: str,
) -> dict[str, Any]:
    """Return what decides the result besides the workflow, as a file has it; calls that mean the same say the same."""
    every = {
        "channels": unique_channels(ref, channels),
        "scale": None if scale == "scale0" else scale,
        "roi_key": roi_key,
        "bounding_box": None if bounding_box is None else np.ravel(np.asarray(bounding_box, float)).tolist(),
        "measure_channels": unique_channels(ref, measure_channels),
        "to_coordinate_system": None if system == "global" else system,
        "pixel_size": None if info.pixel_size is None else list(info.pixel_size),
    }
    return {name: value for name, value in every.items() if value is not None}


def unique_channels(ref: _elements.Grid, wanted: Sequence[str | int] | str | int | None) -> list[str | int] | None:
    """Return channels by name, where only one bears it, else by index; a stain of an RGB image is a name too."""
    if wanted is None:
        return None
    names = list(ref.channels)
    listed = [wanted] if isinstance(wanted, str | int | np.integer) else list(wanted)
    return [c if isinstance(c, str) else names[c] if names.count(names[c]) == 1 else int(c) for c in listed]


def _image(ref: _elements.ImageRef, info: ImageInfo, channels: Sequence[Channel], before: Preprocessing) -> ImageInfo:
    return replace(info, dtype=before.dtype(read_channels(ref.data.data, channels).dtype), n_channels=len(channels))


def measured_channels(ref: _elements.ImageRef, wanted: Sequence[str | int] | str | int | None) -> tuple[int, ...]:
    if wanted is None:
        return tuple(range(len(ref.channels)))
    at = _elements.resolve_channels(ref, wanted)
    if len(set(at)) < len(at):
        raise InputError(f"measure_channels={wanted!r} names a channel twice: name each once")
    return at


def _needs_no_pixel_size(workflow: Workflow) -> None:
    sizes = {"nucleus_size": workflow.nucleus_size, "cell_size": workflow.cell_size}
    for name, size in sizes.items():
        if size is not None and size.unit != "px":
            raise InputError(f"{name} is in {size.unit}, which needs the pixel size: pass pixel_size= (µm a pixel)")


def _inputs(
    ref: _elements.ImageRef, workflow: Workflow, given: Sequence[str | int] | str | int | None
) -> dict[str, tuple[Channel, ...]]:
    names, dtype, what = ref.channels, ref.data.dtype, f"image {ref.key!r}"
    base = base_channels(names, workflow, given, dtype, what)
    return {
        mask: method_channels(names, method, mask, base, dtype, what) for mask, method in workflow.methods().items()
    }


def make_plans(
    methods: Mapping[str, Method], info: ImageInfo, shard_size: int | None, overlap_px: int | Sequence[int] | None
) -> dict[str, Plan]:
    halos = {mask: halo_of(method, info, overlap_px) for mask, method in methods.items()}
    widest = tuple(max(h) for h in zip(*halos.values(), strict=True))
    cores = Plan.fewest(info.shape, checked_shard_size(shard_size, info.ndim), widest)
    return {mask: Plan(info.shape, cores.chunks, halo) for mask, halo in halos.items()}


def checked_shard_size(given: int | None, ndim: int) -> int:
    """Return the pixels of a core, at most: the default where none are given."""
    if given is None:
        return SHARD_SIZE[ndim]
    if not (is_whole(given) and given >= 1):
        raise InputError(f"shard_size={given}, expected the pixels of a core, at least 1 (such as 4_000_000)")
    return given


class AtLeast(int):
    """A halo that is raised to the minimum of a method, and not refused."""


def _tell_raised(methods: Mapping[str, Method], plans: Mapping[str, Plan], overlap_px: AtLeast) -> None:
    for mask, method in methods.items():
        halo = max(plans[mask].halo)
        if halo > overlap_px:
            warnings.warn(
                f"an overlap of {overlap_px} px is raised to {halo}, the minimum of {method.name}: the result is "
                "the same for every larger one",
                SegmentationWarning,
                stacklevel=3,
            )


def halo_of(method: Method, info: ImageInfo, overlap_px: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the halo per axis: the method's, or the one given if it is large enough."""
    if overlap_px is None:
        return method.halo(info)
    values = np.ravel(overlap_px).tolist()
    given = tuple(values * info.ndim if np.isscalar(overlap_px) else values)
    least = method.context(info)
    if isinstance(method, Planes) and given:
        given = (0, *given[1:])  # planes know nothing of each other
    if isinstance(overlap_px, AtLeast):
        return tuple(max(int(g), n) for g, n in zip(given, least, strict=True))
    if len(given) != info.ndim or not all(is_whole(g) and g >= n for g, n in zip(given, least, strict=True)):
        raise InputError(
            f"overlap_px={overlap_px!r}: expected a whole number, or one per axis, of at least {least} pixels, the "
            f"minimum of {method.name}"
        )
    return tuple(int(g) for g in given)


def _plain(given: int | Sequence[int]) -> int | list[int]:
    """Return numbers of numpy as those of Python, which go into JSON."""
    plain: int | list[int] = given if isinstance(given, AtLeast) else np.asarray(given).tolist()
    return plain


def checked_pixel_size(given: float | Sequence[float] | None, ndim: int) -> tuple[float, ...] | None:
    """Return µm a pixel along every axis."""
    if given is None:
        return None
    try:
        np.asarray(given, float)
    except (TypeError, ValueError):
        raise InputError(f"pixel_size={given!r}, expected µm a pixel above 0: a number, or one per axis") from None
    size = (float(given),) * ndim if np.isscalar(given) else tuple(float(s) for s in given)  # type: ignore[union-attr,arg-type]
    if len(size) != ndim or not all(np.isfinite(s) and s > 0 for s in size):
        raise InputError(f"pixel_size={given}, expected µm a pixel above 0: a number, or one per axis {'zyx'[-ndim:]}")
    return size


def _jsonable(value: Any) -> Any:
    """Return what comes back when the value has gone through JSON."""
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value

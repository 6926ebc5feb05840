"""`Cellpose`: every generation of its networks as a method, with tiles and decoding of our own."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
from pydantic import ConfigDict, Field, field_validator, model_validator

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import CONTEXT, FlowRules, decode_flows
from spatialdata_segment.core.flows3d import CONTEXT as CONTEXT_3D
from spatialdata_segment.core.paths import follow
from spatialdata_segment.core.resize import nearest, resize, resize_volume
from spatialdata_segment.core.shards import pick
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.core.tiles import Tiling
from spatialdata_segment.errors import InputError, SegmentationWarning, is_whole
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, View
from spatialdata_segment.methods.cellpose import models
from spatialdata_segment.methods.cellpose.diameter import estimate_diameter
from spatialdata_segment.methods.cellpose.grid import Resized, tiled
from spatialdata_segment.methods.cellpose.normalization import Normalization
from spatialdata_segment.methods.cellpose.volume import (
    SLAB_BYTES,
    count_ends,
    decode_window,
    smoothing_radius,
    volume_maps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.flows import Follow
    from spatialdata_segment.core.plan import Window
    from spatialdata_segment.methods.cellpose.run import Network
    from spatialdata_segment.methods.cellpose.weights import Description

logger = logging.getLogger(__name__)

_DIAMETER = Statistic("diameter")
_STEPS = 200
_BYTES = {"cpnet": 60_000_000, "cpsam": 300_000_000, "cpdino": 600_000_000}
"""Of a network at work on a tile, on a CPU."""
_TILE = {"cpnet": 224, "cpsam": 256, "cpdino": 384}
_USUAL = 30.0
"""px; stands in for a diameter that is not known yet."""
_LARGEST = 20
"""Factor by which an image is enlarged at most."""
_MOST_LEVELS = 6
_TURING = ("pipeline", "postprocess")

Voxels = Annotated[float, Field(ge=0)]


class Cellpose(Method):
    """Cells and nuclei by a network of Cellpose, of any generation.

    Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation" (2021); Pachitariu et al.,
    "Cellpose 2.0" (2022), Stringer & Pachitariu, "Cellpose3" (2025), Pachitariu et al., "Cellpose-SAM" (2025). The
    settings are those of Cellpose, and so is the result, but for what an image of any size needs: percentiles and
    diameter are those of the whole image, paths are exact to 1/4096 px, and the same in every window.

    Parameters
    ----------
    model
        Name of a model: "nuclei-small" (comes with the package), "nuclei", "cyto", "cyto2", "cyto3", "cpsam_v2" ...
        (``spatialdata-segment models list``). It is looked for in Cellpose's own cache folder, and fetched once.
    model_path
        File of a model of your own, in place of a name; where both are given the name wins, with a warning.
    size_model_path
        File of its size model (``.npy`` of Cellpose, or ``.npz``), which estimates the diameter. None: the file
        beside the weights whose name ends on ``_size.npy``, if there is one.
    channels
        The stain to segment, then the nuclear stain where the model takes one; up to three for Cellpose 4. None: the
        nuclear stain alone for a nucleus mask or a nuclear model, else the membrane and the nuclear stain.
    diameter
        px, of the cells. None: estimated once for the whole image by the size model; without one, that of the
        training images (30 for Cellpose 4).
    rescale
        In place of a diameter: the factor by which the image is resized for the network.
    resample
        True: flows are brought to the image's resolution before they are followed. False: masks are.
    normalize
        True: percentiles 1 and 99 of the whole image become 0 and 1. False: pixels as they are. Or settings.
    invert
        Dark cells on a bright ground. Needs ``normalize``.
    flow_threshold
        Objects are rejected whose flows are farther (mean squared) from those of their shape; None or 0: none are.
    cellprob_threshold
        Logit above which a pixel may belong to a cell.
    min_size
        px; smaller objects are rejected.
    max_size_fraction
        Objects that hold more than this share of the whole image are rejected.
    niter
        Steps of a path. None: 200, divided by the factor of resizing where flows are resampled.
    tile_size
        Side of the network's tiles, px of the resized image. None: that of the training.
    tile_overlap
        Share of a tile's side, 0.05 to 0.5.
    augment
        Average over mirrored tiles that overlap by half: four times the work.
    batch_size
        Tiles that run at once. None: 1 on a CPU; on a GPU 64, of Cellpose 4 8.
    precision
        Of the network. None: on CUDA "float16", of Cellpose 4 "bfloat16", else "float32".
    follow_on
        Where paths are followed: "cpu", or "device", where the network runs too. The result is the same. In 2D.
    do_3D
        Volumes: the network runs on the planes XY, ZX and ZY, and paths lead along z as well. Then ``min_size`` counts
        voxels, and ``flow_threshold`` does not act.
    anisotropy
        Of volumes: distance of two planes over that of two pixels, such as 2.0; by it (and the diameter) they are
        resized for the network. None: that of the pixel size, where it is known, else 1.
    flow3D_smooth
        Of volumes: voxels, of the Gaussian by which flows are smoothed: a number, or one each for z, y and x.

    Notes
    -----
    On the CPU a window runs on one thread, and several windows run side by side.

    Of a volume the maps of all voxels come first, 8 bytes each in the scratch, then the labels.
    """

    model_config = ConfigDict(protected_namespaces=())

    name: ClassVar[str] = "cellpose"
    map_dtype: ClassVar[str | None] = "float16"
    decode_parameters: ClassVar[frozenset[str]] = frozenset(
        {"flow_threshold", "cellprob_threshold", "min_size", "max_size_fraction", "niter", "follow_on"}
    )
    uses_device: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {"model": "nuclei-small"}

    model: str | None = None
    model_path: Path | None = None
    size_model_path: Path | None = None
    diameter: float | None = Field(default=None, gt=0)
    rescale: float | None = Field(default=None, gt=0)
    resample: bool = True
    normalize: bool | Normalization = True
    invert: bool = False
    flow_threshold: float | None = Field(default=0.4, ge=0)
    cellprob_threshold: float = 0.0
    min_size: int = Field(default=15, ge=-1)
    max_size_fraction: float = Field(default=0.4, gt=0, le=1)
    niter: int | None = Field(default=None, ge=1)
    tile_size: int | None = Field(default=None, ge=64)
    tile_overlap: float = Field(default=0.1, ge=0.05, le=0.5)
    augment: bool = False
    batch_size: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "float16", "bfloat16"] | None = None
    follow_on: Literal["cpu", "device"] = "cpu"
    do_3D: bool = False
    anisotropy: float | None = Field(default=None, gt=0)
    flow3D_smooth: Voxels | tuple[Voxels, Voxels, Voxels] = 0.0

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(**{"model": model}, **settings)

    @field_validator("diameter", "rescale", mode="before")
    @classmethod
    def _above_zero(cls, value: object) -> object:
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"is {value}, expected a number above 0, or None to have it estimated")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.model and self.model_path is None:
            raise ValueError("no model: give a name, such as Cellpose('cyto3'), or model_path=")
        if self.model is not None and (Path(self.model).name != self.model or self.model == ""):
            raise ValueError(f"model={self.model!r} is no name of a model: to a file, pass model_path=")
        for name in ("model_path", "size_model_path"):
            if self.model is not None and getattr(self, name) is not None:
                warnings.warn(
                    f"{name}={str(getattr(self, name))!r} is not used: model={self.model!r} is given as well, and the "
                    "name wins; leave one of them out",
                    SegmentationWarning,
                    stacklevel=4,
                )
        if self.diameter is not None and self.rescale is not None:
            raise ValueError(f"diameter={self.diameter} and rescale={self.rescale} are both given: give one of them")
        if self.size_model_path is not None and not self._asks_diameter:
            raise ValueError("size_model_path has no effect where the diameter or rescale is given: leave one out")
        if self.channels is not None and len(set(self.channels)) < len(self.channels):
            raise ValueError(
                f"channels={list(self.channels)} names a channel twice. Names and 0-based indices are expected, the "
                "stain to segment first; Cellpose's colour codes are none: its [0, 0] (grey) is channels=0 here"
            )
        if self.invert and self.normalize is False:
            raise ValueError("invert=True needs normalize, so that 1 is bright")
        self._check_volume()
        if self.tile_size is not None and self.tile_size % 16:
            raise ValueError(f"tile_size={self.tile_size} is no multiple of 16: {self.tile_size // 16 * 16} is")
        return self

    def _check_volume(self) -> None:
        if self.do_3D:
            if self.follow_on == "device":
                raise ValueError("follow_on='device' is for planes: with do_3D=True leave it out")
            if isinstance(self.normalize, Normalization) and self.normalize.tile_norm_blocksize:
                raise ValueError("tile_norm_blocksize is for planes: with do_3D=True leave it out")
            return
        for name in ("anisotropy", "flow3D_smooth"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)} has no effect without do_3D=True: leave it out")
        if isinstance(self.normalize, Normalization) and not self.normalize.norm3D:
            raise ValueError("norm3D=False has no effect without do_3D=True: leave it out")

    @classmethod
    def from_turing(cls, config: Mapping[str, Mapping[str, Any]], model: str | None = "cyto3", **settings: Any) -> Self:
        """Return the method with the values of a ``config.yaml`` of Turing Segment.

        ``infer_size`` becomes ``tile_size``, ``overlap_margin`` ``tile_overlap``; ``resample`` is False where it is
        not given, as it is there. The numbers of processes and the size of a queue have no counterpart in a method.
        """
        pipeline, post = dict(config.get("pipeline") or {}), dict(config.get("postprocess") or {})
        side, margin = pipeline.pop("infer_size", 1024), pipeline.pop("overlap_margin", 32)
        if not (is_whole(side) and side >= 64 and side % 16 == 0):
            raise InputError(f"infer_size={side!r}, expected a multiple of 16 from 64, such as 1024")
        if not (is_whole(margin) and margin >= 0):
            raise InputError(f"overlap_margin={margin!r}, expected a whole number from 0, such as 32")
        for name in ("n_postprocess_processes", "postprocess_queue_size", "n_merge_tile_processes"):
            pipeline.pop(name, None)
        known = ("niter", "cellprob_threshold", "flow_threshold", "min_size", "resample")
        unknown = [*pipeline, *(k for k in post if k not in known), *(k for k in config if k not in _TURING)]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} is no setting of a Turing Segment configuration; expected pipeline: infer_size, "
                f"overlap_margin ..., postprocess: {', '.join(known)}"
            )
        tiles = {"tile_size": side, "tile_overlap": min(0.5, max(0.05, margin / side))}
        model = None if "model_path" in settings else model
        return cls(model, **({"resample": False, "niter": _STEPS} | tiles | post | settings))

    @property
    def _asks_diameter(self) -> bool:
        return self.diameter is None and self.rescale is None

    def _files(self) -> models.ModelFiles:
        """Return the files of the model, fetched where they are not there."""
        if self.model is not None:
            return models.ensure_model(self.model, size=self._asks_diameter)
        assert self.model_path is not None
        size = self.size_model_path or models.size_beside(self.model_path)
        return models.ModelFiles(self.model_path.name, self.model_path, size)

    @property
    def _built_in(self) -> models.BuiltIn | None:
        return None if self.model is None else models.BUILT_IN.get(self.model)

    def _description(self) -> Description:
        from spatialdata_segment.methods.cellpose.weights import DIAMETER, describe

        built_in = self._built_in
        return describe(self._files().weights, diameter=DIAMETER if built_in is None else built_in.diam_mean)

    @property
    def diam_mean(self) -> float:
        """Diameter, px, that cells have to the network."""
        built_in = self._built_in
        if built_in is not None:
            return built_in.diam_mean
        return self._description().diam_mean

    @property
    def ndims(self) -> frozenset[int]:  # type: ignore[override]
        """Volumes with ``do_3D``, else images."""
        return frozenset({3 if self.do_3D else 2})

    @property
    def reads_parts(self) -> bool:  # type: ignore[override]
        """Whether the network runs on planes along all axes, of which tiles reach far."""
        return self.do_3D

    @property
    def maps_first(self) -> bool:  # type: ignore[override]
        """Whether the maps of all windows come before any is decoded."""
        return self.do_3D

    @property
    def tallies(self) -> bool:  # type: ignore[override]
        """Whether the ends of all paths are counted before any window is decoded."""
        return self.do_3D

    def roles(self, mask: str) -> tuple[int, ...]:
        """Return the nuclear stain alone for nuclei, else the membrane and the nuclear stain."""
        nuclear = self._built_in is not None and self.model in ("nuclei", "nuclei-small")
        return (0,) if mask == "nucleus" or nuclear else (1, 0)

    def check(self, image: ImageInfo) -> None:
        """Read what the model's files say of it, and hold the settings against it."""
        from spatialdata_segment.methods.cellpose.weights import read_size_model

        files, said = self._files(), self._description()
        most = 3 if said.nbase is None else said.nbase[0]
        if image.n_channels > most:
            raise InputError(
                f"{files.name} takes at most {most} channel{'s' if most > 1 else ''}, and {image.n_channels} are "
                "given: name them in channels=, the stain to segment first"
            )
        if said.generation != "cpnet":
            from spatialdata_segment.methods.cellpose.load import import_vision

            import_vision(files.weights, said.generation)
        if said.nout != 3:
            raise InputError(f"{files.weights} returns {said.nout} maps, expected 3 (two flows, cell probability)")
        if said.generation == "cpsam" and self.tile_size not in (None, _TILE["cpsam"]):
            raise InputError(f"tile_size={self.tile_size}, expected 256: the network of {files.name} takes no other")
        if self._factor > _LARGEST:
            raise InputError(
                f"diameter={self.diameter}, rescale={self.rescale}: the image would be enlarged {self._factor:.0f}"
                f" fold, expected at most {_LARGEST}: check the diameter, which is in pixels of the scale used"
            )
        if self.do_3D and not 1 / _LARGEST <= (ratio := self._anisotropy(image)) <= _LARGEST:
            raise InputError(
                f"anisotropy={ratio:g} (pixel size {image.pixel_size}), expected {1 / _LARGEST} to {_LARGEST}: the "
                "distance of two planes over that of two pixels; check the units of both"
            )
        if said.nbase is not None and len(said.nbase) > _MOST_LEVELS:
            raise InputError(
                f"{files.weights} has {len(said.nbase) - 1} levels, expected at most {_MOST_LEVELS - 1}: images are "
                "padded to multiples of 16 px"
            )
        if self._asks_diameter and files.size is not None:
            size = read_size_model(files.size)
            if said.nbase is not None:
                size.check(said.nbase[-1])
        if self._normalization is not None and len(self._normalization.pairs) not in (0, 1, image.n_channels):
            raise InputError(
                f"lowhigh={self._normalization.lowhigh}: expected one pair, or one a channel ({image.n_channels})"
            )

    @property
    def _normalization(self) -> Normalization | None:
        if isinstance(self.normalize, Normalization):
            return self.normalize
        return Normalization() if self.normalize else None

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return the percentiles of each channel, and the diameter, as far as they are not given."""
        given = self._normalization
        wanted = given.statistics(image.n_channels, image.shape) if given is not None else []
        return (*wanted, _DIAMETER) if self._asks_diameter else tuple(wanted)

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Fill in the diameter, the factor of resizing and the side of the tiles."""
        known: dict[str, float] = {"tile_size": self._side}
        if self.do_3D:
            known["anisotropy"] = self._anisotropy(image)
        if self.rescale is not None and self.diameter is None:
            known["diameter"] = self.diam_mean / self.rescale
        elif self.rescale is None:
            known["diameter"] = statistics[_DIAMETER] if self.diameter is None else self.diameter
            known["rescale"] = self.diam_mean / known["diameter"]
        return self.model_copy(update=known)

    @property
    def _factor(self) -> float:
        if self.rescale is not None:
            return self.rescale
        return 1.0 if self.diameter is None else self.diam_mean / self.diameter

    def _anisotropy(self, image: ImageInfo) -> float:
        """Return the distance of two planes over that of two pixels."""
        if self.anisotropy is not None or image.pixel_size is None:
            return self.anisotropy or 1.0
        z, y, x = image.pixel_size
        return float(z / (y * x) ** 0.5)

    def _grid(self, shape: tuple[int, ...]) -> Resized:
        return Resized.by(shape, self._factor, self.anisotropy or 1.0)

    @property
    def bytes_per_pixel(self) -> float:  # type: ignore[override]
        """Memory of a window pixel: what is decoded, and what the network sees of it."""
        if self.do_3D:
            return 45.0 + 20.0 * self._factor**3 * (self.anisotropy or 1.0)
        return 60.0 + 40.0 * self._factor**2

    @property
    def fixed_bytes(self) -> int:
        """Memory of the network at work, and of the planes that it looks at."""
        slab = 2 * int(SLAB_BYTES) if self.do_3D else 0
        return slab + _BYTES[self._description().generation] * (self.batch_size or 1)

    @property
    def seconds_per_megapixel(self) -> float:  # type: ignore[override]
        """Time of the network, which sees each voxel in three planes."""
        return 9.0 * self._factor**3 * (self.anisotropy or 1.0) if self.do_3D else 3.0

    @property
    def _side(self) -> int:
        return self.tile_size or _TILE[self._description().generation]

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return what must be known around a path's end."""
        grid, context = self._grid(image.shape), CONTEXT_3D if self.do_3D else CONTEXT
        ratios = [1.0 if self.resample else n / m for n, m in zip(grid.image, grid.seen, strict=True)]
        if not self.do_3D:
            ratios = [max(ratios)] * 2
        return tuple(ceil(context * r) + (0 if self.resample else 2) for r in ratios)

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Return room for two cells, and in 2D the context."""
        usual = self.diameter or _USUAL / self._factor
        if self.do_3D:
            along = (usual / (self.anisotropy or 1.0), usual, usual)
            return tuple(max(c, ceil(2 * d)) for c, d in zip(self.context(image), along, strict=True))
        return (max(64, ceil(2 * usual) + self.context(image)[0]),) * 2

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the reach of the tiles, and of local normalisation around them."""
        around = self._normalization.reach() if self._normalization is not None else 0
        grid, radius = self._grid(image.shape), smoothing_radius(self._sigma)[-image.ndim :]
        sides = zip(grid.image, grid.seen, radius, strict=True)
        return tuple(ceil((self._side + r) * n / m) + 2 + r + around for n, m, r in sides)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings, the content of the files and what runs the network."""
        files, said = self._files(), self._description()
        size = None if files.size is None or not self._asks_diameter else sha256(files.size.read_bytes()).hexdigest()
        packages = ("torch",) if said.generation == "cpnet" else ("torch", "cellpose")
        settings = {k: v for k, v in super().fingerprint().items() if k != "follow_on"}  # which changes nothing
        versions = {p: version(p) for p in packages}
        return {**settings, "weights_sha256": said.sha256, "size_sha256": size, "versions": versions}

    def load(self, device: str) -> Network:
        """Load the network."""
        from spatialdata_segment.methods.cellpose.load import load_network

        return load_network(
            self._files().weights, self._description(), device, precision=self.precision, batch_size=self.batch_size
        )

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.float32]:
        """Return flows and cell probability: of the window, or, without resampling, of its pixels to the network."""
        network: Network = view.model  # type: ignore[assignment]
        grid, window = self._grid(view.image.shape), view.window.box
        if self.do_3D:
            look, layout = partial(self._look, view), partial(self._tiling, network)
            return volume_maps(network, look, layout, grid, window, self._sigma, resample=self.resample)
        block = window.grow(self.reach(view.image), view.window.image)
        box = grid.needed(window) if self.resample else grid.picked(window)
        own = grid.needed(view.window.own)
        maps, _ = self._maps(network, image, block.start, grid, box, view.statistics, view.run, own)
        if not self.resample or grid.is_same:
            return maps
        rows, columns = grid.to_image(window)
        return resize(maps, box.start, rows, columns)

    @property
    def _sigma(self) -> tuple[float, float, float]:
        return self.flow3D_smooth if isinstance(self.flow3D_smooth, tuple) else (self.flow3D_smooth,) * 3

    def _tiling(self, network: Network, shape: tuple[int, ...]) -> Tiling:
        plane = (shape[0], shape[1])
        return Tiling(plane, self._side, self.tile_overlap, self.augment, full=network.generation != "cpnet")

    def _look(self, view: View, box: Box, axis: int) -> NDArray[np.float32]:
        """Return the voxels that the network sees in a box of its grid, in planes along an axis."""
        assert view.read is not None
        grid = self._grid(view.image.shape)
        source = grid.source(box)
        image = self._normalized(view.read(source), source.start, source, grid, view.statistics, axis)
        return image if grid.is_same else resize_volume(image, source.start, *grid.to_network(box))

    def map_context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none: whole tiles are read, which `reach` has."""
        return (0,) * image.ndim

    def maps_box(self, image: ImageInfo, box: Box) -> Box:
        """Return the pixels to the network that a window's maps are: without resampling they have its grid."""
        return box if self.resample else self._grid(image.shape).picked(box)

    def maps_window(self, image: ImageInfo, box: Box) -> Box:
        """Return the window of which the network's pixels are taken."""
        return box if self.resample else self._grid(image.shape).picking(box)

    def _maps(
        self,
        network: Network,
        pixels: NDArray[Any],
        origin: tuple[int, ...],
        grid: Resized,
        box: Box,
        statistics: Mapping[Statistic, float],
        run: str = "",
        own: Box | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the maps of a box to the network, and the sum of styles; ``pixels`` begin at ``origin``.

        Of the pixels ``own`` no other window of the ``run`` wants maps.
        """
        tiling = self._tiling(network, grid.seen)
        around = tiled(tiling, box)
        source = grid.source(around)
        assert all(
            o <= a and b <= o + n
            for o, n, a, b in zip(origin, pixels.shape[1:], source.start, source.stop, strict=True)
        )
        image = self._normalized(pixels, origin, source, grid, statistics)
        if not grid.is_same:
            rows, columns = grid.to_network(around)
            image = resize(image, source.start, rows, columns)
        return network.maps(image, around.start, tiling, box, run, own)

    def _normalized(
        self,
        pixels: NDArray[Any],
        origin: tuple[int, ...],
        box: Box,
        grid: Resized,
        statistics: Mapping[Statistic, float],
        axis: int = 0,
    ) -> NDArray[np.float32]:
        """Return a box of ``(c, [z], y, x)`` pixels that begin at ``origin``, as `normalize` has it."""
        if self._normalization is not None:
            levels = statistics
            return self._normalization.apply(pixels, origin, box, grid.image, levels, invert=self.invert, axis=axis)
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, origin, strict=True))
        return pixels[(slice(None), *inner)].astype(np.float32)

    def _rules(self, image: ImageInfo) -> FlowRules:
        shape = image.shape if self.resample else self._grid(image.shape).seen
        steps = int(_STEPS / self._factor) if self.resample else _STEPS
        return FlowRules(
            cellprob_threshold=self.cellprob_threshold,
            flow_threshold=self.flow_threshold or None,
            steps=steps if self.niter is None else self.niter,
            min_size=self.min_size,
            max_size=self.max_size_fraction * float(np.prod(shape)),
        )

    def tally(self, maps: NDArray[Any], view: View) -> NDArray[np.int32] | None:
        """Count the ends of the paths of a volume."""
        window, box = view.window, self.maps_box(view.image, view.window.box)
        return count_ends(maps, window, box, self._own(view.image, window.core), self._rules(view.image))

    def _own(self, image: ImageInfo, core: Box) -> Box:
        """Return the pixels to the network that are of one core alone."""
        if self.resample:
            return core
        grid = self._grid(image.shape)
        taken = (nearest(m, n, 0, n) for n, m in zip(grid.image, grid.seen, strict=True))
        ends = [
            (0 if a == 0 else int(at[a - 1]) + 1, m if b == n else int(at[b - 1]) + 1)
            for at, a, b, n, m in zip(taken, core.start, core.stop, grid.image, grid.seen, strict=True)
        ]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Follow the flows."""
        window, grid, box = view.window, self._grid(view.image.shape), self.maps_box(view.image, view.window.box)
        taken = None
        if not (self.resample or grid.is_same):
            taken = tuple(at - start for at, start in zip(grid.pick(window.box), box.start, strict=True))
        if self.do_3D:
            whole = self.maps_box(view.image, Box.whole(view.image.shape))
            found = decode_window(maps, view, box, whole, self._rules(view.image), taken)
            if taken is not None:  # a voxel to the network may be several of the image's, on both sides of the edge
                found.complete[_at_edge(found.labels, window) - 1] = False
        else:
            found = decode_flows(maps, window.edge[1:], self._rules(view.image), taken, self._follow(view.device))
        if taken is None:
            return Decoded(found.labels, found.sinks, found.complete, found.reasons)
        anchors = grid.placed(found.sinks + np.array(box.start)) - np.array(window.box.start)
        return _one_each(Decoded(found.labels, anchors, found.complete, found.reasons))

    def without_least_size(self, image: ImageInfo) -> tuple[Self, float]:
        """Leave ``min_size`` to whole objects."""
        return self.model_copy(update={"min_size": -1}), float(self.min_size)

    @property
    def decodes_on_device(self) -> bool:
        """Whether paths are followed where the network runs."""
        return self.follow_on == "device"

    def _follow(self, device: str) -> Follow:
        if not self.decodes_on_device:
            return follow
        from spatialdata_segment.methods.cellpose.torch_paths import follow_on

        return partial(follow_on, device)

    def estimate(
        self,
        read: Callable[[Box], NDArray[Any]],
        image: ImageInfo,
        statistics: Mapping[Statistic, float],
        model: object,
    ) -> float:
        """Estimate the diameter from the style, then from masks; without a size model: what the file says.

        Of an image larger than 1,536 px, from nine windows of 768 px.
        """
        from spatialdata_segment.methods.cellpose.weights import read_size_model

        files, said = self._files(), self._description()
        if said.generation != "cpnet":
            return self.diam_mean  # Cellpose 4 does not resize
        if files.size is None:
            logger.info("%s has no size model: diameter %.1f px, that of its training", files.name, said.diam_labels)
            return said.diam_labels
        size, network = read_size_model(files.size), cast("Network", model)
        return estimate_diameter(self, size, network, read, image, statistics)

    def whole_maps(
        self, network: Network, pixels: NDArray[Any], statistics: Mapping[Statistic, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the maps to the network, and the sum of the styles, of ``(c, y, x)`` taken for a whole image."""
        grid = self._grid(pixels.shape[1:])
        return self._maps(network, pixels, (0, 0), grid, Box.whole(grid.seen), statistics)

    def areas(self, network: Network, pixels: NDArray[Any], statistics: Mapping[Statistic, float]) -> NDArray[np.int64]:
        """Return the areas in px of the cells of ``(c, y, x)`` taken for a whole image."""
        info = ImageInfo(pixels.shape[1:], pixels.dtype)
        maps, _ = self.whole_maps(network, pixels, statistics)
        taken = self._grid(info.shape).pick(Box.whole(info.shape))
        found = decode_flows(maps, np.zeros((2, 2), np.int64), self._rules(info), taken)
        areas: NDArray[np.int64] = np.bincount(found.labels[found.labels > 0], minlength=len(found.sinks) + 1)[1:]
        kept: NDArray[np.int64] = areas[(found.reasons == 0) & (areas > 0)]
        return kept


def _at_edge(labels: NDArray[np.int32], window: Window) -> NDArray[np.int32]:
    """Return the labels that touch the open sides of a window."""
    sides = [(k, 0) for k, is_open in enumerate(window.open_low) if is_open]
    sides += [(k, -1) for k, is_open in enumerate(window.open_high) if is_open]
    held = [np.unique(np.take(labels, at, axis)) for axis, at in sides]
    found: NDArray[np.int32] = np.unique(np.concatenate([np.zeros(0, np.int32), *held]))
    return found[found > 0]


def _one_each(found: Decoded) -> Decoded:
    """Join the objects whose sinks lie in one pixel: of a network's finer grid two may. The largest decides."""
    assert found.anchors is not None
    assert found.complete is not None
    assert found.reasons is not None
    anchors, to = np.unique(found.anchors, axis=0, return_inverse=True)
    if len(anchors) == len(found.anchors):
        return found
    to = to.reshape(-1)
    areas = np.bincount(found.labels[found.labels > 0], minlength=len(to) + 1)[1:]
    order = np.lexsort((np.arange(len(to)), -areas, to))
    largest = order[np.searchsorted(to[order], np.arange(len(anchors)))]
    complete = np.ones(len(anchors), np.bool_)
    np.logical_and.at(complete, to, found.complete)
    table = np.concatenate([[-1, 0], to + 1]).astype(np.int32)
    return Decoded(pick(found.labels.astype(np.int32), table), anchors, complete, found.reasons[largest])

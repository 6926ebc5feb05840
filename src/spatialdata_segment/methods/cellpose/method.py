"""`Cellpose`: every generation of its networks as a method, with tiles and decoding of our own."""

from __future__ import annotations

import logging
import warnings
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import CONTEXT, FlowRules, decode_flows
from spatialdata_segment.core.resize import nearest, resize, source_range, taps
from spatialdata_segment.core.statistics import Statistic, quantile_or_end
from spatialdata_segment.core.tiles import Tiling
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, View
from spatialdata_segment.methods.cellpose import models

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.methods.cellpose.run import Network
    from spatialdata_segment.methods.cellpose.weights import Description

logger = logging.getLogger(__name__)

_DIAMETER = Statistic("diameter")
_STEPS = 200
_TILE = {"cpnet": 224, "cpsam": 256, "cpdino": 384}
_USUAL = 30.0
"""px; stands in for a diameter that is not known yet."""
_WINDOW, _WINDOWS, _ONE = 768, 3, 1536
"""Side in px, and how many along an axis, of the windows in which diameters are estimated; and up to which side an
image is one window."""
_FLAT = 1e-3
"""Channels whose percentiles are no farther apart hold nothing, as Cellpose has it."""

Percent = Annotated[float, Field(ge=0, le=100)]


class Normalization(BaseModel):
    """How channels are brought to about 0..1 before a network sees them.

    Parameters
    ----------
    percentile
        Percentiles, 0 to 100, of each channel of the whole image that become 0 and 1. Nothing is clipped; a channel
        in which they are the same becomes 0.
    lowhigh
        In their place, pixel values: ``(low, high)`` for all channels, or one pair for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    percentile: tuple[Percent, Percent] = (1.0, 99.0)
    lowhigh: tuple[float, float] | tuple[tuple[float, float], ...] | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.percentile[0] >= self.percentile[1]:
            raise ValueError(f"percentile={self.percentile}: expected the lower one first, such as (1, 99)")
        for low, high in self.pairs() or ():
            if low >= high:
                raise ValueError(f"lowhigh={self.lowhigh}: expected the lower value first, such as (0, 255)")
        if self.lowhigh is not None and "percentile" in self.model_fields_set:
            raise ValueError("percentile and lowhigh are both given: give one of them")
        return self

    def pairs(self) -> tuple[tuple[float, float], ...] | None:
        """Return the values that are given, as pairs."""
        if self.lowhigh is None:
            return None
        return self.lowhigh if isinstance(self.lowhigh[0], tuple) else (self.lowhigh,)


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
        File of a model of your own, in place of a name.
    size_model_path
        File of its size model (``.npy`` of Cellpose, or ``.npz``), which estimates the diameter.
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
        Tiles that run at once. None: 1 on a CPU, 64 on a GPU.
    precision
        Of the network. None: "float16" on CUDA, else "float32".

    Notes
    -----
    On the CPU a window runs on one thread, and several windows run side by side.
    """

    model_config = ConfigDict(protected_namespaces=())

    name: ClassVar[str] = "cellpose"
    ndims: ClassVar[frozenset[int]] = frozenset({2})
    map_dtype: ClassVar[str | None] = "float16"
    uses_device: ClassVar[bool] = True
    bytes_per_pixel: ClassVar[float] = 60.0
    fixed_bytes: ClassVar[int] = 150_000_000
    seconds_per_megapixel: ClassVar[float] = 3.0

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
        if self.model is None and self.model_path is None:
            raise ValueError("no model: give a name, such as Cellpose('cyto3'), or model_path=")
        if self.model is not None and self.model_path is not None:
            warnings.warn(
                f"model={self.model!r} is not used: model_path={str(self.model_path)!r} is given as well",
                stacklevel=4,
            )
        if self.diameter is not None and self.rescale is not None:
            raise ValueError(f"diameter={self.diameter} and rescale={self.rescale} are both given: give one of them")
        if self.size_model_path is not None and not self._asks_diameter:
            raise ValueError("size_model_path has no effect where the diameter or rescale is given: leave one out")
        if self.invert and self.normalize is False:
            raise ValueError("invert=True needs normalize, so that 1 is bright")
        if self.tile_size is not None and self.tile_size % 16:
            raise ValueError(f"tile_size={self.tile_size} is no multiple of 16: {self.tile_size // 16 * 16} is")
        return self

    @classmethod
    def from_turing(cls, config: Mapping[str, Mapping[str, Any]], model: str | None = "cyto3", **settings: Any) -> Self:
        """Return the method with the values of a ``config.yaml`` of Turing Segment.

        ``infer_size`` becomes ``tile_size``, ``overlap_margin`` ``tile_overlap``; ``resample`` is False where it is
        not given, as it is there. The numbers of processes and the size of a queue have no counterpart in a method.
        """
        pipeline, post = dict(config.get("pipeline") or {}), dict(config.get("postprocess") or {})
        side, margin = pipeline.pop("infer_size", 1024), pipeline.pop("overlap_margin", 32)
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
        return cls(model, **({"resample": False, "niter": _STEPS} | tiles | post | settings))

    @property
    def _asks_diameter(self) -> bool:
        return self.diameter is None and self.rescale is None

    def _files(self) -> models.ModelFiles:
        """Return the files of the model, fetched where they are not there."""
        if self.model_path is not None:
            size = self.size_model_path or models.size_beside(self.model_path)
            return models.ModelFiles(self.model_path.name, self.model_path, size)
        assert self.model is not None
        files = models.ensure_model(self.model, size=self._asks_diameter and self.size_model_path is None)
        return (
            files
            if self.size_model_path is None
            else models.ModelFiles(files.name, files.weights, self.size_model_path)
        )

    @property
    def _built_in(self) -> models.BuiltIn | None:
        return models.BUILT_IN.get(self.model) if self.model is not None and self.model_path is None else None

    def _description(self) -> Description:
        from spatialdata_segment.methods.cellpose.weights import DIAMETER, describe

        built_in = self._built_in
        return describe(self._files().weights, diameter=DIAMETER if built_in is None else built_in.diam_mean)

    def _diam_mean(self) -> float:
        """Return the diameter that the network expects, px."""
        built_in = self._built_in
        if built_in is not None:
            return built_in.diam_mean
        return self._description().diam_mean

    def roles(self, mask: str) -> tuple[int, ...]:
        """Return the nuclear stain alone for nuclei, else the membrane and the nuclear stain."""
        nuclear = self.model_path is None and self.model is not None and self.model.startswith("nuclei")
        return (0,) if mask == "nucleus" or nuclear else (1, 0)

    def check(self, image: ImageInfo) -> None:
        """Read what the model's files say of it."""
        from spatialdata_segment.methods.cellpose.weights import read_size_model

        files, said = self._files(), self._description()
        most = 3 if said.nbase is None else said.nbase[0]
        if image.n_channels > most:
            raise InputError(
                f"{files.name} takes at most {most} channel{'s' if most > 1 else ''}, and {image.n_channels} are "
                "given: name them in channels=, the stain to segment first"
            )
        if said.nout != 3:
            raise InputError(f"{files.weights} returns {said.nout} maps, expected 3 (two flows, cell probability)")
        if said.generation == "cpsam" and self.tile_size not in (None, _TILE["cpsam"]):
            raise InputError(f"tile_size={self.tile_size}, expected 256: the network of {files.name} takes no other")
        if said.nbase is not None and self.tile_size is not None and self.tile_size % (1 << len(said.nbase) - 2):
            raise InputError(f"tile_size={self.tile_size}, expected a multiple of {1 << len(said.nbase) - 2}")
        if self._asks_diameter and files.size is not None:
            size = read_size_model(files.size)
            if said.nbase is not None:
                size.check(said.nbase[-1])
        if isinstance(self.normalize, Normalization) and len(self.normalize.pairs() or ()) not in (
            0,
            1,
            image.n_channels,
        ):
            raise InputError(f"lowhigh={self.normalize.lowhigh}: expected one pair, or {image.n_channels}")

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return the percentiles of each channel, and the diameter, as far as they are not given."""
        percentile = self._percentile
        wanted = (
            []
            if percentile is None
            else [quantile_or_end(c, p / 100) for c in range(image.n_channels) for p in percentile]
        )
        return (*wanted, _DIAMETER) if self._asks_diameter else tuple(wanted)

    @property
    def _percentile(self) -> tuple[float, float] | None:
        if isinstance(self.normalize, Normalization):
            return None if self.normalize.lowhigh is not None else self.normalize.percentile
        return (1.0, 99.0) if self.normalize else None

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Fill in the diameter and the factor of resizing."""
        mean = self._diam_mean()
        if self.rescale is not None and self.diameter is None:
            return self.model_copy(update={"diameter": mean / self.rescale})
        diameter = statistics[_DIAMETER] if self.diameter is None else self.diameter
        return self.model_copy(update={"diameter": diameter, "rescale": mean / diameter})

    def _seen(self, image: ImageInfo) -> tuple[int, int]:
        """Return the shape of what the network sees."""
        factor = self.rescale or 1.0
        y, x = (n if factor == 1.0 else max(1, int(n * factor)) for n in image.shape)
        return y, x

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return what must be known around a path's end."""
        return (CONTEXT if self.resample else ceil(CONTEXT / (self.rescale or 1.0)) + 2,) * 2

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Return room for two cells, and the context."""
        usual = self.diameter or _USUAL / (self.rescale or 1.0)
        return (max(64, ceil(2 * usual) + self.context(image)[0]),) * 2

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the reach of the tiles."""
        side = self.tile_size or max(_TILE.values())
        return (ceil(side / (self.rescale or 1.0)) + 2,) * 2

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings and the content of the files."""
        said, files = self._description(), self._files()
        size = None if files.size is None or not self._asks_diameter else _digest(files.size)
        return {**super().fingerprint(), "weights_sha256": said.sha256, "size_sha256": size}

    def load(self, device: str) -> Network:
        """Load the network."""
        from spatialdata_segment.methods.cellpose.load import load_network

        return load_network(
            self._files().weights, self._description(), device, precision=self.precision, batch_size=self.batch_size
        )

    def _tiling(self, shape: tuple[int, int], network: Network) -> Tiling:
        side = self.tile_size or _TILE[network.generation]
        return Tiling(shape, side, self.tile_overlap, self.augment, full=network.generation != "cpnet")

    def _scaled(self, pixels: NDArray[Any], statistics: Mapping[Statistic, float]) -> NDArray[np.float32]:
        """Normalise the channels."""
        out = pixels.astype(np.float32)
        pairs = self._limits(len(pixels), statistics)
        for channel, limits in zip(out, pairs, strict=True):
            if limits is None:
                continue
            low, high = np.float32(limits[0]), np.float32(limits[1])
            if high - low > _FLAT:
                channel -= low
                channel /= high - low
                if self.invert:
                    np.subtract(1, channel, out=channel)
            else:
                channel[...] = 0
        return out

    def _limits(self, n: int, statistics: Mapping[Statistic, float]) -> list[tuple[float, float] | None]:
        """Return what becomes 0 and 1 in each channel."""
        if isinstance(self.normalize, Normalization) and (given := self.normalize.pairs()) is not None:
            return list(given * n if len(given) == 1 else given)
        if self._percentile is None:
            return [None] * n
        low, high = (p / 100 for p in self._percentile)
        return [(statistics[quantile_or_end(c, low)], statistics[quantile_or_end(c, high)]) for c in range(n)]

    def _network_maps(
        self, network: Network, pixels: NDArray[Any], origin: tuple[int, int], shape: tuple[int, int], box: Box,
        statistics: Mapping[Statistic, float],
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:  # fmt: skip
        """Run the network on a box of the resized image; ``pixels`` begin at ``origin`` of an image of a shape."""
        seen = self._seen(ImageInfo(shape, np.dtype(np.float32)))
        tiling = self._tiling(seen, network)
        around = [_tiled(axis, a, b) for axis, a, b in zip(tiling.axes, box.start, box.stop, strict=True)]
        if seen == shape:
            a, b = (slice(s - o, t - o) for (s, t), o in zip(around, origin, strict=True))
            image = self._scaled(pixels[:, a, b], statistics)
        else:
            rows, columns = (taps(n, m, s, t) for n, m, (s, t) in zip(shape, seen, around, strict=True))
            image = resize(self._scaled(pixels, statistics), origin, rows, columns)
        return network.maps(image, (around[0][0], around[1][0]), tiling, box)

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.float32]:
        """Return flows and cell probability: of the window, or, without resampling, of its pixels to the network."""
        network = view.model
        shape, window = (view.image.shape[0], view.image.shape[1]), view.window.box
        block = window.grow(self.reach(view.image), view.window.image)
        origin = (block.start[0], block.start[1])
        box = self._map_box(view)
        maps, _ = self._network_maps(network, image, origin, shape, box, view.statistics)  # type: ignore[arg-type]
        if not self.resample or (box == window and self._seen(view.image) == shape):
            return maps
        sides = zip(self._seen(view.image), shape, window.start, window.stop, strict=True)
        rows, columns = (taps(*side) for side in sides)
        return resize(maps, (box.start[0], box.start[1]), rows, columns)

    def _map_box(self, view: View) -> Box:
        """Return the pixels of the resized image that a window's maps are made of."""
        window, seen = view.window.box, self._seen(view.image)
        if seen == view.image.shape:
            return window
        sides = list(zip(view.image.shape, seen, window.start, window.stop, strict=True))
        if self.resample:
            ranges = [source_range(m, n, a, b) for n, m, a, b in sides]
        else:
            ends = [nearest(m, n, a, b) for n, m, a, b in sides]
            ranges = [(int(e[0]), int(e[-1]) + 1) for e in ends]
        return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))

    def maps_shape(self, view: View) -> tuple[int, ...]:
        """Return the shape of a window's maps."""
        return view.window.box.shape if self.resample else self._map_box(view).shape

    def _rules(self, image: ImageInfo) -> FlowRules:
        seen = self._seen(image)
        area = float(np.prod(image.shape if self.resample else seen))
        steps = int(_STEPS / (self.rescale or 1.0)) if self.resample else _STEPS
        return FlowRules(
            cellprob_threshold=self.cellprob_threshold,
            flow_threshold=self.flow_threshold or None,
            steps=steps if self.niter is None else self.niter,
            min_size=self.min_size,
            max_size=self.max_size_fraction * area,
        )

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Follow the flows."""
        window = view.window
        edge = np.column_stack([window.open_low, window.open_high]).astype(np.int64)
        pick = None
        box, seen = self._map_box(view), self._seen(view.image)
        if not self.resample and seen != view.image.shape:
            sides = zip(seen, view.image.shape, window.box.start, window.box.stop, box.start, strict=True)
            rows, columns = (nearest(m, n, a, b) - o for m, n, a, b, o in sides)
            pick = rows, columns
        found = decode_flows(maps, edge, self._rules(view.image), pick)
        anchors = found.sinks
        if pick is not None:
            anchors = _placed(found.sinks + np.array(box.start), seen, view.image.shape) - np.array(window.box.start)
        return Decoded(found.labels, anchors, found.complete, found.reasons)

    def estimate(
        self,
        read: Callable[[Box], NDArray[Any]],
        image: ImageInfo,
        statistics: Mapping[Statistic, float],
        model: object,
    ) -> float:
        """Estimate the diameter as Cellpose does: from the style, then from the masks that it leads to.

        Of an image larger than 1,536 px, from nine windows of 768 px. Without a size model: what the file says.
        """
        from spatialdata_segment.methods.cellpose.weights import read_size_model

        network: Network = model  # type: ignore[assignment]
        files, said = self._files(), self._description()
        if said.generation != "cpnet" or files.size is None:
            logger.info("%s has no size model: diameter %.1f px, that of its training", files.name, said.diam_labels)
            return said.diam_labels
        size = read_size_model(files.size)
        boxes = _windows(image.shape)
        first = self.model_copy(update={"rescale": self._diam_mean() / said.diam_labels})
        style: Any = 0.0
        for box in boxes:
            whole = Box((0, 0), first._seen(ImageInfo(box.shape, image.dtype)))
            shape = (box.shape[0], box.shape[1])
            style = style + first._network_maps(network, read(box), (0, 0), shape, whole, statistics)[1]
        length = float(np.sqrt(np.square(style).sum()))
        guess = size.diameter(style / length) if length > 0 else size.diam_mean
        second = self.model_copy(update={"rescale": size.diam_mean / guess, "resample": False})
        areas = np.concatenate([second._areas(network, read(box), statistics) for box in boxes])
        return float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)) if len(areas) else size.diam_mean

    def _areas(
        self, network: Network, pixels: NDArray[Any], statistics: Mapping[Statistic, float]
    ) -> NDArray[np.int64]:
        """Return the areas, px of the image, of the masks of an image of its own."""
        shape = (pixels.shape[1], pixels.shape[2])
        info = ImageInfo(shape, pixels.dtype)
        seen = self._seen(info)
        maps, _ = self._network_maps(network, pixels, (0, 0), shape, Box((0, 0), seen), statistics)
        rows, columns = (nearest(m, n, 0, n) for n, m in zip(shape, seen, strict=True))
        found = decode_flows(maps, np.zeros((2, 2), np.int64), self._rules(info), (rows, columns))
        areas: NDArray[np.int64] = np.bincount(found.labels[found.labels > 0], minlength=len(found.sinks) + 1)[1:]
        return areas[(found.reasons == 0) & (areas > 0)]


_TURING = ("pipeline", "postprocess")


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tiled(axis: Any, start: int, stop: int) -> tuple[int, int]:
    """Return the pixels that the tiles of a range hold, as far as the image goes."""
    tiles = axis.meeting(start, stop)
    return max(0, int(axis.starts[tiles[0]])), min(axis.length, int(axis.starts[tiles[-1]]) + axis.side)


def _placed(points: NDArray[np.int64], old: tuple[int, ...], new: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the pixels of an image in whose place the pixels of the resized one lie."""
    scale = np.array(new) / np.array(old)
    placed: NDArray[np.int64] = np.minimum(np.floor((points + 0.5) * scale).astype(np.int64), np.array(new) - 1)
    return placed


def _windows(shape: tuple[int, ...]) -> list[Box]:
    """Return boxes spread evenly over an image, or all of it."""
    if max(shape) <= _ONE:
        return [Box.whole(shape)]
    starts = [np.unique(np.linspace(0, max(n - _WINDOW, 0), _WINDOWS).astype(int)).tolist() for n in shape]
    return [Box((y, x), (min(y + _WINDOW, shape[0]), min(x + _WINDOW, shape[1]))) for y in starts[0] for x in starts[1]]

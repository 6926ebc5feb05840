"""`StarDist`: star-convex objects in images and volumes as a method."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from spatialdata_segment.core.statistics import Statistic, quantile_or_end
from spatialdata_segment.errors import InputError, SegmentationWarning, require
from spatialdata_segment.methods.base import Candidates, Decoded, ImageInfo, Method, Share, View
from spatialdata_segment.methods.stardist import models, shapes
from spatialdata_segment.methods.stardist.description import Description, describe, digest_of, weights_of
from spatialdata_segment.methods.stardist.tiles import core_of, cut, margin_of, tiles_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.methods.stardist.run import Network

_EPS = 1e-20
"""Added to the span of the percentiles, as csbdeep's ``normalize`` does."""
_FILLED = 0.3
"""Share of the pixels that are candidates, for the plan."""


class StarDist(Method):
    """Nuclei and cells of star-convex shape by a network of StarDist, in images and in volumes.

    Schmidt et al., "Cell detection with star-convex polygons" (2018); Weigert et al., "Star-convex polyhedra for 3D
    object detection and segmentation in microscopy" (2020). Settings have StarDist's names and meaning, and objects are
    those of ``predict_instances`` on the whole image: candidates are suppressed in one order for all of it. TensorFlow
    is not needed; to decode kept maps, neither is torch.

    A model of images segments volumes plane by plane: each is suppressed by itself, and ``stitch_threshold`` says which
    objects of consecutive planes are joined. Of these the table has the largest probability of the planes, and the
    class of that plane.

    Parameters
    ----------
    model
        The folder of a model (``config.json``, ``weights_best.h5`` or another ``.h5``, ``thresholds.json``), or the
        name of a pretrained one: "2D_versatile_fluo", "2D_versatile_he" (RGB), "2D_paper_dsb2018", "3D_demo". These are
        looked for in Keras' cache, where StarDist puts them, and fetched once.
    basedir
        Folder of models, in which ``model`` is the name of one.
    channels
        As many as the model takes. None: the nuclear stain, or all for a model of several.
    prob_thresh
        Probability above which a pixel is a candidate. None: that of the model's ``thresholds.json``.
    nms_thresh
        Share of the smaller of two objects that may overlap; of more, the one of lower probability goes. None: that of
        the model.
    normalize
        Percentiles of each channel of the whole image become 0 and 1, as csbdeep's ``normalize(image, *percentile,
        axis=(0, 1))`` gives, which StarDist's examples call; RGB is so normalised channel by channel, not jointly
        (``axis=None``). False: pixels as they are, normalised by you.
    percentile
        Which.
    keep_prob
        Candidates above it are kept with the maps, so that `decode` may lower ``prob_thresh`` to it. None:
        ``prob_thresh``.
    tile_size
        Side of the network's tiles, px, without what is read around them. None: 512, in volumes 96.
    outlines
        In images, the boundaries that are written: "labels" are the outlines of the objects' pixels, "rays" the
        polygons of the network, which may overlap.
    """

    model_config = ConfigDict(protected_namespaces=())

    name: ClassVar[str] = "stardist"
    map_dtype: ClassVar[str | None] = None
    sparse: ClassVar[bool] = True
    proposes: ClassVar[bool] = True
    decode_parameters: ClassVar[frozenset[str]] = frozenset({"prob_thresh", "nms_thresh", "outlines"})
    uses_device: ClassVar[bool] = True
    seconds_per_megapixel: ClassVar[float] = 2.0
    example: ClassVar[Mapping[str, Any]] = {"model": "2D_versatile_fluo"}

    model: str
    basedir: Path | None = None
    prob_thresh: Share | None = None
    nms_thresh: Share | None = None
    normalize: bool = True
    percentile: tuple[float, float] = (1.0, 99.8)
    keep_prob: Share | None = None
    tile_size: int | None = Field(default=None, ge=16)
    outlines: Literal["labels", "rays"] = "labels"
    described: dict[str, Any] | None = Field(default=None, repr=False)
    """What the model's files say, once it is read: not to be given."""

    def __init__(self, model: str | Path | None = None, **settings: Any) -> None:
        super().__init__(**({} if model is None else {"model": str(model)}), **settings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.percentile
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentile={self.percentile}: expected two from 0 to 100, the lower one first")
        if self.keep_prob is not None and self.prob_thresh is not None and self.keep_prob > self.prob_thresh:
            raise ValueError(
                f"keep_prob={self.keep_prob} is above prob_thresh={self.prob_thresh}: candidates would be lost; give a "
                "lower keep_prob, or none"
            )
        return self

    # the model

    @property
    def _folder(self) -> Path:
        return models.ensure_folder(self.model, self.basedir)

    @property
    def said(self) -> Description:
        """What the model's folder says of it."""
        if self.described is not None:
            return Description(**self.described["model"])
        return describe(self._folder)

    def _thresholds(self, said: Description) -> tuple[float, float]:
        prob = said.prob_thresh if self.prob_thresh is None else self.prob_thresh
        return prob, said.nms_thresh if self.nms_thresh is None else self.nms_thresh

    @property
    def _kept_above(self) -> float:
        """Probability above which candidates are kept."""
        if self.described is not None:
            return float(self.described["kept_above"])
        return self._thresholds(self.said)[0] if self.keep_prob is None else self.keep_prob

    @property
    def ndims(self) -> frozenset[int]:  # type: ignore[override]
        """Images or volumes, as the model is for."""
        return frozenset({self.said.n_dim})

    def roles(self, mask: str) -> tuple[int, ...] | None:
        """Return the nuclear stain, or all channels for a model that takes several."""
        return (0,) if self.said.n_channels == 1 else None

    def check(self, image: ImageInfo) -> None:
        """Read the model's files, and hold the image and the settings against them."""
        from spatialdata_segment.methods.stardist.layers import layers_of
        from spatialdata_segment.methods.stardist.weights import read_weights

        folder, said = self._folder, self.said
        if said.n_channels != image.n_channels:
            raise InputError(
                f"{self.model} takes {said.n_channels} channel{'s' * (said.n_channels > 1)}, and {image.n_channels} "
                "are given: name them in channels="
            )
        if self._kept_above > self._thresholds(said)[0]:
            raise InputError(
                f"keep_prob={self.keep_prob} is above the prob_thresh of {self.model}, {said.prob_thresh}: candidates "
                "would be lost; give a lower one, or none"
            )
        self._check_shapes(said)
        read_weights(weights_of(folder), layers_of(said))

    def _check_shapes(self, said: Description) -> None:
        """Raise where candidates could not be laid beside each other (directions in 3D, Clipper in 2D), or drawn."""
        if said.n_dim == 3:
            said.make_rays()
            self.check_planes()
        else:
            require("pyclipper", "stardist")

    def check_planes(self) -> None:
        """Raise where polygons of the network are asked for."""
        if self.outlines == "rays":
            raise InputError(
                "outlines='rays' is for images: of a volume, boundaries are the outlines of the objects' pixels in its "
                "planes; leave outlines out, or give 'labels'"
            )

    def check_decoding(self) -> None:
        """Raise where candidates are asked for that were not kept, or what decoding needs is missing."""
        said = self.said
        self._check_shapes(said)
        prob = self._thresholds(said)[0]
        if prob < self._kept_above:
            raise InputError(
                f"prob_thresh={prob}, and candidates were kept above {self._kept_above}: predict again with "
                f"keep_prob={prob}, or give a higher prob_thresh"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings and the content of the files."""
        settings = {k: v for k, v in super().fingerprint().items() if k != "described"}
        return settings if self.described is not None else {**settings, "model_sha256": digest_of(self._folder)}

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return the percentiles of each channel."""
        if not self.normalize:
            return ()
        return tuple(quantile_or_end(c, p / 100) for c in range(image.n_channels) for p in self.percentile)

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Fill in what the model's files say."""
        if self.described is not None:
            return self
        facts = {"model": self.said.model_dump(mode="json"), "kept_above": self._kept_above}
        return self.model_copy(update={"described": facts})

    # what the engine must know

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return one pixel: what fills a window is known, wherever it lies."""
        return (1,) * image.ndim

    def map_context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none: whole tiles are read, which `reach` has."""
        return (0,) * image.ndim

    def reach(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the reach of the tiles that hold a pixel of a window."""
        said = self.said
        return tuple(c + m for c, m in zip(core_of(said, self.tile_size), margin_of(said), strict=True))

    def block_multiple(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the sides of a tile, so that each runs once."""
        return core_of(self.said, self.tile_size)

    @property
    def bytes_per_pixel(self) -> float:  # type: ignore[override]
        """Memory of a window pixel: the candidates there, and copies of them."""
        said = self.said
        return 12.0 + _FILLED * (64 + 16 * said.n_rays) / float(np.prod(said.grid))

    @property
    def fixed_bytes(self) -> int:
        """Memory of the network at work on a tile."""
        said = self.said
        sides = zip(core_of(said, self.tile_size), margin_of(said), strict=True)
        seen = float(np.prod([c + 2 * m for c, m in sides]))
        wide = said.backbone.n_filter_base * (6 if max(said.grid) == 1 else 3)
        return int(4 * seen * wide)

    def load(self, device: str) -> Network:
        """Load the network."""
        from spatialdata_segment.methods.stardist.run import load_network

        folder = self._folder
        return load_network(weights_of(folder), self.said, digest_of(folder), device)

    # the two phases

    def predict(self, image: NDArray[Any], view: View) -> NDArray[Any]:
        """Return the candidates of a window."""
        from spatialdata_segment.methods.stardist.run import candidates, record_dtype

        network: Network = view.model  # type: ignore[assignment]
        said, shape, window = self.said, view.image.shape, view.window.box
        origin = window.grow(self.reach(view.image), view.window.image).start
        pixels = self._normalized(image, view.statistics)
        found = [np.zeros(0, record_dtype(said))]
        for tile in tiles_of(said, shape, core_of(said, self.tile_size), window):
            maps = network.maps(cut(pixels, origin, shape, tile.seen), tile)
            found.append(candidates(maps, tile, said, shape, self._kept_above))
        every = np.concatenate(found)
        every = every[window.holds(every["point"])]
        return every[np.lexsort(tuple(reversed(every["point"].T)))]

    def _normalized(self, image: NDArray[Any], statistics: Mapping[Statistic, float]) -> NDArray[np.float32]:
        out = image.astype(np.float32)
        if not self.normalize:
            return out
        for c in range(len(out)):
            low, high = (np.float32(statistics[quantile_or_end(c, p / 100)]) for p in self.percentile)
            out[c] = (out[c] - low) / (high - low + np.float32(_EPS))
        return out

    def extents(self, points: NDArray[Any], image: ImageInfo) -> NDArray[np.int64]:
        """Return the pixels that each candidate may fill."""
        return shapes.of(self.said).extents(points, image.shape)

    def propose(self, maps: NDArray[Any], view: View) -> Candidates:
        """Suppress what is certain, and list the rest."""
        said = self.said
        prob_thresh, nms_thresh = self._thresholds(said)
        likely = maps["prob"] > np.float32(prob_thresh)
        points = maps if likely.all() else maps[likely]
        boxes = self.extents(points, view.image)
        window, n = view.window, view.image.ndim
        low = (boxes[:, :n] >= window.box.start) | ~np.array(window.open_low)
        high = (boxes[:, n:] <= window.box.stop) | ~np.array(window.open_high)
        informed = np.all(low & high, axis=1)
        core = window.core.holds(points["point"]) & informed
        found = shapes.of(said).suppressed(points, boxes, informed, core, nms_thresh)
        listed = np.flatnonzero(found.state)
        place = np.cumsum(found.state > 0) - 1
        left = points[listed]
        columns: dict[str, NDArray[Any]] = {"prob": left["prob"]}
        if said.n_classes is not None:
            columns["class_id"] = left["classes"].argmax(axis=1)
            columns["class_prob"] = left["classes"]
        if self.outlines == "rays":
            columns["_corners"] = shapes.of(said).corners(left)
        anchors = left["point"] - np.array(window.box.start)
        return Candidates(anchors, left["prob"], place[found.edges], columns)

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Paint the candidates that stayed."""
        assert view.seeds is not None
        said, window = self.said, view.window
        points = maps[_among(maps["point"], view.seeds.anchors + np.array(window.box.start), view.image.shape)]
        boxes = self.extents(points, view.image)
        labels = shapes.of(said).painted(points, window.box)
        n = view.image.ndim
        inside = (boxes[:, :n] >= window.box.start) & (boxes[:, n:] <= window.box.stop)
        complete: NDArray[np.bool_] = np.all(inside, axis=1)
        return Decoded(labels, points["point"] - np.array(window.box.start), complete)

    def polygons(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.object_] | None:
        """Return the polygons of the rays, where they are asked for."""
        if self.outlines != "rays" or "_corners" not in columns:
            return None
        import shapely

        found: Any = shapely.polygons(columns["_corners"][:, :, ::-1].astype(np.float64) + 0.5)
        crossed = ~shapely.is_valid(found)
        if crossed.any():
            warnings.warn(
                f"{int(crossed.sum())} outlines of rays cross themselves, and were made valid",
                SegmentationWarning,
                stacklevel=2,
            )
            found[crossed] = shapely.buffer(found[crossed], 0)
        return np.asarray(found, object)


def _among(points: NDArray[np.integer], wanted: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Tell which points are among others; all lie in the image."""
    at, there = (np.ravel_multi_index(tuple(np.asarray(p, np.int64).T), shape) for p in (points, wanted))
    return np.isin(at, there)

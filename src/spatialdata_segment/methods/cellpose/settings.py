"""The settings of `Cellpose`: what they may be, what goes with what, and what the files of a model say of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from spatialdata_segment.errors import InputError, SegmentationWarning, is_whole
from spatialdata_segment.methods.base import ImageInfo, Method
from spatialdata_segment.methods.cellpose import models
from spatialdata_segment.methods.cellpose.normalization import Normalization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialdata_segment.methods.cellpose.weights import Description

STEPS = 200
_TILE = {"cpnet": 224, "cpsam": 256, "cpdino": 384}
_LARGEST = 20
"""Factor by which an image is enlarged at most."""
_MOST_LEVELS = 6
_TURING = ("pipeline", "postprocess")

Voxels = Annotated[float, Field(ge=0)]


class Settings(Method):
    """What `Cellpose` is given; its parameters are described there."""

    model_config = ConfigDict(protected_namespaces=())

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
        return cls(**({"model": model} | {"resample": False, "niter": STEPS} | tiles | post | settings))

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

    @property
    def _side(self) -> int:
        return self.tile_size or _TILE[self._description().generation]

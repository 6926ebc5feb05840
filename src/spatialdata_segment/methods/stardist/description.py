"""What a StarDist model's folder says of it: ``config.json``, ``thresholds.json``; neither weights nor torch.

The keys are those of StarDist's `Config2D` and `Config3D` (Schmidt et al., "Cell detection with star-convex polygons",
2018; Weigert et al., "Star-convex polyhedra for 3D object detection", 2020).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.base import Share
from spatialdata_segment.methods.stardist.rays import Rays, rays_of

if TYPE_CHECKING:
    from pathlib import Path

BORDER = 2
"""Pixels of the network's grid at the image's border in which StarDist takes no candidate."""
_WEIGHTS = "*.h5", "*.hdf5"
_THRESHOLDS = {"prob_thresh": "prob", "nms_thresh": "nms"}
"""Fields that ``thresholds.json`` has, and their names there."""


class Backbone(BaseModel):
    """The part of a network that its two architectures do not share.

    Attributes
    ----------
    kind
        "unet" or "resnet".
    n_depth
        Levels of a U-Net; blocks of a ResNet.
    kernel_size, pool
        Pixels along ``([z], y, x)``.
    n_filter_base
        Channels of the first level.
    n_conv
        Convolutions a level, or a block.
    activation, last_activation
        Names of Keras.
    batch_norm
        Each convolution is followed by a batch normalisation.
    expansion
        By which the channels grow from level to level of a U-Net.
    prefix
        Of the names of a U-Net's layers.
    n_features
        Channels of the convolution before the heads, 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["unet", "resnet"]
    n_depth: int = Field(ge=0)
    kernel_size: tuple[int, ...]
    pool: tuple[int, ...]
    n_filter_base: int = Field(ge=1)
    n_conv: int = Field(ge=1)
    activation: str
    last_activation: str
    batch_norm: bool
    expansion: float = 2
    prefix: str = ""
    n_features: int = Field(ge=0)


class Description(BaseModel):
    """What is needed of a model to decode its maps; with `backbone`, to run it.

    Attributes
    ----------
    n_dim
        2 or 3.
    n_channels
        Of the image.
    n_rays
        Distances a pixel.
    grid
        Pixels of the image a pixel of the maps, along ``([z], y, x)``.
    n_classes
        Classes besides the background, or None.
    rays
        Of a volume model: StarDist's name of the rays and their settings; None in 2D.
    backbone
        The network.
    prob_thresh, nms_thresh
        Of ``thresholds.json``, else StarDist's 0.5 and 0.4.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_dim: Literal[2, 3]
    n_channels: int = Field(ge=1)
    n_rays: int = Field(ge=3)
    grid: tuple[int, ...]
    n_classes: int | None = None
    rays: dict[str, Any] | None = None
    backbone: Backbone
    prob_thresh: Share = 0.5
    nms_thresh: Share = 0.4

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, value in (("grid", self.grid), ("pool", self.backbone.pool), ("kernel", self.backbone.kernel_size)):
            if len(value) != self.n_dim or min(value) < 1:
                raise ValueError(f"{name} is {value}, expected {self.n_dim} whole numbers from 1")
        if any(g & (g - 1) for g in self.grid):
            raise ValueError(f"grid is {self.grid}, expected powers of two")
        return self

    @property
    def divisor(self) -> tuple[int, ...]:
        """Pixels of which the sides of what the network sees must be multiples."""
        if self.backbone.kind == "resnet":
            return self.grid
        return tuple(p**self.backbone.n_depth * g for p, g in zip(self.backbone.pool, self.grid, strict=True))

    def grid_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the maps of an image ``([z], y, x)``."""
        return tuple(-(-n // g) for n, g in zip(shape, self.grid, strict=True))

    def grid_ends(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the first pixel of the maps, along each axis, that is no candidate any more.

        `BORDER` pixels are left out at the border of what the network sees, which is padded at its end: StarDist's rule
        for ``predict_instances``.
        """
        padded = (-(-n // d) * d // g for n, d, g in zip(shape, self.divisor, self.grid, strict=True))
        return tuple(min(n, p - BORDER) for n, p in zip(self.grid_shape(shape), padded, strict=True))

    def make_rays(self) -> Rays:
        """Return the directions of a volume model's distances.

        Raises
        ------
        InputError
            If they cannot be made, or are not `n_rays`.
        """
        assert self.rays is not None
        return rays_of(self.rays, self.n_rays)


def describe(folder: Path) -> Description:
    """Read ``config.json`` and ``thresholds.json`` of a model's folder.

    Raises
    ------
    MissingError
        If there is no such folder, or it has no configuration.
    InputError
        If the configuration is not one of StarDist, or a threshold is not from 0 to 1.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"no {path}: expected the folder of a StarDist model, with config.json and weights_best.h5")
    config = _read(path)
    thresholds = _read(folder / "thresholds.json") if (folder / "thresholds.json").is_file() else {}
    try:
        return _description(config, thresholds)
    except KeyError as error:
        raise InputError(f"{path} does not say {error}: expected a configuration of StarDist 2D or 3D") from error
    except ValidationError as error:
        first = error.errors()[0]
        if (key := _THRESHOLDS.get(str(first["loc"][0]) if first["loc"] else "")) is not None:
            raise InputError(
                f"{folder / 'thresholds.json'}: {key} is {first['input']!r}, expected a number from 0 to 1; remove the "
                "file for StarDist's 0.5 and 0.4"
            ) from error
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where} {first['msg']}: expected a configuration of StarDist 2D or 3D") from error
    except TypeError as error:
        raise InputError(f"{path} cannot be used: {error}: expected a configuration of StarDist 2D or 3D") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def _description(config: Mapping[str, Any], thresholds: Mapping[str, Any]) -> Description:
    n_dim = config["n_dim"]
    kind = str(config.get("backbone", "unet"))
    common = {
        "kind": kind,
        "kernel_size": config[f"{kind}_kernel_size"],
        "n_filter_base": config[f"{kind}_n_filter_base"],
        "activation": config[f"{kind}_activation"],
        "batch_norm": config[f"{kind}_batch_norm"],
        "n_features": config[f"net_conv_after_{kind}"],
    }
    if kind == "unet":
        last = config.get("unet_last_activation")
        special = {
            "n_depth": config["unet_n_depth"],
            "pool": config["unet_pool"],
            "n_conv": config["unet_n_conv_per_depth"],
            "last_activation": config["unet_activation"] if last is None else last,
            "expansion": config.get("unet_expansion", 2),
            "prefix": config.get("unet_prefix", ""),
        }
    else:
        special = {
            "n_depth": config["resnet_n_blocks"],
            "pool": (1,) * len(common["kernel_size"]),
            "n_conv": config["resnet_n_conv_per_block"],
            "last_activation": config["resnet_activation"],
        }
    return Description(
        n_dim=n_dim,
        n_channels=config["n_channel_in"],
        n_rays=config["n_rays"],
        grid=config["grid"],
        n_classes=config.get("n_classes"),
        rays=config["rays_json"] if n_dim == 3 else None,
        backbone=Backbone(**common, **special),
        prob_thresh=thresholds.get("prob", 0.5),
        nms_thresh=thresholds.get("nms", 0.4),
    )


def weights_of(folder: Path) -> Path:
    """Return the file of a model's weights: the latest whose name says "best", else the latest; no hidden ones.

    Raises
    ------
    MissingError
        If there is none.
    """
    found = (p for pattern in _WEIGHTS for p in folder.glob(pattern) if not p.name.startswith("."))
    files = sorted(found, key=lambda p: (p.stat().st_mtime, p.name))
    if not files:
        raise MissingError(f"no weights in {folder}: expected weights_best.h5 or weights_last.h5 beside config.json")
    return next((p for p in reversed(files) if "best" in p.name), files[-1])


def digest_of(folder: Path) -> str:
    """Return the sha256 of all that decides what a model says."""
    total = sha256()
    for path in (folder / "config.json", folder / "thresholds.json", weights_of(folder)):
        total.update(path.read_bytes() if path.is_file() else b"-")
    return total.hexdigest()

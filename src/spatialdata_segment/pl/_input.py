"""What a picture is drawn of: an image and labels, or an object and the names in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spatialdata_segment._request import checked_pixel_size
from spatialdata_segment._results import Result, find_image, find_result, is_object, only_image
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Channels = Sequence[str | int] | Mapping[str | int, str] | str | int | None
    """Channels by name or index; a mapping gives them colours."""


@dataclass(frozen=True)
class Input:
    """An image and labels to draw.

    Attributes
    ----------
    image, labels
        As :func:`source` takes them.
    channels
        Indices of those shown; None for the first two.
    tints
        Their colours, where any were given.
    names
        Their names, where they are known.
    pixel_size
        µm a pixel along ``([z], y, x)``, where it is known.
    result
        The segmentation that the labels are of.
    """

    image: Any
    labels: Any
    channels: tuple[int, ...] | None
    tints: tuple[str, ...] | None
    names: tuple[str, ...]
    pixel_size: tuple[float, ...] | None
    result: Result | None


def read_input(
    image: Any, labels: Any, key: str | None, channels: Channels, pixel_size: float | Sequence[float] | None, ndim: int
) -> Input:
    """Look up what is to be drawn.

    Parameters
    ----------
    image, labels
        An image and labels; or an object, and the name of an image in it.
    key
        Of an object: the prefix of a result, the name of a labels element, or None.
    channels, pixel_size
        As given.
    ndim
        Spatial axes of the image.
    """
    tints = tuple(channels.values()) if isinstance(channels, Mapping) else None
    chosen: Any = tuple(channels) if isinstance(channels, Mapping) else channels
    if not is_object(image):
        indices = None if chosen is None else (chosen,) if isinstance(chosen, int) else tuple(chosen)
        if any(isinstance(i, str) for i in indices or ()):
            raise InputError(
                f"Channels {indices}: expected indices; names need an object, as in overlay(sdata, 'image')"
            )
        return Input(image, labels, indices, tints, (), checked_pixel_size(pixel_size, ndim), None)
    if labels is not None and not isinstance(labels, str):
        raise InputError(
            f"with an object, expected the name of an image in it, not {type(labels).__name__}: pass key= for the "
            "result to draw, or an image and labels in place of the object"
        )
    result = None if key is None else find_result(image, key)
    image_key = labels or (only_image(image) if result is None else result.image_key(None)) or only_image(image)
    picture = find_image(image, image_key, None if result is None else result.shape)
    at = picture.indices(chosen, result)
    known = None if result is None or pixel_size is not None else result.pixel_size
    return Input(
        picture.levels,
        None if result is None else result.labels,
        at,
        tints,
        tuple(picture.names[i] for i in at),
        known or checked_pixel_size(pixel_size, ndim),
        result,
    )

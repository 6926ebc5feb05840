"""What a segmentation left in an object: elements, tables, how it was made. The reader of pictures and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._outputs import scales_of
from spatialdata_segment._record import read_record
from spatialdata_segment._table import KINDS, read_metadata
from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Levels:
    """The scales of an element on one grid, arrays from the finest to the coarsest."""

    arrays: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the finest."""
        return tuple(int(n) for n in self.arrays[0].shape)


@dataclass(frozen=True)
class Result:
    """A segmentation in an object.

    Attributes
    ----------
    sdata
        The object.
    key
        Prefix of its elements, or the name of one labels element.
    labels
        Mask ("nucleus", "cell") -> its labels, axes ``([z], y, x)``.
    """

    sdata: SpatialData
    key: str
    labels: dict[str, Levels]

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels ``([z], y, x)`` of the grid on which the result lies."""
        return next(iter(self.labels.values())).shape

    @cached_property
    def table(self) -> AnnData:
        """The table of the cells."""
        return self._table("table")

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """A row for every object found."""
        found: pd.DataFrame = self._table("candidates").obs
        return found

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """How the result was made; empty where there is no table."""
        name = f"{self.key}_table"
        return read_metadata(self.table) if name in self.sdata.tables and "segmentation" in self.table.uns else {}

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """What is known of the run that made it; None where nothing is, or of a part of what it made."""
        record = read_record(self.sdata, self.key, self.metadata)
        is_whole = record is not None and record.get("shape", list(self.shape)) == list(self.shape)
        return record if is_whole else None

    @cached_property
    def main(self) -> str:
        """The mask of the table: the cells, if there are any; of one that was written as both, the one it was."""
        found = set(self.labels)
        if f"{self.key}_candidates" in self.sdata.tables:
            found = found & set(self.masks) or found
        return "cell" if "cell" in found else next(m for m in KINDS if m in found)

    @cached_property
    def masks(self) -> list[str]:
        """The masks that were made, those in which nothing was found among them."""
        made = {*self.candidates["kind"].astype(str), *self.metadata.get("counts", {})}
        return [m for m in KINDS if m in made] or [m for m in KINDS if m in self.labels][-1:]

    @property
    def pixel_size(self) -> tuple[float, ...] | None:
        """µm a pixel along ``([z], y, x)``, where the result knows it."""
        size = self.metadata.get("pixel_size")
        return None if size is None else tuple(float(s) for s in size)

    def image_key(self, given: str | None) -> str | None:
        """Return the name of the image to draw: the one given, the one segmented, the only one; None if there is none.

        Raises
        ------
        MissingError
            If there are several, or not the one given.
        """
        images = self.sdata.images
        if given is not None or self.metadata.get("image") in images:
            return given if given is not None else self.metadata["image"]
        return only_image(self.sdata) if len(images) else None

    def candidates_of(self, mask: str) -> pd.DataFrame:
        """Return the rows of one mask."""
        rows = self.candidates
        return rows[rows["kind"] == mask]

    def _table(self, name: str) -> AnnData:
        tables = self.sdata.tables
        if f"{self.key}_{name}" not in tables:
            raise MissingError(
                f"no table {self.key}_{name} in the object; its tables: {_names(tables)}. Run segment with "
                "table=True, or pass the key= of a result that has one"
            )
        return tables[f"{self.key}_{name}"]


@dataclass(frozen=True)
class Picture:
    """The pixels of an image, on the grid of a result where there is one.

    Attributes
    ----------
    key
        Name of the image.
    names
        Of its channels.
    levels
        Axes ``(c, [z], y, x)``.
    """

    key: str
    names: tuple[str, ...]
    levels: Levels

    @property
    def shape(self) -> tuple[int, ...]:
        """``([z], y, x)``."""
        return self.levels.shape[1:]

    def indices(self, channels: Sequence[str | int] | str | int | None, result: Result | None) -> tuple[int, ...]:
        """Return the channels to show: those given, or those that the result was made of, or the first two."""
        if channels is not None:
            given = [channels] if isinstance(channels, str | int) else list(channels)
            return tuple(_index(self.names, c, self.key) for c in given)
        of = result.metadata.get("channels", {}) if result is not None else {}
        used = dict.fromkeys(c for m in KINDS for c in of.get(m, ()) if c in self.names)
        found = tuple(self.names.index(c) for c in used)[:4]
        return found or tuple(range(min(2, len(self.names))))


def find_result(sdata: SpatialData, key: str) -> Result:
    """Find a segmentation by the prefix of its elements, or one labels element by its name.

    Raises
    ------
    MissingError
        If there is none; the message lists those there are.
    """
    labels = sdata.labels
    found = {m: _levels(labels[f"{key}_{m}_labels"]) for m in KINDS if f"{key}_{m}_labels" in labels}
    if not found and key in labels:
        found = {"cell": _levels(labels[key])}
    if not found:
        ends = [f"_{m}_labels" for m in KINDS]
        there = sorted({name.removesuffix(end) for name in labels for end in ends if name.endswith(end)})
        raise MissingError(
            f"no segmentation {key!r} in the object: it has neither labels {key}_nucleus_labels nor {key}_cell_labels. "
            f"Segmentations there: {_names(there)}; labels: {_names(labels)}. Run segment first, or pass key="
        )
    return Result(sdata, key, found)


def find_image(sdata: SpatialData, image_key: str, shape: Sequence[int] | None) -> Picture:
    """Find an image, from the scale on that has a shape.

    Raises
    ------
    MissingError
        No such image.
    InputError
        None of its scales lies on the grid.
    """
    ref = _elements.read_image(sdata, image_key)
    levels = [
        level.transpose(*(d for d in ("c", "z", "y", "x") if d in level.dims)).data
        for level in scales_of(sdata.images[image_key]).values()
    ]
    if shape is not None:
        at = next((i for i, a in enumerate(levels) if a.shape[1:] == tuple(shape)), None)
        if at is None:
            told = ", ".join(str(a.shape[1:]) for a in levels)
            raise InputError(
                f"image {image_key!r} has scales of {told} px and the labels {tuple(shape)}: expected one of the same "
                "grid. Pass the image that was segmented"
            )
        levels = levels[at:]
    return Picture(image_key, ref.channels, Levels(tuple(levels)))


def only_image(sdata: SpatialData) -> str:
    """Return the name of the only image; MissingError where there is none, or several."""
    if len(sdata.images) != 1:
        raise MissingError(
            f"the object has {len(sdata.images)} images ({_names(sdata.images)}): name the one to draw with image_key"
        )
    return str(next(iter(sdata.images)))


def is_object(value: Any) -> bool:
    """Tell a SpatialData object from an array or an element."""
    return all(hasattr(value, kind) for kind in ("images", "labels", "shapes", "tables"))


def _levels(element: Any) -> Levels:
    arrays = [
        level.transpose(*(d for d in ("z", "y", "x") if d in level.dims)).data for level in scales_of(element).values()
    ]
    return Levels(tuple(arrays))


def _index(names: Sequence[str], channel: str | int, key: str) -> int:
    if isinstance(channel, str) and channel in names:
        return list(names).index(channel)
    if isinstance(channel, int | np.integer) and 0 <= channel < len(names):
        return int(channel)
    raise MissingError(f"image {key!r} has no channel {channel!r}: expected one of {_names(names)}, or its index")


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(n) for n in names) or "none"

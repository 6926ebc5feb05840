"""`match_nuclei` and `filter_labels`: matching and size filters on labels that exist already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._masks import filter_label_array, match_label_arrays
from spatialdata_segment._request import checked_pixel_size, leftovers, output_names
from spatialdata_segment._staging import recover_sdata
from spatialdata_segment._write_masks import Result, Wanted, write_result
from spatialdata_segment.core.matching import Resolution, Rules
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dask.array as da
    from spatialdata import SpatialData

    from spatialdata_segment.config import SizeFilter


def match_nuclei(
    sdata: SpatialData,
    nucleus_labels_key: str,
    cell_labels_key: str,
    *,
    filtering_threshold_mask_matching: float = 0.95,
    multinucleated: Literal["drop", "keep"] = "drop",
    unmatched: Literal["drop", "keep"] = "drop",
    nucleus_size: SizeFilter | None = None,
    cell_size: SizeFilter | None = None,
    image_key: str | None = None,
    measure_channels: Sequence[str | int] | str | int | None = None,
    key_added: str = "segmentation",
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Match the nuclei and the cells of two labels elements, and write the pairs with one id each.

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    nucleus_labels_key, cell_labels_key
        Labels elements on the same grid: ``([z], y, x)`` integers, 0 is background.
    filtering_threshold_mask_matching
        Share of a nucleus' pixels, 0 to 1, that a cell must hold to be its cell.
    multinucleated, unmatched
        "drop" or "keep" cells with several nuclei, and objects without a partner.
    nucleus_size, cell_size
        Size filters, or None.
    image_key, measure_channels
        An image on the same grid, and the channels whose mean intensities go into the table.
    key_added, to_coordinate_system, pixel_size, shapes, table, overwrite, progress
        As for `segment`.

    Returns
    -------
    ``sdata`` with the elements that `segment` writes for two masks.

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything is written.
    """
    nuclei, cells = (_elements.read_labels(sdata, k) for k in (nucleus_labels_key, cell_labels_key))
    if nuclei.data.shape != cells.data.shape or nuclei.transformations != cells.transformations:
        raise InputError(
            f"labels {nucleus_labels_key!r} {nuclei.data.shape} and {cell_labels_key!r} {cells.data.shape} do not "
            "lie on the same grid: bring them to one shape and one transformation first"
        )
    rules = Rules(
        match_masks=True,
        threshold=filtering_threshold_mask_matching,
        multinucleated=multinucleated,
        unmatched=unmatched,
        nucleus_size=nucleus_size.rule() if nucleus_size else None,
        cell_size=cell_size.rule() if cell_size else None,
        pixel_area=_pixel_area(pixel_size, nuclei.data.ndim),
    )
    image = _image(sdata, image_key, measure_channels, cells)
    names = output_names(key_added, ("nucleus", "cell"), shapes, table)
    recover_and_check(sdata, names, overwrite)
    matched = match_label_arrays(nuclei.data.data, cells.data.data, rules)
    result = Result(
        {"nucleus": matched.nucleus_objects, "cell": matched.cell_objects},
        matched.resolution,
        cells,
        {"nuclei": nucleus_labels_key, "cells": cell_labels_key, "rules": str(rules)},
        _stale(key_added, names, (nucleus_labels_key, cell_labels_key), overwrite),
        {"nucleus": nucleus_labels_key, "cell": cell_labels_key},
    )
    wanted = Wanted(key_added, to_coordinate_system, image, rules.pixel_area, shapes, table, progress)
    return write_result(sdata, {"nucleus": matched.nuclei, "cell": matched.cells}, result, wanted)


def filter_labels(
    sdata: SpatialData,
    labels_key: str,
    size: SizeFilter,
    *,
    kind: Literal["nucleus", "cell"] = "cell",
    image_key: str | None = None,
    measure_channels: Sequence[str | int] | str | int | None = None,
    key_added: str = "segmentation",
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Drop the objects of a labels element that a size filter refuses, and number the others 1..N.

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    labels_key
        A labels element: ``([z], y, x)`` integers, 0 is background.
    size
        The filter: bounds in px or µm², or an interval of the log-areas of the whole element.
    kind
        Under which name the mask is written: "nucleus" or "cell".
    image_key, measure_channels, key_added, to_coordinate_system, pixel_size, shapes, table, overwrite, progress
        As for `match_nuclei`.

    Returns
    -------
    ``sdata`` with the elements that `segment` writes for one mask.

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything is written.
    """
    given = _elements.read_labels(sdata, labels_key)
    area = _pixel_area(pixel_size, given.data.ndim)
    sizes = {f"{kind}_size": size.rule()}
    rules = Rules(match_masks=False, pixel_area=area, **sizes)  # type: ignore[arg-type]
    image = _image(sdata, image_key, measure_channels, given)
    names = output_names(key_added, (kind,), shapes, table)
    recover_and_check(sdata, names, overwrite)
    filtered = filter_label_array(given.data.data, rules, kind=kind)
    fates = {"nucleus": None, "cell": None, kind: filtered.fate}
    result = Result(
        {kind: filtered.objects},
        Resolution(fates["nucleus"], fates["cell"], int(filtered.fate.is_kept.sum())),
        given,
        {"labels": labels_key, "rules": str(rules)},
        _stale(key_added, names, (labels_key,), overwrite),
        {kind: labels_key},
    )
    wanted = Wanted(key_added, to_coordinate_system, image, area, shapes, table, progress)
    return write_result(sdata, {kind: filtered.labels}, result, wanted)


def _pixel_area(pixel_size: float | Sequence[float] | None, ndim: int) -> float | None:
    size = checked_pixel_size(pixel_size, ndim)
    return None if size is None else float(np.prod(size))


def recover_store(sdata: SpatialData) -> None:
    """Finish what an earlier run left half way in a store on this machine."""
    if _elements.local_store(sdata) is not None:
        recover_sdata(sdata)


def recover_and_check(sdata: SpatialData, names: Mapping[str, str], overwrite: bool) -> None:
    """Finish what an earlier run left half way, and raise where a name is taken."""
    recover_store(sdata)
    _elements.check_outputs(sdata, dict(names), overwrite)


def _stale(key_added: str, names: Mapping[str, str], inputs: Sequence[str], overwrite: bool) -> list[str]:
    """Return what an earlier result of the same prefix left and this one replaces; never an input."""
    return [name for name in leftovers(key_added, names) if overwrite and name not in inputs]


def _image(
    sdata: SpatialData,
    image_key: str | None,
    measure_channels: Sequence[str | int] | str | int | None,
    like: _elements.LabelsRef,
) -> tuple[da.Array, list[str]] | None:
    if image_key is None:
        if measure_channels is not None:
            raise InputError(f"measure_channels={measure_channels} without image_key: name the image to measure")
        return None
    ref = _elements.read_image(sdata, image_key)
    if ref.data.shape[1:] != like.data.shape:
        raise InputError(
            f"image {image_key!r} of shape {ref.data.shape[1:]} does not lie on the grid of labels {like.key!r} of "
            f"shape {like.data.shape}"
        )
    at = _elements.resolve_channels(ref, ref.channels if measure_channels is None else measure_channels)
    return ref.data.data[list(at)], [ref.channels[i] for i in at]

"""`report`: what was found in an image, as one HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment._report.page import page
from spatialdata_segment._report.sections import Draft
from spatialdata_segment._results import find_image, find_result
from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

_MOST_CROPS = 24


def report(
    sdata: SpatialData,
    path: str | Path = "report.html",
    *,
    image_key: str | None = None,
    key: str = "segmentation",
    channels: Sequence[str | int] | str | int | None = None,
    n_crops: int = 6,
    crop_size: int | None = None,
    title: str | None = None,
    rng: int | np.random.Generator = 0,
) -> Path:
    """Write a report of a segmentation: one HTML file that needs nothing else, to look at, send and print.

    It shows the whole image with outlines, crops at random and the worst ones, what was dropped and why, sizes,
    intensities, matching, the shards and whether the labels show them, all parameters, versions, times and memory.
    The worst crops are those where most candidates were dropped, and around the kept nuclei with the least share in
    their cells, cells whose stain is that of the ground or whose nucleus is a speck, the largest kept objects, and the
    smallest that the image's edge does not cut.

    Parameters
    ----------
    sdata
        Holds the result with its tables. Crops of images and labels are read, and a coarse scale; of an image of one
        scale every chunk is read once for the overview, and few pixels kept.
    path
        File to write; replaced if it exists.
    image_key
        The image to draw; None: the one that was segmented; if it is not there, outlines alone are drawn.
    key
        Prefix of the result, ``key_added`` of `segment`.
    channels
        Names or indices of the channels to show; None: those that were segmented.
    n_crops
        Crops at random, 1 to 24; of each criterion of the worst ones a third as many, at least 1.
    crop_size
        Side of a crop, px; None: seven diameters of the median kept object, 96 to 512 px.
    title
        None: the key, and the names of image and store.
    rng
        A seed or a generator, for the crops and for the windows at the seams. Equal seeds and results give equal files.

    Returns
    -------
    ``path``.

    Raises
    ------
    MissingError
        If there is no such result or image, or the result has no tables.
    InputError
        If image and labels do not lie on one grid, a number makes no sense, or the path is that of a folder.

    Examples
    --------
    >>> report(sdata, "report.html", image_key="image")
    """
    if not (is_whole(n_crops) and 1 <= n_crops <= _MOST_CROPS):
        raise InputError(f"n_crops={n_crops!r}, expected a whole number from 1 to {_MOST_CROPS}")
    if crop_size is not None and not (is_whole(crop_size) and 16 <= crop_size <= 2048):
        raise InputError(f"crop_size={crop_size!r}, expected a whole number of px from 16 to 2048")
    path = Path(path)
    check_path(path, "the report")
    result = find_result(sdata, key)
    _ = result.candidates, result.table  # raises where they are not there
    shown = result.image_key(image_key)
    picture = None if shown is None else find_image(sdata, shown, result.shape)
    draft = Draft(result, picture, channels, np.random.default_rng(rng))
    store = "In memory" if sdata.path is None else Path(sdata.path).name
    heading = title or f"{store}: {key} of {shown or result.metadata.get('image', 'labels')}"
    html = page(heading, draft.subtitle(), draft.sections(int(n_crops), crop_size))
    draft_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft_path.write_text(html, encoding="utf-8")
        draft_path.replace(path)
    finally:
        draft_path.unlink(missing_ok=True)
    return path


def check_path(path: Path, of: str) -> None:
    """Raise InputError where a report cannot be written; ``of`` is what the message calls it."""
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of {of} is not there: make it first")
    if path.is_dir():
        raise InputError(f"{of} {path} is a folder: expected the name of a file, such as {path / 'report.html'}")

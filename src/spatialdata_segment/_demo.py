"""The demo: an image made or read, segmented, scored, drawn. Uses public functions only."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._record import peak_memory
from spatialdata_segment.config import SizeFilter, Workflow, as_workflow
from spatialdata_segment.errors import ExistsError, InputError, MissingError
from spatialdata_segment.methods.expand import ExpandNuclei
from spatialdata_segment.methods.threshold import ThresholdNuclei

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment.testing import Scores, Tissue

STORE, OVERLAY = "demo.zarr", "overlay.png"
"""Names of what a demo writes."""

MIN_SIDE = 64
MOST_CHANNELS = 16
_CROP = 512
_CHUNK = 1024


@dataclass(frozen=True)
class DemoResult:
    """What a demo found and what it took.

    Attributes
    ----------
    shape
        ``(c, y, x)`` of the image.
    counts
        Candidates and kept objects by mask: ``{"nucleus": (candidates, kept), ...}``.
    dropped
        Candidates by the reason why they were dropped.
    seconds
        Of making or reading the image, of segmenting, and of scoring.
    peak_memory
        Bytes that the process held at most.
    scores
        By mask, against the truth; empty where none is known.
    files
        What was written.
    """

    shape: tuple[int, ...]
    counts: dict[str, tuple[int, int]]
    dropped: dict[str, int]
    seconds: dict[str, float]
    peak_memory: int
    files: tuple[Path, ...]
    scores: dict[str, Scores] = field(default_factory=dict)

    def __str__(self) -> str:
        height, width = self.shape[1:]
        megapixels = height * width / 1e6
        rate = megapixels / self.seconds["segment"]
        lines = [f"image         {height:,} x {width:,} px, {self.shape[0]} channel(s), {megapixels:.1f} Mpx"]
        for mask, (candidates, kept) in self.counts.items():
            lines.append(f"{mask:<13} {candidates:,} found, {kept:,} kept")
        if self.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items())
            lines.append(f"dropped       {reasons}")
        lines.append(f"time          {self.seconds['segment']:.1f} s to segment and write ({rate:.1f} Mpx/s)")
        lines.append(f"peak memory   {self.peak_memory / 1e6:,.0f} MB, of the whole process")
        for mask, scores in self.scores.items():
            lines += ["", f"{mask} against the truth: {scores}"]
        return "\n".join([*lines, "", "written", *(f"  {path}" for path in self.files)])


def demo(
    output: Path,
    *,
    size: int = 4096,
    image: Path | None = None,
    channel: int = 0,
    workflow: str | None = None,
    shard_size: int | None = None,
    n_jobs: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DemoResult:
    """Segment synthetic tissue or an image file, and write a store and a picture.

    Parameters
    ----------
    output
        Folder to write; must not exist unless ``overwrite``, which replaces the files of an earlier demo and
        leaves others alone.
    size
        Side (px) of the synthetic image.
    image
        A file to read in place of it, see `read_picture`.
    channel
        Its channel that shows the nuclei.
    workflow
        Name of one that needs no other stain; None: `demo_workflow`.
    shard_size, n_jobs, progress
        As in `segment`.

    Raises
    ------
    InputError
        For an image that cannot be read, a channel that it lacks, a size below 64 px, a workflow that is not there
        or needs more than a nuclear stain; all that `segment` can know beforehand.
    ExistsError
        If the folder exists.
    """
    from spatialdata_segment._preview import plan
    from spatialdata_segment._segment import segment

    flow = demo_workflow() if workflow is None else nuclear_workflow(workflow)
    tissue = None if image is not None else demo_tissue(size)
    picture = None if image is None else read_picture(image)
    if picture is not None and not 0 <= channel < len(picture):
        raise MissingError(f"channel {channel} is not in {image}: expected 0 to {len(picture) - 1}")
    _check_free(output, overwrite)
    lazy = _lazy(tissue, picture)
    plan(lazy, "image", flow, channels=[channel], shard_size=shard_size, n_jobs=n_jobs)  # raises before a file is made
    _prepare(output)
    started = time.perf_counter()
    sdata = _written(output / STORE, lazy)
    made = time.perf_counter()
    segment(sdata, "image", flow, channels=[channel], shard_size=shard_size, n_jobs=n_jobs, progress=progress)
    segmented = time.perf_counter()
    peak = peak_memory()
    masks = {mask: sdata[f"segmentation_{mask}_labels"].data for mask in flow.methods()}
    scores = {} if tissue is None else _scores(masks, tissue)
    scored = time.perf_counter()
    _draw(output, sdata["image"].data, masks)
    candidates = sdata["segmentation_candidates"].obs
    dropped = candidates.loc[~candidates["is_kept"], "drop_reason"].value_counts()
    return DemoResult(
        shape=tuple(sdata["image"].shape),
        counts={m: _counts(candidates[candidates["kind"] == m]) for m in masks},
        dropped={str(reason): int(count) for reason, count in dropped.items() if count},
        seconds={"make": made - started, "segment": segmented - made, "score": scored - segmented},
        peak_memory=peak,
        files=tuple(output / name for name in (STORE, OVERLAY)),
        scores=scores,
    )


def demo_workflow() -> Workflow:
    """Return the workflow of the demo: nuclei by local contrast, specks dropped, cells grown around them."""
    return Workflow(
        nucleus=ThresholdNuclei(sigma=1.5, min_distance=9),
        cell=ExpandNuclei(distance=10),
        filter_masks_size=True,
        nucleus_size=SizeFilter(min_size=60),
    )


def nuclear_workflow(name: str) -> Workflow:
    """Return a workflow by name, if a nuclear stain is enough for it.

    Raises
    ------
    InputError
        If it needs others as well; `MissingError` if there is none of that name.
    """
    workflow = as_workflow(name)
    for mask, method in workflow.methods().items():
        if method.channels is None and max(method.roles(mask) or (0,)) > 0:
            raise InputError(
                f"workflow {name!r} takes more than a nuclear stain ({method.name}, {mask}), and the demo gives it no "
                "other: expected one such as 'dapi' or 'nuclei-small'"
            )
    return workflow


def demo_tissue(size: int, seed: int = 1) -> Tissue:
    """Return the tissue of the demo, ``size`` x ``size`` px."""
    from spatialdata_segment.testing import Tissue

    if size < MIN_SIDE:
        raise InputError(f"size={size}: expected at least {MIN_SIDE} px")
    return Tissue((size, size), seed=seed, cell_diameter=32, density=0.85, blur=1.8, uneven_light=0.15)


def read_picture(path: Path) -> NDArray[Any]:
    """Read an image file as ``(c, y, x)``.

    Axes are guessed: two are ``(y, x)``; of three, the first or the last is the channels, whichever is shorter.
    Single axes are dropped, and so is the alpha channel of 8- and 16-bit colour pictures.

    Raises
    ------
    InputError
        If there is no such file, it holds no image, or its axes cannot be guessed.
    """
    from skimage.io import imread

    if not path.is_file():
        raise InputError(f"no file {path}: expected a TIFF or a PNG")
    try:
        pixels = np.squeeze(np.asarray(imread(path)))
    except Exception as error:  # every reader raises errors of its own
        raise InputError(f"{path} cannot be read as an image: {error}. Expected a TIFF or a PNG") from error
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and pixels.shape[-1] < pixels.shape[0]:
        pixels = np.moveaxis(pixels, -1, 0)
        pixels = pixels[: {2: 1, 4: 3}.get(len(pixels), len(pixels))] if path.suffix.lower() == ".png" else pixels
    if pixels.ndim != 3 or len(pixels) > MOST_CHANNELS or pixels.dtype.kind not in "buif":
        raise InputError(
            f"{path} has shape {pixels.shape} and dtype {pixels.dtype}: expected numbers with axes (y, x), (c, y, x) "
            f"or (y, x, c) and at most {MOST_CHANNELS} channels"
        )
    if min(pixels.shape[1:]) < MIN_SIDE:
        raise InputError(f"{path} has {pixels.shape[1:]} px: expected at least {MIN_SIDE} along each side")
    return np.ascontiguousarray(pixels.astype(np.uint8) if pixels.dtype == bool else pixels)


def _check_free(output: Path, overwrite: bool) -> None:
    """Raise where the folder may not be written."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: expected a folder, or a name that is free")
    if output.exists() and not overwrite:
        raise ExistsError(f"folder {output} exists: pass --overwrite, or another --output")


def _prepare(output: Path) -> None:
    """Make the folder, and remove an earlier demo from it."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / STORE, ignore_errors=True)
    (output / OVERLAY).unlink(missing_ok=True)


def _lazy(tissue: Tissue | None, picture: NDArray[Any] | None) -> SpatialData:
    """Return the image, of which no pixel is made yet."""
    import dask.array as da
    import spatialdata as sd
    from spatialdata.models import Image2DModel

    if tissue is not None:
        return tissue.to_spatialdata(chunks=_CHUNK)
    pixels = da.from_array(picture, chunks=(1, _CHUNK, _CHUNK))
    return sd.SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"))})


def _written(path: Path, sdata: SpatialData) -> SpatialData:
    """Write the image chunk by chunk, and return the object that reads from the disk."""
    import spatialdata as sd

    sdata.write(path)
    return sd.read_zarr(path)


def _scores(masks: dict[str, Any], tissue: Tissue) -> dict[str, Scores]:
    from spatialdata_segment.testing import match_scores

    truth = {"nucleus": tissue.nuclei, "cell": tissue.cells}
    return {mask: match_scores(truth[mask](_CHUNK), found, (0.5, 0.7)) for mask, found in masks.items()}


def _counts(candidates: pd.DataFrame) -> tuple[int, int]:
    """Return how many there are, and how many were kept."""
    return len(candidates), int(candidates["is_kept"].sum())


def _draw(output: Path, image: Any, masks: dict[str, Any]) -> None:
    """Draw a crop of the middle, two or more pixels a pixel."""
    from spatialdata_segment.pl import save_overlay

    top, left = (max(0, (n - _CROP) // 2) for n in image.shape[1:])
    crop = (slice(top, top + _CROP), slice(left, left + _CROP))
    save_overlay(output / OVERLAY, image, masks, crop=crop, linewidth=1.1)

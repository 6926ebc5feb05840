"""One image: read, segmented by `segment` in a store of its own, and written into its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment._images import read_image
from spatialdata_segment._images.tiff import ALPHA
from spatialdata_segment._infer.files import Found, write_files
from spatialdata_segment._infer.outputs import (
    FILES,
    NUCLEI,
    Output,
    check_free,
    seg_npy,
    written_before,
)
from spatialdata_segment._infer.settings import RESULT
from spatialdata_segment._preview import plan
from spatialdata_segment._segment import segment
from spatialdata_segment._stores import in_memory, make_store
from spatialdata_segment._table import read_metadata as read_uns
from spatialdata_segment._version import __version__
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.engine.stored import put_down
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._folders import POLYGONS, read_metadata
from spatialdata_segment.methods.cellpose.method import Cellpose

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xarray import DataArray

    from spatialdata_segment._images import ImageFacts
    from spatialdata_segment._infer.settings import Settings
    from spatialdata_segment._preview import RunPlan
    from spatialdata_segment.config import Workflow

KEY = "segmentation"
"""Prefix of the elements in the store."""


@dataclass(frozen=True)
class Job:
    """An image that is read, and all that decides what becomes of it.

    Attributes
    ----------
    image, facts
        As `read_image` returns them.
    workflow, channels
        What segments it, and the channels to name to `segment`.
    settings
        What was asked for.
    """

    image: DataArray
    facts: ImageFacts
    workflow: Workflow
    channels: list[str | int] | None
    settings: Settings

    @classmethod
    def of(cls, path: Path, settings: Settings) -> Job:
        """Open an image and choose its channels; nothing is written."""
        image, facts = read_image(
            path,
            image_type=settings.image_type,  # type: ignore[arg-type]
            page=settings.page,
            channel_last=settings.channel_last,
        )
        if facts.has_alpha and 3 in (settings.channels or ()):
            raise InputError(f"--channels {','.join(map(str, settings.channels or ()))}: {facts.path} {ALPHA}")
        workflow, channels = settings.model.workflow(settings.channels, facts.channels, path.name)
        return cls(image, facts, workflow, channels, settings)

    @property
    def options(self) -> dict[str, Any]:
        """Options of `segment`; the pixel size is that of the file where none is given."""
        return {"pixel_size": self.facts.pixel_size} | self.settings.options

    @property
    def names(self) -> set[str]:
        """Names of the files of its result, besides the metadata."""
        names = {POLYGONS} | ({NUCLEI} if self.workflow.methods().keys() >= {"nucleus", "cell"} else set())
        names |= {seg_npy(self.facts.path) if kind == "npy" else FILES[kind] for kind in self.settings.formats}
        return names

    def configuration(self) -> dict[str, Any]:
        """Return what reproduces the run on this image or another, JSON-like."""
        return {
            "workflow": self.workflow.model_dump(mode="json"),
            "channels": self.channels,
            "page": self.settings.page,
            "channel_last": self.settings.channel_last,
            "image_type": self.settings.image_type,
            **{name: _plain(self.settings.options.get(name)) for name in RESULT},
        }

    def request(self) -> dict[str, Any]:
        """Return what else decides the content of the folder."""
        stamp = self.facts.path.stat()
        return {
            "image-file": [self.facts.path.name, stamp.st_size, stamp.st_mtime_ns],
            "version": __version__,
            "z_index": self.settings.z_index,
            "formats": sorted(self.settings.formats),
            "keep-image": self.settings.keep_image,
        }


def infer(job: Job, folder: Path, *, overwrite: bool = False, resume: bool = True, progress: bool = True) -> int:
    """Segment an image and write its folder; return the number of cells.

    Raises
    ------
    ExistsError
        If the folder has a file of a result's names, and it may not be replaced.
    InputError
        If the folder is an image or a store, or the image itself would be replaced.
    SegmentationError
        As `segment`; work that can be resumed is left in the folder, and nothing else.
    """
    check_free(folder, job.names, job.facts.path, overwrite=overwrite)
    before = written_before(folder)
    wanted = {"request": job.request(), "configuration": job.configuration()}
    with Output(folder, wanted, resume=resume) as output:
        in_store = "sdata" in job.settings.formats and job.settings.keep_image
        image = job.image
        if not (in_store or job.facts.is_tiled):  # what is read row by row would be read for every shard again
            image = image.copy(data=put_down(image.data, output.work / "image", cores()))
        sdata = make_store(output.store, image, keep_image=in_store)
        if f"{KEY}_table" not in sdata.tables:
            segment(
                sdata, "image", job.workflow, channels=job.channels, key_added=KEY, progress=progress, **job.options
            )
        metadata = _metadata(job, read_uns(sdata.tables[f"{KEY}_table"]))
        found = Found.in_object(sdata, KEY)
        write_files(output.new, found, job.settings.formats, metadata)
        if "sdata" in job.settings.formats:
            output.store.rename(output.new / FILES["sdata"])
        names = sorted(path.name for path in output.new.iterdir())
        output.publish(metadata | {"n-cells": len(found.cells), "files": names}, before)
        return len(found.cells)


def planned(job: Job, folder: Path, *, overwrite: bool = False) -> RunPlan:
    """Return what `infer` would take, checked as it would; nothing is read but the file's head, or written."""
    check_free(folder, job.names, job.facts.path, overwrite=overwrite)
    return plan(in_memory(job.image), "image", job.workflow, channels=job.channels, key_added=KEY, **job.options)


def is_done(job: Job, folder: Path) -> bool:
    """Tell whether a folder has the result of the same image and settings."""
    found = read_metadata(folder)
    return found is not None and (found.get("request"), found.get("configuration")) == (
        job.request(),
        job.configuration(),
    )


def n_cells(folder: Path) -> int:
    """Return the number of cells in a folder that is complete."""
    return int((read_metadata(folder) or {})["n-cells"])


def _metadata(job: Job, uns: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into metadata.json, but for what is written besides."""
    facts, settings = job.facts, job.settings
    return {
        "image-shape": list(job.image.shape[1:]),
        "image-path": str(facts.path),
        "image-type": facts.image_type,
        "image-channels": list(facts.channels),
        "page": facts.page,
        "z_index": settings.z_index,
        "pixel-size": _plain(job.options["pixel_size"]),
        "model-type": settings.model.model_type,
        "note": settings.model.note,
        "channels": uns["channels"],
        **_sizes(job.workflow, uns["statistics"]),
        "statistics": uns["statistics"],
        "counts": uns["counts"],
        "device": uns.get("device"),
        "version": __version__,
        "versions": uns["versions"],
        "configuration": job.configuration(),
        "request": job.request(),
    }


def _sizes(workflow: Workflow, statistics: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Return by which factor the network resized the image, and the diameter (px) that it took cells to have."""
    mask, method = list(workflow.methods().items())[-1]
    if not isinstance(method, Cellpose):
        return {"scale": None, "diameter": None}
    diameter = method.diameter or statistics[mask].get("diameter")
    if diameter is None:
        assert method.rescale is not None
        return {"scale": method.rescale, "diameter": method.diam_mean / method.rescale}
    return {"scale": method.rescale or method.diam_mean / diameter, "diameter": diameter}


def _plain(value: Any) -> Any:
    """Return numbers as JSON brings them back."""
    return None if value is None else np.asarray(value).tolist()

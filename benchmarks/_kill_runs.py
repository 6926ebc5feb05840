"""The runs that `kill.py` and `kill_workers.py` disturb: methods that tell what they compute, and what lies on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import spatialdata as sd
import zarr

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    SeededWatershed,
    ThresholdNuclei,
    Workflow,
    decode,
    predict,
    register_method,
    resegment,
    segment,
)
from spatialdata_segment.errors import ExistsError, SegmentationError, SegmentationWarning
from spatialdata_segment.testing.dummies import DummyNetwork

if TYPE_CHECKING:
    from spatialdata_segment.methods.base import Decoded, View

DOT = ".spatialdata_segment"
MAPS = f"{DOT}/segmentation.maps"
LOG = "KILL_LOG"
"""Environment variable: the file that tells what is computed."""

Unit = tuple[str, tuple[int, ...]]
"""A shard or a block of maps: mask (of maps with ``.maps``), and first and last pixel of the core."""


def blobs(image: np.ndarray) -> np.ndarray:
    """Label what is bright: the callable of the runs."""
    from scipy.ndimage import gaussian_filter, label

    smooth = gaussian_filter(image[0].astype(np.float32), 1)
    return label(smooth > (30 if image.dtype == np.uint8 else 3000))[0]


def _say(what: str, view: View) -> None:
    """Note that a shard or block is computed; one write, so that lines of a process that dies stay whole."""
    core = view.window.core
    line = f"{os.getpid()} {what} {' '.join(map(str, core.start + core.stop))}\n"
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


class _Logged:
    mask: ClassVar[str] = "cell"

    def predict(self, image: np.ndarray, view: View) -> np.ndarray:
        _say(f"{self.mask}.maps", view)
        return super().predict(image, view)  # type: ignore[misc]

    def decode(self, maps: np.ndarray, view: View) -> Decoded:
        _say(self.mask, view)
        return super().decode(maps, view)  # type: ignore[misc]


class LoggedFunction(_Logged, Function):
    """A callable that says which shard it computes."""

    name: ClassVar[str] = "logged-function"


class LoggedThreshold(_Logged, ThresholdNuclei):
    """Nuclei that say which shard they are of."""

    name: ClassVar[str] = "logged-threshold"
    mask: ClassVar[str] = "nucleus"


class LoggedExpand(_Logged, ExpandNuclei):
    """Cells that say which shard they are of."""

    name: ClassVar[str] = "logged-expand"


class LoggedWatershed(_Logged, SeededWatershed):
    """Cells of a membrane stain that say which shard they are of."""

    name: ClassVar[str] = "logged-watershed"


class LoggedNetwork(_Logged, DummyNetwork):
    """A small network that says which block it predicts."""

    name: ClassVar[str] = "logged-network"


for method in (LoggedThreshold, LoggedWatershed, LoggedNetwork):  # maps are decoded with what is registered
    register_method(method)


REGION = (300, 200, 560, 480)
"""Where "again" segments a result again, px."""


def workflow(name: str) -> Any:
    """Return what the runs of that name do."""
    if name == "callable":
        return LoggedFunction(function=blobs, version="1", context_px=8)
    return {
        "expanded": Workflow(nucleus=LoggedThreshold(), cell=LoggedExpand(distance=4)),
        "other": Workflow(nucleus=LoggedThreshold(object_radius=5), cell=LoggedExpand(distance=6)),
        "pair": Workflow(nucleus=LoggedThreshold(), cell=LoggedWatershed(max_distance=12)),
        "network": Workflow(cell=LoggedNetwork(tile=64)),
    }[name]


def act(kind: str, store: Path, name: str, **options: Any) -> None:
    """Do one of the acts on a store: a run in one, one that keeps its maps, one of the two phases, a region again."""
    sdata, overwrite = sd.read_zarr(store), options.pop("overwrite", False)
    if kind == "predict":
        predict(sdata, "image", workflow(name), store / MAPS, progress=False, **options)
    elif kind == "decode":
        decode(store / MAPS, sdata=sdata, overwrite=overwrite, progress=False, **options)
    elif kind == "again":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", SegmentationWarning)
            resegment(sdata, "image", workflow(name), bounding_box=REGION, progress=False, **options)
        if any("nothing was segmented again" in str(w.message) for w in told):
            raise ExistsError("the region was segmented again")
    else:
        keep = {"keep_maps": True} if kind == "fused" else {}
        segment(sdata, "image", workflow(name), overwrite=overwrite, progress=False, **keep, **options)


def run(kind: str, store: Path, name: str, out: Path, options: dict[str, Any]) -> None:
    """Act, and tell in a folder how it went: what the processes do that are killed."""
    os.environ[LOG] = str(out / "computed")
    warnings.simplefilter("ignore")
    logging.basicConfig(filename=out / "log", level=logging.WARNING, force=True)
    (out / "started").touch()
    try:
        act(kind, store, name, **options)
    except ExistsError:  # killed after the result was complete: the next call has put it in its place
        (out / "existed").touch()
    except SegmentationError as error:
        (out / "failed").write_text(str(error))
        return
    (out / "finished").touch()


def make_store(path: Path, data: str, side: int = 1500) -> Path:
    """Write the image: a mosaic of real nuclei, or a synthetic tissue."""
    if data == "synthetic":
        from spatialdata_segment.testing import Tissue

        Tissue((side, side - 83), seed=3).to_spatialdata(chunks=256).write(path)
    else:
        from _mosaic import mosaic_spatialdata

        mosaic_spatialdata(Path(data), path, 2, 2, chunks=256)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a store, without what is ours beside the result."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and DOT not in path.relative_to(folder).parts
    }


def elements(files: dict[str, str]) -> dict[str, str]:
    """Return one text for each element of a store, the same only where all its files are."""
    parts: dict[str, list[str]] = {}
    for name, digest in files.items():
        head = name.split("/")
        if len(head) > 2:
            parts.setdefault("/".join(head[:2]), []).append(f"{name} {digest}")
    return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in parts.items()}


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Return the files that two trees do not share."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def computed(out: Path) -> list[tuple[int, Unit]]:
    """Return process and unit of all that was computed, in order."""
    if not (out / "computed").exists():
        return []
    rows = [line.split() for line in (out / "computed").read_text().splitlines()]
    return [(int(pid), (mask, tuple(map(int, at)))) for pid, mask, *at in rows]


def units(mask: str, chunks: list[list[int]]) -> list[Unit]:
    """Return the cores of a plan in their order; other windows are second looks of one of them."""
    ends = [np.cumsum([0, *sizes]).tolist() for sizes in chunks]
    spans = product(*([*pairwise(e)] for e in ends))
    return [(mask, (*(a for a, _ in span), *(b for _, b in span))) for span in spans]


def maps_of(store: Path) -> dict[str, str]:
    """Return the SHA-256 of the maps of each mask that are in a store."""
    if not (store / MAPS / "maps.json").exists():
        return {}
    arrays = {p.parent.name: zarr.open_array(p, mode="r") for p in (store / MAPS).glob("*/maps")}
    return {mask: hashlib.sha256(np.asarray(array[...]).tobytes()).hexdigest() for mask, array in arrays.items()}


def n_done(store: Path) -> int:
    """Return the number of blocks of maps that are written."""
    return sum(path.name.isdigit() for path in (store / MAPS).glob("*/done/c/*/*"))

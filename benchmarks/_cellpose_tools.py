"""What the parts of `cellpose.py` share: goals, the reference environments, images, models."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
from _mosaic import TILE, mosaic

from spatialdata_segment import Cellpose
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.preprocess import Preprocessing, measure
from spatialdata_segment.errors import MissingError
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.methods.cellpose.models import BUILT_IN, ensure_model
from spatialdata_segment.methods.cellpose.weights import describe
from spatialdata_segment.testing.tiling import whole_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from spatialdata_segment.core.statistics import Statistic
    from spatialdata_segment.methods.base import Method

SHARED = "shared model"


@dataclass
class Goals:
    """Goals, and which of them were missed."""

    missed: list[str] = field(default_factory=list)
    seen: int = 0

    def least(self, what: str, value: float, goal: float, aim: float | None = None, form: str = ".4f") -> str:
        """Return a figure with the least that it should be beside it."""
        more = "" if aim is None else f", aim {aim:g}"
        return self._check(what, f"{value:{form}}", value >= goal, f">= {goal:g}{more}")

    def most(self, what: str, value: float, goal: float, form: str = ".4f") -> str:
        """Return a figure with the most that it should be beside it."""
        return self._check(what, f"{value:{form}}", value <= goal, f"<= {goal:g}")

    def _check(self, what: str, shown: str, met: bool, goal: str) -> str:
        self.seen += 1
        if not met:
            self.missed.append(f"{what}: {shown}, goal {goal}")
        return f"{shown} ({goal}){'' if met else ' MISSED'}"

    def summary(self) -> str:
        """Return what is to be said at the end."""
        if not self.missed:
            return f"all {self.seen} goals are met"
        return "\n".join([f"{len(self.missed)} of {self.seen} goals are missed:", *(f"  {m}" for m in self.missed)])


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table: its first row is the heading, its first column what the row is."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        cells = (
            f"{cell:{'<' if k == 0 else '>'}{width}}" for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(f"  {'   '.join(cells)}".rstrip(), flush=True)


@dataclass(frozen=True)
class Reference:
    """A version of cellpose, in an interpreter that has it.

    Attributes
    ----------
    python, script
        What runs.
    folder
        Where arrays are exchanged.
    threads
        Of its torch.
    """

    python: str
    script: str
    folder: Path
    threads: int

    def put(self, **arrays: Any) -> Path:
        """Write what tasks read."""
        path = self.folder / "given.npz"
        np.savez(path, **arrays)
        return path

    def run(self, task: str, given: Path, **settings: Any) -> dict[str, Any]:
        """Run a task in a process of its own; return what it wrote."""
        target = self.folder / "found.npz"
        target.unlink(missing_ok=True)
        script = Path(__file__).with_name(self.script)
        text = json.dumps({"threads": self.threads, **settings})
        command = [self.python, "-P", str(script), task, str(given), str(target), text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        with np.load(target) as found:
            return dict(found)

    def __call__(self, task: str, arrays: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Write arrays and run a task on them."""
        return self.run(task, self.put(**arrays), **settings)


def reference(args: argparse.Namespace, version: int, folder: Path) -> Reference | None:
    """Return a version of cellpose; None, and say so, where no interpreter was given."""
    python = {3: args.cellpose3_python, 4: args.cellpose4_python}[version]
    if python is None:
        print(f"  no interpreter given (--cellpose{version}-python)")
        return None
    return Reference(python, f"_cellpose{version}.py", folder, args.threads)


# --- images ----------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """An image of ``dsb2018``."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    diameter: float


def manifest(data: Path) -> list[dict[str, str]]:
    """Return what is known of the images of ``dsb2018``, by id."""
    with (data / "dsb2018" / "manifest.csv").open() as file:
        return sorted(csv.DictReader(file), key=lambda row: row["id"])


def read_example(data: Path, row: dict[str, str]) -> Example:
    """Read an image, its labels, and the mean diameter of its nuclei."""
    from skimage.io import imread

    image, labels = (imread(data / "dsb2018" / kind / f"{row['id']}.png") for kind in ("images", "labels"))
    return Example(row["id"], image, labels.astype(np.int32), float(row["mean_diameter_px"]))


def cropped_mosaic(data: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first rows and columns of a mosaic that is just large enough, and its labels."""
    rows, cols = (-(-n // t) for n, t in zip(size, TILE, strict=True))
    image, labels = mosaic(data, rows, cols)
    corner = np.s_[: size[0], : size[1]]
    return np.ascontiguousarray(image[corner]), np.ascontiguousarray(labels[corner].astype(np.int32))


def median_diameter(labels: np.ndarray) -> float:
    """Return the median diameter of labels, px."""
    areas = np.bincount(labels.ravel())[1:]
    return float(2 * np.sqrt(np.median(areas[areas > 0]) / np.pi))


# --- models ----------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A model by the settings of `Cellpose`, and the diameter that its network expects, px."""

    name: str
    settings: dict[str, Any]
    weights: Path
    diam_mean: float

    def method(self, **settings: Any) -> Cellpose:
        """Return the method, for the first channel; a size model is left out where it has no effect."""
        known = {"diameter", "rescale"} & {name for name, value in settings.items() if value is not None}
        own = {name: value for name, value in self.settings.items() if not (known and name == "size_model_path")}
        return Cellpose(**{"channels": 0, **own, **settings})


def shared_model(data: Path) -> Model:
    """Return the model that lies beside the images."""
    path = data / "models" / "cpnet_nuclei_small"
    return Model(SHARED, {"model_path": path}, path, describe(path).diam_mean)


def given_model(args: argparse.Namespace) -> Model | None:
    """Return the model of ``--model``, a name or a file; None, and say so, where a built-in one is not there."""
    path = Path(args.model)
    if path.is_file():
        size = {} if args.size_model is None else {"size_model_path": args.size_model}
        return Model(path.name, {"model_path": path, **size}, path, describe(path).diam_mean)
    try:
        weights = ensure_model(args.model).weights
    except MissingError as error:
        print(f"  skipped: {error}")
        return None
    mean = BUILT_IN[args.model].diam_mean if args.model in BUILT_IN else describe(weights).diam_mean
    return Model(args.model, {"model": args.model}, weights, mean)


def all_models(args: argparse.Namespace) -> list[Model]:
    """Return the shared model, and that of ``--model`` where it is there."""
    more = given_model(args)
    return [shared_model(args.data), *([] if more is None else [more])]


def statistics(method: Method, image: np.ndarray) -> dict[Statistic, float]:
    """Return what a method asks for of an image ``(c, y, x)``, the diameter included."""
    info, plan = ImageInfo(image.shape[1:], image.dtype, n_channels=len(image)), whole_plan(image.shape[1:])
    source = da.from_array(image, chunks=image.shape)
    found = measure(source, Preprocessing(), method, info, plan, Executor(1), "benchmark")
    return dict(found.statistics)

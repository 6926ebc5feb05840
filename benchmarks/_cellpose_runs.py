"""Parts tiling, memory and stages of `cellpose.py`: whole runs, by the plan, the size of the image and the device."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from _cellpose_tools import all_models, cropped_mosaic, given_model, median_diameter, shared_model, show

from spatialdata_segment import Cellpose, segment
from spatialdata_segment.engine.events import listen
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.testing.tiling import whole_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from _cellpose_tools import Goals, Model

    from spatialdata_segment.engine.events import Event

SIZE = 4160, 5568
FLAT = 1.2
SHARD_SIZE = 1_000_000


# --- tiling ----------------------------------------------------------------------------------------------------------


def tiling(args: argparse.Namespace, goals: Goals) -> None:
    """Print a line a plan: whether its labels are those of one shard."""
    from tiling import random_plan, run

    image, labels = cropped_mosaic(args.data, args.size or SIZE)
    diameter, info = median_diameter(labels), ImageInfo(image.shape, image.dtype)
    for model in all_models(args):
        for resample in (True, False):
            rng = np.random.default_rng(3)
            method = model.method(diameter=diameter, resample=resample)
            name = f"{model.name}{'' if resample else ', not resampled'}"
            whole, seconds = run(image[None], method, whole_plan(info.shape), 1)
            size = " x ".join(map(str, image.shape))
            print(f"  {name}, {size} px, one shard: {len(whole.anchors):,} objects, {seconds:.1f} s", flush=True)
            wrong = 0
            for k in range(args.plans):
                plan = random_plan(rng, info.shape, method.context(info))
                found, seconds = run(image[None], method, plan, args.threads)
                wrong += not found.same_as(whole)
                differ = int((found.labels != whole.labels).sum())
                cores = " x ".join(str(max(sides)) for sides in plan.chunks)
                print(
                    f"    plan {k}, {len(plan)} shards, cores up to {cores}, halo {plan.halo}: "
                    f"{f'{differ} PIXELS DIFFER' if differ else 'equal'}; "
                    f"{found.mask.evidence['again']} ran again, {seconds:.1f} s",
                    flush=True,
                )
            print(
                f"  {name}, plans that differ: {goals.most(f'tiling, {name}, plans that differ', wrong, 0, form='d')}"
            )


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(args: argparse.Namespace, goals: Goals, folder: Path) -> None:
    """Print the peak of resident memory for synthetic tissues of growing size."""
    model = given_model(args) or shared_model(args.data)
    rows, peaks = [["", "peak, MB", "before, MB", "s", "objects"]], {}
    for side in args.sides:
        store = folder / f"tissue-{side}.zarr"
        make = str(Path(__file__).with_name("memory.py"))
        subprocess.run([sys.executable, make, "--make", str(store), str(side)], check=True)
        if not peaks:
            child(args, model, store)  # compiles
        found = child(args, model, store)
        peaks[side] = found["peak"]
        megabytes = f"{found['peak'] / 1e6:.0f}", f"{found['before'] / 1e6:.0f}"
        rows.append([f"{side} x {side}", *megabytes, f"{found['seconds']:.1f}", str(found["objects"])])
    print(f"  segment() with {model.name} on {args.device}, shards of {SHARD_SIZE} px, {args.threads} threads")
    show(rows)
    ratio = peaks[args.sides[-1]] / peaks[args.sides[0]]
    print(f"  ratio {goals.most('memory, largest / smallest', ratio, FLAT, form='.2f')}")


def child(args: argparse.Namespace, model: Model, store: Path) -> dict[str, Any]:
    """Segment a store in a fresh process; return what it took."""
    settings = {name: str(value) for name, value in model.settings.items()}
    how = {"threads": args.threads, "device": args.device, "precision": args.precision, "diameter": args.diameter}
    command = [sys.executable, __file__, json.dumps({"store": str(store), "settings": settings, **how})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    store: str, settings: dict[str, str], threads: int, device: str, precision: str | None, diameter: float | None
) -> dict[str, Any]:
    """Segment a store in this process."""
    import spatialdata as sd
    from memory import peak

    warnings.simplefilter("ignore")
    if diameter is not None:
        settings.pop("size_model_path", None)
    method = Cellpose(**{**settings, "channels": 0, "diameter": diameter, "precision": precision})
    sdata, before, start = sd.read_zarr(store), peak(), time.perf_counter()
    segment(
        sdata,
        "image",
        method,
        shard_size=SHARD_SIZE,
        n_jobs=threads,
        devices=device,
        shapes=False,
        table=False,
        overwrite=True,
        progress=False,
    )
    found = {"before": before, "peak": peak(), "seconds": time.perf_counter() - start}
    return {**found, "objects": int(sdata["segmentation_cell_labels"].data.max().compute())}


# --- stages ----------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of the stages of a run, and of functions, summed over the threads."""

    def __init__(self) -> None:
        self.busy: Counter[str] = Counter()
        self.stages: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Note when a stage is told of."""
        self.stages.setdefault(event.stage, []).append(time.perf_counter())

    @contextmanager
    def watching(self, **functions: type) -> Iterator[None]:
        """Measure methods of classes by their names while the block runs."""
        with ExitStack() as stack:
            for name, owner in functions.items():
                stack.enter_context(patch.object(owner, name, self._timed(name, getattr(owner, name))))
            stack.enter_context(listen(self))
            yield

    def _timed(self, name: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self.busy[name] += time.perf_counter() - start

        return timed


def stages(args: argparse.Namespace, folder: Path) -> None:
    """Print what every stage of a run does a second."""
    from spatialdata_segment.methods.cellpose.run import Network

    model = given_model(args) or shared_model(args.data)
    image, labels = cropped_mosaic(args.data, args.size or SIZE)
    diameter = args.diameter or median_diameter(labels)
    method = model.method(diameter=diameter, precision=args.precision, batch_size=args.batch_size)
    small, large = folder / "small.zarr", folder / "large.zarr"
    write(image[:1024, :1024], small)
    write(image, large)
    once(args, method, small)  # compiles, loads, tunes
    reading = read_all(large)
    clock = Clock()
    with clock.watching(forward=Network, maps=Network, predict=Cellpose, decode=Cellpose):
        seconds = once(args, method, large)
    print(
        f"  {model.name}, {image.shape[0]} x {image.shape[1]} px, resized by {model.diam_mean / diameter:.2f}, on "
        f"{args.device}, precision {args.precision or 'default'}, {args.threads} threads, shards of "
        f"{args.shard_size} px"
    )
    show(table(clock, seconds, reading, args.threads, image.size / 1e6))


def write(image: np.ndarray, store: Path) -> None:
    """Write an image of one channel."""
    import dask.array as da
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    lazy = da.from_array(image[None], chunks=(1, 1024, 1024))
    SpatialData(images={"image": Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=["DAPI"])}).write(store)


def once(args: argparse.Namespace, method: Cellpose, store: Path) -> float:
    """Segment a store; return the seconds."""
    import spatialdata as sd

    sdata, start = sd.read_zarr(store), time.perf_counter()
    segment(
        sdata,
        "image",
        method,
        shard_size=args.shard_size,
        n_jobs=args.threads,
        devices=args.device,
        shapes=False,
        table=False,
        progress=False,
    )
    return time.perf_counter() - start


def read_all(store: Path) -> float:
    """Return the seconds in which one thread reads every chunk of an image."""
    import spatialdata as sd

    data = sd.read_zarr(store)["image"].data
    start = time.perf_counter()
    for at in np.ndindex(data.numblocks):
        data.blocks[at].compute(scheduler="synchronous")
    return time.perf_counter() - start


def table(clock: Clock, seconds: float, reading: float, threads: int, size: float) -> list[list[str]]:
    """Return the rows: stages by the clock on the wall, and below the shards what their threads did."""
    rows = [["", "s", "summed over threads, s", "Mpx/s"]]

    def row(name: str, wall: float | None, busy: float | None = None) -> None:
        took = wall if wall is not None else busy or 0.0
        shown = ["" if n is None else f"{n:.2f}" for n in (wall, busy)]
        rows.append([name, *shown, f"{size / took:.1f}" if took > 0 else ""])

    row("reading the image alone, one thread", None, reading)
    for name, times in clock.stages.items():
        wall = times[-1] - times[0]
        row(name, wall)
        if name.endswith(" shards"):
            busy = clock.busy
            row("  normalise and resize", None, busy["predict"] - busy["maps"])
            row("  network", None, busy["forward"])
            row("  cut and blend tiles", None, busy["maps"] - busy["forward"])
            row("  decode", None, busy["decode"])
            row("  reading, committing, waiting", None, wall * threads - busy["predict"] - busy["decode"])
    row("before, between and after", seconds - sum(times[-1] - times[0] for times in clock.stages.values()))
    row("all", seconds)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

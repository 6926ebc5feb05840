"""What `segment` costs around a cheap callable, on a large mosaic of real nuclei, in a store on disk.

    python benchmarks/overhead.py --data PATH [--rows 16] [--cols 16] [--repeat 3]
        [--others --harpy-python PATH --sopa-python PATH] [--profile]

PATH holds ``dsb2018/``. 16 x 16 tiles are 8,320 x 11,136 px, 92.7 Mpx. The callable is
``label(binary_opening(gaussian(1) > 30, iterations=2))``. Three times are taken, on two threads, in turn:

a   the bare callable over the blocks of the same shards (without halo), on two threads, pixels in memory
    (and for the record on the whole image in one piece)
b   `SpatialData.write_element` of the same labels, shapes and tables, from memory into a fresh store
c   `segment(...)`, from the store into the store, labels, shapes and tables

Goal: c at most 1.5 (a + b).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import spatialdata as sd
from _mosaic import mosaic_spatialdata
from _others import blobs
from xarray import DataArray

from spatialdata_segment import Function, segment
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.events import Event, listen

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = 8  # the reach of the Gaussian, 4, and of the opening, 2 + 2
METHOD = Function(function=blobs, context_px=CONTEXT)


def timed(run: Callable[[], Any]) -> np.ndarray:
    """Return the seconds that a call takes: of the clock, and of the processor."""
    start = now()
    run()
    return now() - start


def now() -> np.ndarray:
    """Return the clock and the processor time of this process; the second does not mind what else runs."""
    return np.array([time.perf_counter(), time.process_time()])


def bare(image: np.ndarray, plan: Plan, threads: int) -> None:
    """Call the function on every core."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: blobs(image[(slice(None), *plan.core(i).slices)]), range(len(plan))))


def writing(elements: dict[str, Any], folder: Path) -> np.ndarray:
    """Return the seconds that spatialdata takes to write the elements, from memory."""
    shutil.rmtree(folder, ignore_errors=True)
    sdata = sd.SpatialData()
    sdata.write(folder)
    total = np.zeros(2)
    for name, element in elements.items():
        sdata[name] = element
        total += timed(lambda name=name: sdata.write_element(name))
    return total


def in_memory(sdata: sd.SpatialData) -> dict[str, Any]:
    """Return the elements of the result, their pixels as numpy arrays in dask chunks as they lie on disk."""
    found = {}
    for kind, name, element in sdata.gen_elements():
        if kind != "images":
            found[name] = element
            if kind == "labels":
                assert isinstance(element, DataArray)
                pixels = np.asarray(element.data)
                found[name] = element.copy(data=dask.array.from_array(pixels, chunks=element.data.chunksize))
    return found


class Stages:
    """Seconds from the first event of a stage to its last, and between stages."""

    def __init__(self) -> None:
        self.marks: list[tuple[np.ndarray, str]] = []

    def __call__(self, event: Event) -> None:
        """Note an event."""
        self.marks.append((now(), event.stage))

    def lines(self, start: np.ndarray, end: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Return what and how long, in order; the time between two stages stands by itself."""
        spans: dict[str, list[np.ndarray]] = {}
        for at, stage in self.marks:
            spans.setdefault(stage, [at, at])[1] = at
        found, last, before = [], start, "start"
        for stage, (first, final) in spans.items():
            found += [(f"  ({before} -> {stage})", first - last), (stage, final - first)]
            last, before = final, stage
        return [*found, (f"  ({before} -> end)", end - last)]


def ours(
    store: Path, shard_size: int, threads: int, profile: bool = False
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Return the seconds of `segment`, and of its stages."""
    sdata = sd.read_zarr(store)
    stages = Stages()
    sampler = Sampler() if profile else None
    with listen(stages):
        start = now()
        segment(sdata, "image", METHOD, shard_size=shard_size, n_jobs=threads, progress=False)
        end = now()
    if sampler is not None:
        sampler.report()
    return end - start, stages.lines(start, end)


class Sampler:
    """Where the threads are, every 5 ms: a line count of the innermost frame and of the innermost one of ours."""

    def __init__(self) -> None:
        import threading

        self.counts: dict[str, dict[str, int]] = {"any": {}, "ours": {}}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        me = self.thread.ident
        while not self.stop.wait(0.005):
            for ident, frame in sys._current_frames().items():
                if ident == me:
                    continue
                self._count("any", frame)
                while frame is not None and "spatialdata_segment" not in frame.f_code.co_filename:
                    frame = frame.f_back  # type: ignore[assignment]
                if frame is not None:
                    self._count("ours", frame)

    def _count(self, kind: str, frame: Any) -> None:
        where = f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        self.counts[kind][where] = self.counts[kind].get(where, 0) + 1

    def report(self) -> None:
        """Print the lines seen most."""
        self.stop.set()
        self.thread.join()
        for kind, counts in self.counts.items():
            print(f"\nthread seconds by line, innermost frame ({kind}):")
            for where, n in sorted(counts.items(), key=lambda item: -item[1])[:28]:
                print(f"{n * 0.005:8.2f} s  {where}")


def others(args: argparse.Namespace, base: Path, folder: Path, side: int) -> None:
    """Run harpy and sopa where they are."""
    for name, python in (("harpy", args.harpy_python), ("sopa", args.sopa_python)):
        if python is None:
            print(f"{name}: no interpreter given (--{name}-python)")
            continue
        store = folder / f"{name}.zarr"
        shutil.copytree(base, store)
        command = [python, str(Path(__file__).with_name("_others.py")), name, str(store), "--side", str(side)]
        done = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-1500:]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:8}{found['total']:8.2f} s (segment {found['segment']:.2f}, table {found['table']:.2f}), "
            f"{found['cells']} cells"
        )
        shutil.rmtree(store)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--cols", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=2048 * 2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--harpy-python")
    parser.add_argument("--sopa-python")
    parser.add_argument("--profile", action="store_true", help="sample the threads of one more run")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name, dask.config.set(num_workers=args.threads):
        folder = Path(name)
        base = folder / "base.zarr"
        image = np.asarray(mosaic_spatialdata(args.data, base, args.rows, args.cols)["image"].data)
        cores = Plan.fewest(image.shape[1:], args.shard_size, METHOD.halo(_info(image)))
        print(f"{image.shape[1]} x {image.shape[2]} px, {image[0].size / 1e6:.1f} Mpx, {len(cores)} shards")
        warm = folder / "warm.zarr"
        mosaic_spatialdata(args.data, warm, 1, 1)
        ours(warm, 100_000, args.threads)
        a, b, c = [], [], []
        for k in range(args.repeat):
            store = folder / f"run-{k}.zarr"
            shutil.copytree(base, store)
            seconds, stages = ours(store, args.shard_size, args.threads)
            c.append(seconds)
            result = sd.read_zarr(store)
            a.append(timed(lambda: bare(image, cores, args.threads)))
            elements = in_memory(result)
            b.append(writing(elements, folder / "elements.zarr"))
            row = [
                f"{what} {t[0]:.2f} s ({t[1]:.2f})"
                for what, t in zip(("bare", "writing", "segment"), (a[-1], b[-1], c[-1]), strict=True)
            ]
            print(f"  {', '.join(row)}: {c[-1][0] / (a[-1] + b[-1])[0]:.2f}", flush=True)
            n = result["segmentation_table"].n_obs
            shutil.rmtree(store)
        whole = timed(lambda: blobs(image))
        print(f"\n{n} cells; the last run of segment, seconds and processor seconds:")
        for what, (wall, cpu) in stages:
            print(f"{wall:8.2f} {cpu:8.2f}  {what}")
        (a_, a_cpu), (b_, b_cpu), (c_, c_cpu) = (np.median(t, axis=0) for t in (a, b, c))
        print(f"\na  bare callable, blocks on {args.threads} threads  {a_:8.2f} s   processor {a_cpu:8.2f} s")
        print(f"   (on the whole image at once          {whole[0]:8.2f} s   processor {whole[1]:8.2f} s)")
        print(f"b  spatialdata's writing                {b_:8.2f} s   processor {b_cpu:8.2f} s")
        print(f"c  segment                              {c_:8.2f} s   processor {c_cpu:8.2f} s")
        ratio, processor = np.median([z / (x + y) for x, y, z in zip(a, b, c, strict=True)], axis=0)
        print(f"c / (a + b), median: {ratio:.2f} (goal: at most 1.5); in processor time {processor:.2f}")
        if args.profile:
            shutil.copytree(base, folder / "profile.zarr")
            ours(folder / "profile.zarr", args.shard_size, args.threads, profile=True)
        if args.others:
            others(args, base, folder, max(cores.chunks[0]))


def _info(image: np.ndarray) -> Any:
    from spatialdata_segment.methods.base import ImageInfo

    return ImageInfo(image.shape[1:], image.dtype)


if __name__ == "__main__":
    main()

"""Peak memory of `segment` as the image grows, and what a candidate and a polygon take.

    python benchmarks/memory.py [--sizes 2048 16384] [--folder DIR] [--no-tables]

Synthetic tissues (a cell per 500 px²) are written to stores by another process; then each run has a process
of its own, whose peak resident memory is read when it is done: workflow "dapi", ``shard_size=1_000_000``,
two threads. Linux. Goals: the largest at most 1.2 x the smallest without shapes and table; a candidate at most
0.8 KB in tables; polygons at most 1 KB each and 45 B a vertex.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

SHARD_SIZE = 1_000_000


def make(store: Path, side: int) -> None:
    """Write a tissue."""
    import dask

    from spatialdata_segment.testing import Tissue

    with dask.config.set(scheduler="threads", num_workers=2):
        Tissue((side, side), seed=1, channels=("DAPI",)).to_spatialdata(chunks=1024).write(store)


def peak() -> int:
    """Return the largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(n.split()[1]) for n in status.read_text().splitlines() if n.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Watch:
    """The largest resident memory of each stage, sampled, with that of child processes."""

    def __init__(self) -> None:
        import psutil

        self.process = psutil.Process()
        self.stage, self.seen, self.since = "start", {}, {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def __call__(self, event: Any) -> None:
        """Note that a stage goes on; what follows its last event is named after it."""
        self.stage = event.stage if event.done < event.total else f"after {event.stage}"
        self.since.setdefault(self.stage, time.perf_counter())

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            family = [self.process, *self.process.children(recursive=True)]
            total = sum(p.memory_info().rss for p in family)
            self.seen[self.stage] = max(self.seen.get(self.stage, 0), total)


def measure(store: Path, shapes: bool, table: bool) -> dict[str, Any]:
    """Segment a store and return what it took."""
    import numpy as np
    import shapely
    import spatialdata as sd

    from spatialdata_segment import segment
    from spatialdata_segment.engine.events import listen

    warnings.simplefilter("ignore")
    sdata = sd.read_zarr(store)
    watch = Watch()
    before = peak()
    start = time.perf_counter()
    with listen(watch):
        segment(sdata, "image", "dapi", shard_size=SHARD_SIZE, n_jobs=2, shapes=shapes, table=table, progress=False)
    seconds = time.perf_counter() - start
    found = {"before": before, "peak": peak(), "seconds": seconds}
    watch.done.set()
    found["stages"] = watch.seen
    if table:
        found["candidates"] = sdata.tables["segmentation_candidates"].n_obs
    if shapes:
        geometry = sdata.shapes["segmentation_nucleus_boundaries"].geometry.to_numpy()
        found["polygons"] = len(geometry)
        found["vertices"] = int(np.sum(shapely.get_num_coordinates(geometry)))
    return found


def child(base: Path, shapes: bool, table: bool) -> dict[str, Any]:
    """Measure in a fresh process, on a copy of the store."""
    store = base.with_name("run.zarr")
    shutil.copytree(base, store, copy_function=_link)
    flags = [f"--{name}" for name, on in (("shapes", shapes), ("table", table)) if on]
    command = [sys.executable, __file__, "--measure", str(store), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(store)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _link(source: str, target: str) -> None:
    """Hard-link pixels; copy metadata, which is rewritten."""
    if Path(source).name in {"zarr.json", ".zattrs", ".zgroup", ".zmetadata"}:
        shutil.copy2(source, target)
    else:
        Path(target).hardlink_to(source)


def report(what: str, found: dict[str, Any]) -> None:
    """Print one run."""
    print(f"{what:34}{found['peak'] / 1e6:9.0f} MB {found['seconds']:9.1f} s", flush=True)
    for stage, size in found["stages"].items():
        print(f"      {stage:28}{size / 1e6:9.0f} MB")


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--no-tables", action="store_true", help="without the runs with tables and shapes")
    parser.add_argument("--make", nargs=2, metavar=("STORE", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(Path(args.make[0]), int(args.make[1]))
    elif args.measure:
        print(json.dumps(measure(args.measure, args.shapes, args.table)))
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            run(Path(folder), args.sizes, not args.no_tables)


def run(folder: Path, sizes: list[int], tables: bool) -> None:
    """Measure every size, then tables and shapes at the largest."""
    peaks = {}
    for side in sizes:
        base = folder / f"tissue-{side}.zarr"
        subprocess.run([sys.executable, __file__, "--make", str(base), str(side)], check=True)
        if not peaks:
            child(base, True, True)  # compiles
        found = child(base, False, False)
        peaks[side] = found["peak"]
        report(f"{side} x {side}, labels alone", found)
    print(f"ratio {peaks[sizes[-1]] / peaks[sizes[0]]:.2f}   (goal: at most 1.2)\n")
    if not tables:
        return
    with_table = child(base, False, True)
    report(f"{sizes[-1]}, with tables", with_table)
    n = with_table["candidates"]
    more = with_table["peak"] - peaks[sizes[-1]]
    print(f"{n} candidates: {more / n:.0f} B each   (goal: at most 800)\n")
    with_shapes = child(base, True, False)
    report(f"{sizes[-1]}, with shapes", with_shapes)
    n, vertices = with_shapes["polygons"], with_shapes["vertices"]
    more = with_shapes["peak"] - peaks[sizes[-1]]
    print(
        f"{n} polygons, {vertices} vertices: {more / n:.0f} B a polygon, "
        f"{(more - 45 * vertices) / n:.0f} B over 45 B a vertex   (goal: at most 1,024)"
    )


if __name__ == "__main__":
    main()

"""Large images: memory and pace as the image grows, the plan and graph of a huge one, and several workers.

    python benchmarks/scale.py [--parts memory,pace,plan,workers] [--folder DIR]
        [--memory-sides 2048 32768] [--pace-sides 4096 32768] [--plan-side 200000] [--workers-side 6144]

memory    peak of `segment` on lazy synthetic tissue, made while it is read, ``shard_size=1_000_000``, two threads,
          labels alone, into a store; each side in a process of its own. Goal: the largest at most 1.2 x the smallest
pace      wall time a pixel of the same workflow on tissue that lies in a store. Goal: the largest at most 1.15 x the
          smallest
plan      `plan` and the graph of the shards of an image of that side, nothing run: at most 60 s and 1 GB
workers   a run on a ``LocalCluster`` of one and of two processes of one thread. Goal: at most 0.6 x the time

Every figure that has a goal shows it; the exit status is 1 where one is missed. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from memory import SHARD_SIZE, Watch, make, peak

PARTS = "memory", "pace", "plan", "workers"
GOALS = {"memory": 1.2, "pace": 1.15, "plan, seconds": 60.0, "plan, GB": 1.0, "workers": 0.6}
HOW = {"shapes": False, "table": False, "progress": False, "shard_size": SHARD_SIZE, "overwrite": True}


def tissue(side: int) -> Any:
    """Return lazy tissue."""
    from spatialdata_segment.testing import Tissue

    return Tissue((side, side), seed=1, channels=("DAPI",)).to_spatialdata(chunks=1024)


def lazy(folder: Path, side: int) -> dict[str, Any]:
    """Segment tissue that is made while it is read; the result goes into a store."""
    import spatialdata as sd

    from spatialdata_segment import segment
    from spatialdata_segment.engine.events import listen

    sd.SpatialData().write(folder / "result.zarr")
    sdata = sd.read_zarr(folder / "result.zarr")
    sdata.images["image"] = tissue(side).images["image"]
    watch, before, start = Watch(), peak(), time.perf_counter()
    with listen(watch):
        segment(sdata, "image", "dapi", n_jobs=2, **HOW)
    watch.done.set()
    return {"before": before, "peak": peak(), "seconds": time.perf_counter() - start, "stages": watch.seen}


def stored(store: Path) -> dict[str, Any]:
    """Segment what lies in a store."""
    import spatialdata as sd

    from spatialdata_segment import segment

    sdata, start = sd.read_zarr(store), time.perf_counter()
    segment(sdata, "image", "dapi", n_jobs=2, **HOW)
    return {"seconds": time.perf_counter() - start, "peak": peak()}


def planned(side: int) -> dict[str, Any]:
    """Plan, and build the graphs of the shards, of an image whose pixels nobody can read."""
    import dask.array as da
    import spatialdata as sd
    from spatialdata.models import Image2DModel

    from spatialdata_segment import Workflow, plan
    from spatialdata_segment._request import resolve
    from spatialdata_segment.config import as_workflow
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.mask import _strips, overlapped, run_alone, shard_graph
    from spatialdata_segment.engine.shard import Job

    start = time.perf_counter()
    image = da.zeros((1, side, side), chunks=(1, 4096, 4096), dtype="uint16")
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(image, dims=("c", "y", "x"))})
    said = plan(sdata, "image", "dapi", n_jobs=2)
    flow: Workflow = as_workflow("dapi")
    executor = Executor(2)
    request = resolve(
        sdata, "image", flow, channels=None, scale="scale0", roi_key=None, bounding_box=None, key_added="s",
        measure_channels=None, to_coordinate_system="global", pixel_size=None, shard_size=None, overlap_px=None,
        executor=executor, devices="cpu", shapes=True, table=True,
    )  # fmt: skip
    name, method = next(iter(flow.methods().items()))
    job = Job(method, request.images[name], request.plans[name], {}, request.source(name))
    everything = range(len(job.plan))
    tasks, array = 0, overlapped(job)
    for strip in _strips(job, everything):
        graph, _ = shard_graph(array, job.plan, strip)
        tasks += len(graph)
    alone, _ = executor.graph(run_alone, everything, "shards")
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak": peak(),
        "shards": len(everything),
        "tasks": tasks,
        "alone": len(alone),
        "plan": str(said),
    }


def clustered(store: Path, workers: int) -> dict[str, Any]:
    """Segment on worker processes of one thread each."""
    import spatialdata as sd
    from distributed import Client, LocalCluster

    from spatialdata_segment import segment

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        sdata = sd.read_zarr(store)
        segment(sdata, "image", "wga", key_added="warm", bounding_box=(0, 0, 900, 900), **HOW)
        start = time.perf_counter()
        segment(sdata, "image", "wga", **HOW)
        return {"seconds": time.perf_counter() - start}


CHILDREN = {"lazy": lazy, "stored": stored, "planned": planned, "clustered": clustered}


def child(name: str, *arguments: Any) -> dict[str, Any]:
    """Call one of the functions above in a process of its own."""
    given = json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


missed: list[str] = []


def judged(name: str, value: float) -> str:
    """Return a figure with its goal."""
    met = value <= GOALS[name]
    if not met:
        missed.append(f"{name}: {value:.2f}, goal <= {GOALS[name]}")
    return f"{value:.2f} (<= {GOALS[name]}){'' if met else ' MISSED'}"


def memory_part(args: argparse.Namespace, folder: Path) -> None:
    """Print the peaks of lazy tissue."""
    peaks = []
    for side in args.memory_sides:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            if not peaks:
                child("lazy", Path(place), 512)  # compiles
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found = child("lazy", Path(place), side)
        peaks.append(found["peak"])
        print(
            f"  {side}²: {found['peak'] / 1e6:.0f} MB ({found['before'] / 1e6:.0f} before), {found['seconds']:.1f} s",
            flush=True,
        )
        for stage, size in found["stages"].items():
            print(f"      {stage:36}{size / 1e6:9.0f} MB", flush=True)
    print(f"  largest / smallest: {judged('memory', peaks[-1] / peaks[0])}")


def pace_part(args: argparse.Namespace, folder: Path) -> None:
    """Print the wall time a megapixel."""
    paces = []
    for side in args.pace_sides:
        store = folder / f"pace-{side}.zarr"
        subprocess.run([sys.executable, __file__, "--child", "made", json.dumps([str(store), side])], check=True)
        if not paces:
            child("stored", store)  # compiles
        found = child("stored", store)
        paces.append(found["seconds"] / side**2 * 1e6)
        print(
            f"  {side}²: {found['seconds']:.1f} s, {paces[-1]:.4f} s a megapixel, {found['peak'] / 1e6:.0f} MB",
            flush=True,
        )
    print(f"  largest / smallest: {judged('pace', paces[-1] / paces[0])}")


def plan_part(args: argparse.Namespace, _: Path) -> None:
    """Print what planning takes."""
    found = child("planned", args.plan_side)
    print("  " + found["plan"].replace("\n", "\n  "))
    print(f"  {found['shards']} shards: {found['tasks']} tasks of map_overlap, or {found['alone']} that read alone")
    print(f"  {judged('plan, seconds', found['seconds'])} s, {judged('plan, GB', found['peak'] / 1e9)} GB")


def workers_part(args: argparse.Namespace, folder: Path) -> None:
    """Print the time of two workers beside that of one."""
    from spatialdata_segment.testing import Tissue

    store = folder / "workers.zarr"
    Tissue((args.workers_side,) * 2, seed=1).to_spatialdata(chunks=1024).write(store)
    seconds = {n: min(child("clustered", store, n)["seconds"] for _ in range(2)) for n in (1, 2)}
    print(f"  one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {judged('workers', seconds[2] / seconds[1])}")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--memory-sides", type=int, nargs="+", default=[2048, 32768])
    parser.add_argument("--pace-sides", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--plan-side", type=int, default=200_000)
    parser.add_argument("--workers-side", type=int, default=6144)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.child:
        name, given = args.child[0], json.loads(args.child[1])
        given = [Path(a) if isinstance(a, str) else a for a in given]
        print(json.dumps(make(*given) if name == "made" else CHILDREN[name](*given)))
        return
    run = {"memory": memory_part, "pace": pace_part, "plan": plan_part, "workers": workers_part}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in args.parts.split(","):
            print(f"\n{part}", flush=True)
            run[part](args, Path(folder))
    print("\n" + ("\n".join(["missed:", *missed]) if missed else "all goals are met"))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

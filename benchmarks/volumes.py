"""A volume that nobody holds: `segment` on lazy synthetic tissue, its time, its peak memory, and how good it is.

    python benchmarks/volumes.py [--side 1024] [--parts labels,results,flows] [--shard-side 205] [--folder DIR]

labels    nuclei by `ThresholdNuclei`, labels alone, into a store, on two threads. Goal: at most 4 GB
results   the same with table and shapes: a row a nucleus, an outline for each nucleus and plane
flows     the flows of the true nuclei, as Cellpose makes them of masks, as the maps of a first phase, decoded as
          `Cellpose(do_3D=True)` does. Goal: at most 4 GB. To make them takes longer than to decode them: those of a
          cube of 256 are made, and the volume consists of copies of that, in which nuclei end at its faces

The tissue is made while it is read, chunk by chunk; no part of it is stored. How long making it once takes is told
apart: a run makes it about three times, for the statistics, for the shards with their halos and, with the table, for
the intensities. Each run, and the scores, have a process of their own; the peak is that of its resident memory.

The labels are scored against the nuclei of the tissue, all of them unless ``--scored`` says that a cube of that side in
the middle is enough: average precision at an IoU of 0.5 and of 0.9. Exit status 1 where a goal is missed. Linux.
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

from memory import Watch, peak

CHUNK = 128
CUBE = 256
"""Side of the volume whose flows are made."""
GOAL = 4e9
IOU = 0.5, 0.9


def tissue(side: int) -> Any:
    """Return lazy tissue of one stain; nuclei of about 14 px."""
    from spatialdata_segment.testing import Tissue

    return Tissue((side,) * 3, seed=1, channels=("DAPI",))


def made(side: int) -> dict[str, Any]:
    """Make some of the tissue, chunk by chunk, keep nothing of it, and tell what all of it takes of the processors."""
    import dask

    tissue(8).image(8).compute()  # compiles
    part = min(side, 2 * CHUNK)
    start = time.process_time()
    with dask.config.set(scheduler="threads", num_workers=2):
        tissue(side).image(CHUNK)[:, :part, :part, :part].max().compute()
    return {"cpu": (time.process_time() - start) * (side / part) ** 3}


def segmented(folder: Path, side: int, shard_side: int, everything: bool) -> dict[str, Any]:
    """Segment into a store."""
    import shapely
    import spatialdata as sd

    from spatialdata_segment import segment
    from spatialdata_segment.engine.events import listen

    sd.SpatialData().write(folder / "result.zarr")
    sdata = sd.read_zarr(folder / "result.zarr")
    sdata.images["image"] = tissue(side).to_spatialdata(CHUNK).images["image"]
    watch, before, start, used = Watch(), peak(), time.perf_counter(), time.process_time()
    how = {"shard_size": shard_side**3, "shapes": everything, "table": everything, "n_jobs": 2, "progress": False}
    with listen(watch):
        segment(sdata, "image", "dapi", **how)
    watch.done.set()
    seconds = time.perf_counter() - start
    found = {"before": before, "peak": peak(), "seconds": seconds, "cpu": time.process_time() - used}
    found["stages"] = watch.seen
    found["since"] = {stage: at - start for stage, at in watch.since.items()}
    if everything:
        geometry = sdata.shapes["segmentation_nucleus_boundaries"].geometry.to_numpy()
        found["outlines"] = len(geometry)
        found["vertices"] = int(shapely.get_num_coordinates(geometry).sum())
        found["rows"] = sdata.tables["segmentation_table"].n_obs
    return found


def _repeated(cube: Path, block_info: Any = None) -> Any:
    """Return a chunk of a volume that consists of copies of a cube."""
    import numpy as np

    maps, ends = np.load(cube, mmap_mode="r"), block_info[None]["array-location"][1:]
    at = [np.arange(a, b) % n for (a, b), n in zip(ends, maps.shape[1:], strict=True)]
    return maps[np.ix_(range(4), *at)].astype(np.float32)


def flows(folder: Path, side: int, shard_side: int) -> dict[str, Any]:
    """Make flows, and write them as the maps of a first phase."""
    import dask.array as da
    import numpy as np
    import spatialdata as sd
    from spatialdata.models import Image3DModel

    from spatialdata_segment import predict
    from spatialdata_segment.testing.dummies import DummyFlows
    from spatialdata_segment.testing.flows import volume_maps

    start, least = time.perf_counter(), min(side, CUBE)
    np.save(folder / "cube.npy", volume_maps(np.asarray(tissue(least).nuclei(-1))))
    made_in = time.perf_counter() - start
    chunks = da.core.normalize_chunks(CHUNK, (side,) * 3, dtype=np.float32)
    how = {"chunks": ((4,), *chunks), "dtype": np.float32, "meta": np.empty((0,) * 4, np.float32)}
    maps = da.map_blocks(_repeated, cube=folder / "cube.npy", **how)
    sdata = sd.SpatialData(images={"image": Image3DModel.parse(maps, dims=("c", "z", "y", "x"))})
    predict(sdata, "image", DummyFlows(), folder / "maps", shard_size=shard_side**3, n_jobs=2, progress=False)
    size = sum(file.stat().st_size for file in (folder / "maps").rglob("*") if file.is_file())
    return {"seconds": made_in, "bytes": size / side**3}


def decoded(folder: Path) -> dict[str, Any]:
    """Decode the maps into a store."""
    import spatialdata as sd

    from spatialdata_segment import decode
    from spatialdata_segment.engine.events import listen
    from spatialdata_segment.testing.dummies import DummyFlows

    sd.SpatialData().write(folder / "result.zarr")
    sdata = sd.read_zarr(folder / "result.zarr")
    watch, before, start, used = Watch(), peak(), time.perf_counter(), time.process_time()
    how = {"shapes": False, "table": False, "n_jobs": 2, "progress": False}
    with listen(watch):
        decode(folder / "maps", sdata=sdata, workflow=DummyFlows(), **how)
    watch.done.set()
    seconds = time.perf_counter() - start
    found = {"before": before, "peak": peak(), "seconds": seconds, "cpu": time.process_time() - used}
    return {**found, "stages": watch.seen, "since": {s: at - start for s, at in watch.since.items()}}


def scored(folder: Path, side: int, crop: int) -> dict[str, Any]:
    """Score what lies in the store; of copies of a cube, one in the middle."""
    import dask
    import spatialdata as sd

    from spatialdata_segment.testing import match_scores

    (labels,) = (element.data for element in sd.read_zarr(folder / "result.zarr").labels.values())
    if (folder / "cube.npy").exists():
        crop = min(side, CUBE)
        low = side // 2 // CUBE * CUBE if side % CUBE == 0 else 0
        truth = tissue(crop).nuclei(CHUNK)
    else:
        low = (side - crop) // 2 // CHUNK * CHUNK
        truth = tissue(side).nuclei(CHUNK)[(slice(low, low + crop),) * 3]
    start = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=2):
        scores = match_scores(truth, labels[(slice(low, low + crop),) * 3], IOU)
    found = {"seconds": time.perf_counter() - start, "peak": peak(), "ap": scores.ap}
    return {**found, "n_truth": scores.n_truth, "n_found": scores.n_found}


CHILDREN = {"made": made, "segmented": segmented, "flows": flows, "decoded": decoded, "scored": scored}


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


def part(args: argparse.Namespace, name: str) -> bool:
    """Run, print and score one part; return whether it met the goal."""
    everything = name == "results"
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        if name == "flows":
            told = child("flows", Path(place), args.side, args.shard_side)
            print(f"  flows of a cube: {told['seconds']:.1f} s; maps: {told['bytes']:.2f} bytes a voxel; decoding:")
            found = child("decoded", Path(place))
        else:
            found = child("segmented", Path(place), args.side, args.shard_side, everything)
        voxels = args.side**3
        print(
            f"  {found['seconds']:.1f} s, {voxels / found['seconds'] / 1e6:.2f} million voxels a second, "
            f"{found['cpu']:.0f} s of processors; {found['peak'] / 1e6:.0f} MB ({found['before'] / 1e6:.0f} before)",
            flush=True,
        )
        for stage, size in found["stages"].items():
            print(f"      {stage:36}{size / 1e6:9.0f} MB from {found['since'].get(stage, 0):8.1f} s")
        if everything:
            print(f"  {found['rows']} rows, {found['outlines']} outlines of {found['vertices']} vertices")
        else:
            told = child("scored", Path(place), args.side, min(args.scored or args.side, args.side))
            ap = ", ".join(f"{a:.4f} at {t}" for t, a in zip(IOU, told["ap"], strict=True))
            print(
                f"  {told['n_truth']} true, {told['n_found']} found; average precision {ap}; "
                f"scored in {told['seconds']:.1f} s, {told['peak'] / 1e6:.0f} MB",
                flush=True,
            )
    met = bool(found["peak"] <= GOAL)
    print(f"  peak {found['peak'] / 1e9:.2f} GB (<= {GOAL / 1e9:.0f}){'' if met else ' MISSED'}", flush=True)
    return met


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--parts", default="labels,results,flows")
    parser.add_argument("--shard-side", type=int, default=205, help="of the core of a shard, at most")
    parser.add_argument("--scored", type=int, help="side of the cube that is scored; the whole by default")
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.child:
        name, given = args.child[0], json.loads(args.child[1])
        print(json.dumps(CHILDREN[name](*[Path(a) if isinstance(a, str) else a for a in given])))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        child("segmented", Path(place), 64, 64, True)  # compiles
    print(
        f"{args.side}³: making the tissue once takes about {child('made', args.side)['cpu']:.0f} s of a processor",
        flush=True,
    )
    met = []
    for name in args.parts.split(","):
        print(f"\n{name}", flush=True)
        met.append(part(args, name))
    sys.exit(not all(met))


if __name__ == "__main__":
    main()

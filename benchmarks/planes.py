"""Planes stitched into 3D: ours against ``cellpose.utils.stitch3D``, in one run on one machine.

    python benchmarks/planes.py --reference PYTHON [--thresholds 0.25 0.5] [--repeat 5]
    python benchmarks/planes.py --large [--side 40000] [--folder DIR]

PYTHON runs an environment with cellpose. Two planes of 4096 x 4096 with 20,000 objects each are stitched by both, and
two smaller ones without background, in strips, where the rules differ most.
Each difference in grouping is explained by a model of the original's rule on the sparse pairs, which gives the
original's result in full. ``--large``: two planes that are made as they are read, counted, and written to a store
by `stitch_planes`; peak memory of each in a process of its own. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PITCH = 27
"""Pixels between the middles of objects, about."""
REFERENCE = """
import json, resource, sys, time, warnings
import numpy as np
from cellpose import utils
warnings.simplefilter("ignore")
import cellpose.utils
cellpose.utils.trange = range
planes, threshold, out = np.load(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
utils.stitch3D(planes[:, :64, :64].copy(), threshold)
wall, cpu = time.perf_counter(), time.process_time()
masks = utils.stitch3D(planes, threshold)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
np.save(out, masks)
print(json.dumps([wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@numba.njit(nogil=True, cache=True)
def _unit(y: int, x: int, key: int) -> float:
    """Return a number in [0, 1) that depends on the three alone."""
    h = np.uint64(y) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(x) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(key)
    for _ in range(2):
        h = (h ^ (h >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return float((h ^ (h >> np.uint64(29))) >> np.uint64(11)) / 2.0**53


@numba.njit(nogil=True, cache=True)
def draw(shape: tuple[int, int], y0: int, x0: int, z: int, columns: int) -> Any:
    """Draw a window of plane ``z``: discs, cut where they meet; id = place in a grid of ``columns``, plus 1.

    Against the plane before a disc is shifted and grown a little, and one in twelve is not there.
    """
    out = np.zeros(shape, np.uint32)
    best = np.full(shape, np.inf, np.float32)
    for gy in range(y0 // PITCH - 1, (y0 + shape[0]) // PITCH + 2):
        for gx in range(x0 // PITCH - 1, (x0 + shape[1]) // PITCH + 2):
            if gy < 0 or gx < 0 or gx >= columns or _unit(gy, gx, 10 + z) < 1 / 12:
                continue
            shift = 5.0 * z
            cy = (gy + 0.5 + 0.5 * (_unit(gy, gx, 1) - 0.5)) * PITCH + shift * (_unit(gy, gx, 20 + z) - 0.5) - y0
            cx = (gx + 0.5 + 0.5 * (_unit(gy, gx, 2) - 0.5)) * PITCH + shift * (_unit(gy, gx, 30 + z) - 0.5) - x0
            r = PITCH * (0.35 + 0.25 * _unit(gy, gx, 3) + 0.1 * z * (_unit(gy, gx, 40 + z) - 0.5))
            for y in range(max(0, int(cy - r)), min(shape[0], int(cy + r) + 2)):
                for x in range(max(0, int(cx - r)), min(shape[1], int(cx + r) + 2)):
                    d = np.float32(((y - cy) ** 2 + (x - cx) ** 2) / r**2)
                    if d < 1 and d < best[y, x]:
                        best[y, x] = d
                        out[y, x] = gy * columns + gx + 1
    return out


def two_planes(side: int, n: int) -> NDArray[np.uint32]:
    """Return two planes with ``n`` objects each, ids 1..n in raster order."""
    planes = np.stack([draw((side, side), 0, 0, z, -(-side // PITCH)) for z in range(2)])
    for plane in planes:
        ids, at = np.unique(plane, return_inverse=True)
        new = np.zeros(len(ids), np.uint32)
        kept = np.sort(np.random.default_rng(0).choice(np.arange(1, len(ids)), n, replace=False))
        new[kept] = np.arange(1, n + 1)
        plane[:] = new[at].reshape(plane.shape)
    return planes


def two_mosaics(side: int, n: int) -> NDArray[np.uint32]:
    """Return two planes without background, cut into strips: many equal IoUs, and objects with several partners."""
    rng, planes = np.random.default_rng(1), []
    for _ in range(2):
        cuts = np.sort(rng.choice(np.arange(8, side * side, 8), n - 1, replace=False))
        planes.append((np.searchsorted(cuts, np.arange(side * side), side="right") + 1).reshape(side, side))
    return np.stack(planes).astype(np.uint32)


def blocks(side: int, z: int, block: int = 2048) -> da.Array:
    """Return a plane that is made as it is read."""

    def one(block_info: Any = None) -> NDArray[np.uint32]:
        (y0, y1), (x0, x1) = block_info[None]["array-location"]
        return draw((y1 - y0, x1 - x0), y0, x0, z, -(-side // PITCH))

    sizes = tuple(min(block, side - k) for k in range(0, side, block))
    return da.map_blocks(one, chunks=(sizes, sizes), dtype=np.uint32, meta=np.zeros((0, 0), np.uint32))


def original(planes: NDArray[np.uint32], threshold: float) -> tuple[dict[int, int], Any]:
    """Return whom each object above continues by the original's rule, from sparse pairs, and the pairs."""
    from spatialdata_segment.core.measure import pair_counts
    from spatialdata_segment.core.planes import Overlaps

    found = Overlaps.of_pairs(pair_counts(*planes, background=True))
    iou = np.where(found.iou >= threshold, found.iou, 0)
    best = np.zeros(len(found.below))
    np.maximum.at(best, found.a, iou)
    stays = (iou > 0) & (iou >= best[found.a])
    order = np.lexsort((found.a, -iou))
    partner: dict[int, int] = {}
    for k in order[stays[order]].tolist():
        partner.setdefault(int(found.above[found.b[k]]), int(found.below[found.a[k]]))
    return partner, found


def partners_in(stitched: NDArray[Any], planes: NDArray[np.uint32]) -> dict[int, int]:
    """Return whom each object above continues in a result."""
    names = [dict(zip(*_first(plane, result), strict=True)) for plane, result in zip(planes, stitched, strict=True)]
    below = {new: old for old, new in names[0].items()}
    return {old: below[new] for old, new in names[1].items() if new in below}


def _first(plane: NDArray[np.uint32], result: NDArray[Any]) -> tuple[list[int], list[int]]:
    ids, at = np.unique(plane, return_index=True)
    return ids[ids > 0].tolist(), result.ravel()[at[ids > 0]].tolist()


def explain(planes: NDArray[np.uint32], theirs: dict[int, int], ours: dict[int, int], threshold: float) -> None:
    """Print how many objects above continue another object, and why."""
    model, found = original(planes, threshold)
    iou = {(a, b): i for a, b, i in zip(found.below[found.a], found.above[found.b], found.iou, strict=True)}
    print(f"  the model of its rule gives the reference's grouping: {model == theirs}")
    taken = set(ours.values())
    shared = Counter(theirs.values())
    reasons: Counter[str] = Counter()
    for b in sorted(set(theirs) | set(ours)):
        a, other = ours.get(b), theirs.get(b)
        if a == other:
            continue
        if other is not None and shared[other] > 1:
            reasons["equal IoU: both continue the one object there, here the lower id does"] += 1
        elif a is not None and max(i for (p, _), i in iou.items() if p == a) > iou[a, b]:
            reasons["its partner's best went to a third: nobody's there, its here, one to one from the highest on"] += 1
        elif other in taken:
            reasons["its partner there is taken here, by one that follows from the rule above"] += 1
        else:
            reasons["not explained"] += 1
    print(f"  {len(ours)} continue an object here, {len(theirs)} there; {sum(reasons.values())} differ")
    for reason, n in reasons.items():
        print(f"    {n:6d} {reason}")


def peak() -> int:
    """Return the largest resident memory of this process so far, bytes (Linux)."""
    return next(int(n.split()[1]) for n in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in n) * 1024


def compare(args: argparse.Namespace) -> None:
    """Stitch the planes by both."""
    from spatialdata_segment._stack import stitch_label_array

    def run(threshold: float) -> tuple[float, float, da.Array]:
        wall, cpu = time.perf_counter(), time.process_time()
        result = stitch_label_array(planes, threshold).labels.persist()  # all pixels, as blocks in memory
        return time.perf_counter() - wall, time.process_time() - cpu, result

    pictures = [("discs", two_planes(4096, args.objects)), ("strips", two_mosaics(1024, 4000))]
    for (what, planes), thresholds in zip(pictures, (args.thresholds, [0.05]), strict=True):
        run(0.5)  # compiles
        print(f"{what}: two planes of {planes.shape[1:]} px, {planes.max()} objects each; {args.threads} threads")
        for threshold in thresholds:
            runs = [run(threshold) for _ in range(args.repeat)]
            wall, cpu = min(r[0] for r in runs), min(r[1] for r in runs)
            print(f"threshold {threshold}: ours {wall:8.3f} s, {cpu:8.3f} s of CPU, the least of {args.repeat}")
            if args.reference is not None:
                theirs, seconds, used, most = reference(args, planes, threshold)
                print(f"  reference {seconds:8.3f} s, {used:8.3f} s of CPU, peak {most / 1e6:.0f} MB")
                goal = "   (goal: 400)" if what == "discs" else ""
                print(f"  ours is {seconds / wall:.0f} x faster, by CPU time {used / cpu:.0f} x{goal}")
                explain(planes, partners_in(theirs, planes), partners_in(runs[0][2].compute(), planes), threshold)


def reference(
    args: argparse.Namespace, planes: NDArray[np.uint32], threshold: float
) -> tuple[NDArray[Any], float, float, float]:
    """Return the original's result, its wall and CPU seconds, and the peak memory of its process."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, target = Path(folder, "planes.npy"), Path(folder, "masks.npy")
        np.save(source, planes)
        command = [args.reference, "-c", REFERENCE, str(source), str(threshold), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return np.load(target), *json.loads(done.stdout.splitlines()[-1])


def large(args: argparse.Namespace) -> None:
    """Stitch two large planes in processes of their own."""
    for step in ("import", "count", "write"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            command = [sys.executable, __file__, "--step", step, "--side", str(args.side or 40_000), "--folder", folder]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        print(done.stdout.splitlines()[-1], flush=True)


def measure(step: str, side: int, folder: Path) -> None:
    """Run one step and print what it took."""
    import spatialdata as sd
    from spatialdata.models import Labels2DModel

    from spatialdata_segment import stitch_planes
    from spatialdata_segment._stack import stitch_label_array

    draw((8, 8), 0, 0, 0, 1)
    n, start = 0, time.perf_counter()
    planes = [blocks(side, z) for z in range(2)]
    if step == "count":
        n = stitch_label_array(da.stack(planes), 0.5).n_objects
    if step == "write":
        labels = {f"z{z}": Labels2DModel.parse(p, dims=("y", "x")) for z, p in enumerate(planes)}
        sdata = sd.SpatialData(labels=labels)
        empty = sd.SpatialData()
        empty.write(folder / "planes.zarr")
        empty.labels.update(sdata.labels)
        stitch_planes(empty, ["z0", "z1"])
        n = int(empty["segmentation_cell_labels"][1].max().compute())
    print(
        f"{step:8} {side} x {side}: {time.perf_counter() - start:8.1f} s, peak {peak() / 1e6:8.0f} MB, {n} 3D objects"
    )


def main() -> None:
    """Run the comparison, or the large planes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", help="a python that has cellpose")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--side", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--step", choices=["import", "count", "write"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    with dask.config.set(scheduler="threads", num_workers=args.threads):
        if args.step:
            measure(args.step, args.side, args.folder)
        elif args.large:
            large(args)
        else:
            compare(args)


if __name__ == "__main__":
    main()

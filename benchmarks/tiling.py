"""Tiling invariance on a real image: a 4160 x 5568 mosaic of nuclei, by random shard plans.

For the workflow ``dapi``, for a callable, and for the dummy network: the labels of every plan are compared,
pixel by pixel, with those of one shard. Then ``segment`` writes the same store serially, with threads and on
a ``LocalCluster``, and the bytes are compared. The exit status is 1 where something differs.

    python benchmarks/tiling.py --data ../shared/data --plans 10
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
from _mosaic import TILE, mosaic
from distributed import Client, LocalCluster
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from spatialdata_segment import Function, ThresholdNuclei, segment
from spatialdata_segment.core.plan import Plan
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.methods.base import ImageInfo
from spatialdata_segment.testing.dummies import DummyNetwork
from spatialdata_segment.testing.tiling import Tiled, make_plan, tile, whole_plan

LEAST_SIDE = 300


def blobs(image):
    """Label what is brighter than 30: the callable of all benchmarks."""
    smooth = ndimage.gaussian_filter(image[0].astype(np.float32), 1)
    return ndimage.label(ndimage.binary_opening(smooth > 30, iterations=2))[0]


METHODS = {
    "dapi": ThresholdNuclei(),
    "callable": Function(function=blobs, version="1"),
    "dummy network": DummyNetwork(tile=64),
}


def random_plan(rng: np.random.Generator, shape: tuple[int, ...], least: tuple[int, ...]) -> Plan:
    """Draw cores of different sides and a halo from the minimum up; no border lies on a seam of the mosaic."""
    while True:
        core = [int(rng.integers(LEAST_SIDE, n // 2)) for n in shape]
        halo = [c + int(rng.choice([0, 1, 17, 48, 90])) for c in least]
        plan = make_plan(shape, core, halo, first=[int(rng.integers(50, c)) for c in core])
        borders = [np.cumsum(c)[:-1] for c in plan.chunks]
        if not any((b % t == 0).any() for b, t in zip(borders, TILE, strict=True)):
            return plan


def run(image: np.ndarray, method: ThresholdNuclei, plan: Plan, n_jobs: int) -> tuple[Tiled, float]:
    """Segment by a plan; return the result and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = tile(image, method, plan, Path(folder), executor=Executor(n_jobs))
        return found, time.perf_counter() - started


def compare_plans(image: np.ndarray, n_plans: int, n_jobs: int) -> int:
    """Print a line a plan; return the number of plans that differ."""
    rng, wrong = np.random.default_rng(2), 0
    info = ImageInfo(image.shape[1:], image.dtype)
    for name, method in METHODS.items():
        whole, seconds = run(image, method, whole_plan(info.shape), 1)
        print(f"{name}: one shard, {len(whole.anchors):,} objects, {seconds:.1f} s", flush=True)
        for k in range(n_plans):
            plan = random_plan(rng, info.shape, method.context(info))
            found, seconds = run(image, method, plan, n_jobs)
            differ = int((found.labels != whole.labels).sum())
            same = found.same_as(whole)
            wrong += not same
            evidence = found.mask.evidence
            print(
                f"{name}: plan {k}, {len(plan)} shards, cores up to {max(plan.chunks[0])} x {max(plan.chunks[1])}, "
                f"halo {plan.halo}: {'equal' if same else f'{differ} PIXELS DIFFER'}; {evidence['again']} ran again, "
                f"{evidence['twins'] + evidence['adopted']} conflicts, {seconds:.1f} s",
                flush=True,
            )
    return wrong


def compare_executors(image: np.ndarray, folder: Path) -> int:
    """Write stores by three executors; return the number of stores that differ."""
    wrong = 0
    for name, method in METHODS.items():
        workflow = "dapi" if name == "dapi" else method
        wanted: dict[str, str] = {}
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            for where in ("serial", "threads", "distributed"):
                path = folder / f"{name} {where}.zarr"
                lazy = da.from_array(image, chunks=(1, 1024, 1024))
                parsed = Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=["DAPI"])
                SpatialData(images={"image": parsed}).write(path)
                sdata, started = SpatialData.read(path), time.perf_counter()
                jobs = {"serial": 1, "threads": 4}.get(where)
                if where == "distributed":
                    with Client(cluster):
                        segment(sdata, "image", workflow, shard_size=1_300_000, progress=False)
                else:
                    segment(sdata, "image", workflow, shard_size=1_300_000, n_jobs=jobs, progress=False)
                found = checksums(path)
                wanted = wanted or found
                wrong += found != wanted
                verdict = "equal" if found == wanted else "DIFFERENT"
                seconds = time.perf_counter() - started
                print(f"{name}: {where}, {len(found)} files: {verdict} bytes, {seconds:.1f} s", flush=True)
    return wrong


def checksums(store: Path) -> dict[str, str]:
    """Checksums of every file of a store but those of the package's own dot-folder."""
    files = (p for p in sorted(store.rglob("*")) if p.is_file() and ".spatialdata_segment" not in p.parts)
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds dsb2018")
    parser.add_argument("--plans", type=int, default=10, help="random plans a method")
    parser.add_argument("--jobs", type=int, default=2, help="shards in flight")
    parser.add_argument("--rows", type=int, default=8, help="tiles of the mosaic along y")
    parser.add_argument("--cols", type=int, default=8, help="tiles of the mosaic along x")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    pixels, _ = mosaic(arguments.data, arguments.rows, arguments.cols)
    image = pixels[None]
    print(f"mosaic of {pixels.shape[0]} x {pixels.shape[1]} pixels", flush=True)
    wrong = compare_plans(image, arguments.plans, arguments.jobs)
    with tempfile.TemporaryDirectory() as folder:
        wrong += compare_executors(image, Path(folder))
    print("all equal" if not wrong else f"{wrong} DIFFER")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

"""A volume segmented plane by plane and stitched by `segment`: against cellpose 3's own, same weights, one machine.

    python benchmarks/stitching.py [--reference PYTHON] [--shape 24 512 512] [--threshold 0.25]

PYTHON runs an environment with cellpose 3. The volume is synthetic tissue, segmented by the network that the package
brings. Both results are scored against the truth, and ours against theirs; the same labels must come of shards cut
along all axes. The seconds are those of the work alone, for `segment` with what it writes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _cellpose_tools import Reference

from spatialdata_segment import Cellpose, segment
from spatialdata_segment._table import read_metadata
from spatialdata_segment.methods.cellpose.models import ensure_model
from spatialdata_segment.testing import Tissue, match_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = "nuclei-small"


def run(tissue: Tissue, method: Cellpose, threads: int, **options: Any) -> tuple[NDArray[Any], float, dict[str, int]]:
    """Return the labels, the seconds, and how many objects there were."""
    sdata = tissue.to_spatialdata()
    start = time.perf_counter()
    segment(sdata, "image", method, channels=0, n_jobs=threads, devices="cpu", progress=False, shapes=False, **options)
    seconds = time.perf_counter() - start
    counts = read_metadata(sdata["segmentation_table"])["counts"]["cell"]
    return np.asarray(sdata["segmentation_cell_labels"].data), seconds, counts


def show(what: str, truth: NDArray[Any], found: NDArray[Any], seconds: float | None = None) -> None:
    """Print the agreement of two segmentations."""
    scores = match_scores(truth, found, thresholds=(0.5, 0.75, 0.9))
    ap = " / ".join(f"{value:.4f}" for value in scores.ap)
    took = "" if seconds is None else f"   {seconds:.1f} s"
    print(f"{what:<34} AP at IoU 0.5 / 0.75 / 0.9: {ap}{took}", flush=True)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", help="a python that has cellpose 3")
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 512, 512])
    parser.add_argument("--cell-diameter", type=float, default=28.0)
    parser.add_argument("--anisotropy", type=float, default=2.0)
    parser.add_argument("--diameter", type=float, default=14.0, help="px, of a nucleus in its planes")
    parser.add_argument("--threshold", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    tissue = Tissue(tuple(args.shape), seed=3, cell_diameter=args.cell_diameter, anisotropy=args.anisotropy)
    truth = np.asarray(tissue.to_spatialdata(truth=True)["truth_nuclei"].data)
    method = Cellpose(MODEL, diameter=args.diameter, stitch_threshold=args.threshold)
    run(Tissue((2, 64, 64), seed=1), method, args.threads)
    ours, seconds, counts = run(tissue, method, args.threads)
    print(
        f"{counts['objects_of_planes']:,} objects of planes, {counts['candidates']:,} joined, {counts['kept']:,} kept"
    )
    show("ours, against the truth", truth, ours, seconds)
    cut, seconds, _ = run(tissue, method, args.threads, shard_size=ours.size // 7)
    print(f"in shards of a seventh: {seconds:.1f} s, {'the same' if np.array_equal(cut, ours) else 'OTHER'} labels")
    if args.reference is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(args.reference, "_cellpose3.py", Path(folder), args.threads)
        pixels = np.asarray(tissue.to_spatialdata()["image"].data)[0]
        weights = str(ensure_model(MODEL, size=False).weights)
        theirs = reference(
            "stitch", {"volume": pixels}, model=weights, diameter=args.diameter, threshold=args.threshold
        )
    show("cellpose 3, against the truth", truth, theirs["labels"], float(theirs["seconds"]))
    show("ours, against cellpose 3", theirs["labels"], ours)


if __name__ == "__main__":
    main()

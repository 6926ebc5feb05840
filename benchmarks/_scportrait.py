"""The classical segmentations of scPortrait, in an interpreter that has them. Prints what they took as JSON.

    python benchmarks/_scportrait.py IMAGE.npy LABELS.npy [--workflow dapi] [--shard-size 1000000] [--overlap 100]
        [--threads 2] [--unsharded]

IMAGE is (c, y, x): the nuclear channel, for ``wga`` then that of the membrane. LABELS becomes (mask, y, x) uint32:
the nuclei, for ``wga`` then the cells under the same ids. The values are those of scPortrait's documentation. A bare
`sdata_filehandler` over a temporary store stands in for a project, which would write the image first.

The last line of the output: ``seconds`` of `process` as a whole (labels and centres written, processes started),
``cpu`` of it, ``segment`` of the shards alone and ``resolve`` of stitching and writing by scPortrait's own clocks,
``peak`` of the summed resident memory of the process and its children (bytes, sampled), ``objects`` of the first mask.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import resource
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

NUCLEUS = {
    "lower_quantile_normalization": 0.01,
    "upper_quantile_normalization": 0.99,
    "median_block": 41,
    "median_step": 4,
    "threshold": 0.2,
    "min_distance": 8,
    "peak_footprint": 7,
    "speckle_kernel": 9,
    "dilation": 0,
    "min_size": 200,
    "contact_filter": 0.5,
}
COMMON = {
    "lower_quantile_normalization": 0.001,
    "upper_quantile_normalization": 0.999,
    "median_filter_size": 4,
    "chunk_size": 50,
}
CYTOSOL = {
    "threshold": 0.05,
    "lower_quantile_normalization": 0.01,
    "upper_quantile_normalization": 0.99,
    "erosion": 2,
    "dilation": 7,
    "min_clip": 0,
    "max_clip": 0.2,
    "min_size": 200,
    "max_size": 6000,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "dapi": {**COMMON, "nucleus_segmentation": {**NUCLEUS, "max_size": 5000}},
    "wga": {
        **COMMON,
        "nucleus_segmentation": {**NUCLEUS, "max_size": 1000},
        "cytosol_segmentation": CYTOSOL,
        "filter_masks_size": True,
    },
}


class Watch:
    """The largest resident memory of this process and its children, sampled."""

    def __init__(self) -> None:
        import psutil

        self.process, self.peak = psutil.Process(), 0
        self.done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        import psutil

        while not self.done.wait(0.02):
            total = 0
            for process in [self.process, *self.process.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            self.peak = max(self.peak, total)


def processor() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def step(folder: Path, workflow: str, config: dict[str, Any], sharded: bool) -> Any:
    """Return the segmentation and the handler of its store."""
    from scportrait.pipeline._utils.sdata_io import sdata_filehandler
    from scportrait.pipeline.segmentation import workflows

    handler = sdata_filehandler(
        directory=str(folder),
        sdata_path=str(folder / "store.sdata"),
        input_image_name="input_image",
        nuc_seg_name="nucleus",
        cyto_seg_name="cytosol",
        centers_name="centers",
        default_cell_id_name="scportrait_cell_id",
    )
    segmentation = getattr(workflows, f"{'Sharded' if sharded else ''}{workflow.upper()}Segmentation")
    return segmentation(
        {**config, "cache": str(folder)},
        directory=str(folder / "segmentation"),
        nuc_seg_name="nucleus",
        cyto_seg_name="cytosol",
        _tmp_image_path=None,
        project_location=str(folder),
        debug=False,
        overwrite=True,
        project=None,
        filehandler=handler,
        from_project=True,
    ), handler


def run(image: np.ndarray, workflow: str, shard: dict[str, int] | None) -> tuple[dict[str, Any], np.ndarray]:
    """Segment and return what it took, and the labels."""
    import dask.array as da
    from xarray import DataArray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        segmentation, handler = step(folder, workflow, CONFIGS[workflow] | (shard or {}), shard is not None)
        if shard is None:
            (folder / "segmentation").mkdir(exist_ok=True)
        lazy = DataArray(da.from_array(image, chunks=(1, 1024, 1024)), dims=("c", "y", "x"))
        watch, before, start = Watch(), processor(), time.perf_counter()
        segmentation.process(lazy)
        seconds, cpu = time.perf_counter() - start, processor() - before
        watch.done.set()
        with (folder / "segmentation" / "benchmarking.csv").open() as file:
            clocks = next(csv.DictReader(file))
        sdata = handler.get_sdata()
        names = [name for name in ("nucleus", "cytosol") if name in sdata.labels]
        labels = np.stack([np.asarray(_finest(sdata.labels[name])) for name in names]).astype(np.uint32)
    found = {
        "seconds": seconds,
        "cpu": cpu,
        "segment": float(clocks["Time taken for segmentation"]),
        "resolve": float(clocks["Time taken for shard resolving"]) if shard else 0.0,
        "peak": watch.peak,
        "objects": int((np.unique(labels[0]) > 0).sum()),
    }
    return found, labels


def _finest(element: Any) -> Any:
    return element["scale0"].image.data if "scale0" in element else element.data


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--workflow", choices=sorted(CONFIGS), default="dapi")
    parser.add_argument("--shard-size", type=int, default=1_000_000)
    parser.add_argument("--overlap", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--unsharded", action="store_true", help="the image in one piece: its quantiles are its own")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # that of the processes it starts
    logging.disable(logging.WARNING)
    shard = {"shard_size": args.shard_size, "overlap_px": args.overlap, "threads": args.threads}
    found, labels = run(np.load(args.image), args.workflow, None if args.unsharded else shard)
    np.save(args.labels, labels)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

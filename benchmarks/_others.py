"""The same callable through harpy or sopa, in an interpreter that has them. Prints the seconds as JSON.

    python benchmarks/_others.py {harpy,sopa} STORE [--side 2048] [--overlap 64] [--threads 2]

The callable of `overhead.py`; labels, polygons and a table of mean intensities end up in the store, as far as
the package writes them.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def blobs(image: np.ndarray) -> np.ndarray:
    """Label what is bright, (c, y, x) -> (y, x)."""
    from scipy.ndimage import binary_opening, gaussian_filter, label

    smooth = gaussian_filter(image[0].astype(np.float32), 1)
    return label(binary_opening(smooth > 30, iterations=2))[0]


def harpy(store: Path, side: int, overlap: int) -> dict[str, Any]:
    """Labels, shapes, and a table with the mean intensities."""
    import harpy as hp
    import spatialdata as sd

    def model(block: np.ndarray, **_: Any) -> np.ndarray:  # (z, y, x, c) -> (z, y, x, c)
        return blobs(block[0].transpose(2, 0, 1))[None, ..., None]

    sdata = sd.read_zarr(store)
    start = time.perf_counter()
    sdata = hp.im.segment(
        sdata,
        "image",
        model=model,
        output_labels_name="cells",
        output_shapes_name="boundaries",
        depth=overlap,
        chunks=side,
        overwrite=True,
    )
    middle = time.perf_counter()
    sdata = hp.tb.allocate_intensity(
        sdata, image_name="image", labels_name="cells", output_table_name="table", mode="mean", overwrite=True
    )
    end = time.perf_counter()
    return {
        "segment": middle - start,
        "table": end - middle,
        "total": end - start,
        "cells": len(sdata.shapes["boundaries"]),
    }


def sopa(store: Path, side: int, overlap: int) -> dict[str, Any]:
    """Shapes, and a table with the mean intensities; it writes no labels."""
    import sopa
    import spatialdata as sd

    sdata = sd.read_zarr(store)
    start = time.perf_counter()
    sopa.make_image_patches(sdata, patch_width=side, patch_overlap=2 * overlap)
    sopa.segmentation.custom_staining_based(
        sdata, blobs, channels=[str(c) for c in sd.models.get_channel_names(sdata["image"])][:1],
        image_key="image", clip_limit=0, gaussian_sigma=0, key_added="boundaries",
    )  # fmt: skip
    middle = time.perf_counter()
    sopa.aggregate(sdata, aggregate_genes=False, aggregate_channels=True, image_key="image", shapes_key="boundaries")
    end = time.perf_counter()
    return {
        "segment": middle - start,
        "table": end - middle,
        "total": end - start,
        "cells": len(sdata.shapes["boundaries"]),
    }


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", choices=["harpy", "sopa"])
    parser.add_argument("store", type=Path)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import dask

    with dask.config.set(scheduler="threads", num_workers=args.threads):
        run = {"harpy": harpy, "sopa": sopa}[args.package]
        print(json.dumps(run(args.store, args.side, args.overlap)))


if __name__ == "__main__":
    main()

"""What sopa or harpy makes of a result, in an interpreter that has it. Prints JSON.

    python benchmarks/_going_on.py {harpy,sopa} STORE

Means of the channels and counts of the transcripts of each cell, from our labels (harpy) or outlines (sopa).
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS, SHAPES = "segmentation_cell_labels", "segmentation_cell_boundaries"


def dense(x: Any) -> NDArray[Any]:
    """Return a matrix as an array."""
    return np.asarray(x.todense() if hasattr(x, "todense") else x)


def answer(ids: Any, genes: Any, counts: Any, channels: Any, means: Any) -> dict[str, Any]:
    """Return what is compared, as lists."""
    return {
        "ids": [int(i) for i in ids],
        "genes": [str(g) for g in genes],
        "counts": dense(counts).astype(int).tolist(),
        "channels": [str(c) for c in channels],
        "means": dense(means).astype(float).tolist(),
    }


def harpy(store: Path) -> dict[str, Any]:
    """Tables of our labels: transcripts, then intensities."""
    import harpy as hp
    import spatialdata as sd

    sdata = sd.read_zarr(store)
    sdata = hp.tb.allocate(
        sdata, labels_name=LABELS, points_name="transcripts", output_table_name="counts", name_gene_column="gene",
        to_coordinate_system="global", overwrite=True,
    )  # fmt: skip
    sdata = hp.tb.allocate_intensity(
        sdata, image_name="image", labels_name=LABELS, output_table_name="means", mode="mean", overwrite=True
    )
    counts, means = sdata["counts"], sdata["means"]
    ids = means.obs["cell_ID"].astype(int).to_numpy()
    order = counts.obs["cell_ID"].astype(int).to_numpy()
    found = np.zeros((len(ids), counts.n_vars))  # cells without a transcript have no row
    found[np.searchsorted(ids, order)] = dense(counts.X)
    return answer(ids, counts.var_names, found, means.var_names, means.X)


def sopa(store: Path) -> dict[str, Any]:
    """One table of our outlines."""
    import sopa
    import spatialdata as sd

    sdata = sd.read_zarr(store)
    ids = sdata[SHAPES].index.to_numpy()
    sopa.aggregate(
        sdata, image_key="image", points_key="transcripts", shapes_key=SHAPES, gene_column="gene", min_transcripts=0,
        key_added="sopa",
    )  # fmt: skip
    table = sdata["sopa"]
    return answer(
        ids, table.var_names, table.X, table.obsm["intensities"].columns, table.obsm["intensities"].to_numpy()
    )


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", choices=["harpy", "sopa"])
    parser.add_argument("store", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("\n" + json.dumps({"harpy": harpy, "sopa": sopa}[args.package](args.store)))


if __name__ == "__main__":
    main()

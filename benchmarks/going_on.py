"""Sopa and harpy go on from our result: their counts and means of every cell are those of our labels and table.

    python benchmarks/going_on.py [--sopa-python PATH] [--harpy-python PATH]

PATH: interpreters that have sopa (2.2) and harpy-analysis (0.4); neither can live beside the other, so CI has
neither. A small tissue with transcripts is segmented here into a store; each package opens a copy of it. The
command fails where a count differs, or a mean by more than a rounding of float32. Sopa's means are of all pixels that
an outline touches, also those beyond it, and harpy takes points as if the centre of the first pixel lay at 0: each is
compared with what its rule makes of our elements.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import spatialdata as sd
from shapely import MultiPolygon, Polygon
from skimage.draw import polygon
from spatialdata.models import PointsModel

from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, segment
from spatialdata_segment.testing import Tissue

GENES = ("Actb", "Gapdh", "Cd3e")
LABELS = "segmentation_cell_labels"


def result(path: Path) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Write a store with cells; return the counts, and the means, that each package must give."""
    sdata = Tissue((600, 700), seed=5, cell_diameter=24).to_spatialdata()
    shape = sdata["image"].shape[1:]
    rng = np.random.default_rng(1)
    at = rng.integers(0, shape, (30_000, 2)) + rng.uniform(0.1, 0.9, (30_000, 2))
    gene = pd.Categorical.from_codes(rng.integers(0, len(GENES), len(at)), list(GENES))
    points = pd.DataFrame({"x": at[:, 1], "y": at[:, 0], "gene": gene})
    sdata["transcripts"] = PointsModel.parse(dd.from_pandas(points, npartitions=1), feature_key="gene")
    sdata.write(path)
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    segment(sdata, "image", workflow, progress=False)
    labels = np.asarray(sdata[LABELS])
    table = sdata["segmentation_table"]
    ids = table.obs["cell_id"].to_numpy()
    labels = np.pad(labels, (0, 1))  # what is rounded up beyond the image lies in no cell
    places = {"sopa": np.floor(at), "harpy": np.round(at)}
    cells = {name: labels[tuple(p.astype(int).T)] for name, p in places.items()}
    counts = {name: pd.crosstab(c, points["gene"]).reindex(ids, fill_value=0) for name, c in cells.items()}
    ours = pd.DataFrame(table.X, index=ids, columns=table.var_names)
    image = np.asarray(sdata["image"], float)
    touched = [means_touched(image, outline) for outline in sdata["segmentation_cell_boundaries"].geometry]
    return counts, {"harpy": ours, "sopa": pd.DataFrame(touched, index=ids, columns=table.var_names)}


def means_touched(image: np.ndarray, outline: Polygon | MultiPolygon) -> np.ndarray:
    """Return the mean of each channel over the pixels whose indices lie in an outline or on it, as sopa takes them."""
    inside = np.zeros(image.shape[1:], bool)
    for part in getattr(outline, "geoms", [outline]):
        x, y = part.exterior.coords.xy
        inside[polygon(y, x, inside.shape)] = True
    return image[:, inside].mean(axis=1)


def check(found: dict[str, list], counts: pd.DataFrame, means: pd.DataFrame) -> str:
    """Compare; return what is to be said."""
    theirs = pd.DataFrame(found["counts"], index=found["ids"], columns=found["genes"])
    np.testing.assert_array_equal(theirs.index, counts.index)
    np.testing.assert_array_equal(theirs[list(GENES)], counts[list(GENES)])
    values = pd.DataFrame(found["means"], index=found["ids"], columns=found["channels"])
    np.testing.assert_array_equal(values.index, means.index)
    np.testing.assert_allclose(values[list(means.columns)], means, rtol=1e-5)
    return f"{len(theirs):,} cells, {int(theirs.to_numpy().sum()):,} transcripts, the same"


def main() -> None:
    """Segment here, go on there, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for package in ("sopa", "harpy"):
        parser.add_argument(f"--{package}-python", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "tissue.zarr"
        counts, means = result(store)
        again = sd.read_zarr(store)
        assert again["segmentation_table"].n_obs == len(means["harpy"])
        for package in ("sopa", "harpy"):
            python = getattr(args, f"{package}_python")
            if python is None:
                continue
            copy = Path(folder) / f"{package}.zarr"
            shutil.copytree(store, copy)
            script = Path(__file__).with_name("_going_on.py")
            done = subprocess.run([python, script, package, copy], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            print(
                f"{package}: {check(json.loads(done.stdout.strip().splitlines()[-1]), counts[package], means[package])}"
            )


if __name__ == "__main__":
    main()

"""Show a result in napari-spatialdata without a screen: every element opens, and the table colours the labels.

    python benchmarks/napari_view.py

Needs napari, napari-spatialdata and a Qt binding beside the package, some hundred MB, which CI does not install:

    pip install napari-spatialdata PyQt6

The command fails where an element does not arrive as a layer, where the layer's pixels or table are
others than the element's, or where the table's columns are not offered for the labels. The canvas itself is not
looked at: without a screen there is no OpenGL, which napari says on the way.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

NAMES = {
    "image": "Image",
    "segmentation_nucleus_labels": "Labels",
    "segmentation_cell_labels": "Labels",
    "segmentation_cell_boundaries": "Shapes",
}


def result(path: Path):
    """Write a small tissue with its cells, and read it again."""
    import spatialdata as sd

    from spatialdata_segment import ExpandNuclei, ThresholdNuclei, Workflow, segment
    from spatialdata_segment.testing import Tissue

    sdata = Tissue((240, 300), seed=5, cell_diameter=20).to_spatialdata(scale_factors=[2])
    sdata.write(path)
    workflow = Workflow(nucleus=ThresholdNuclei(), cell=ExpandNuclei(distance=4))
    segment(sdata, "image", workflow, progress=False)
    return sd.read_zarr(path)


def wait_for(viewer, name: str) -> None:
    """Let Qt work until a layer is there."""
    from qtpy.QtWidgets import QApplication

    until = time.monotonic() + 60
    while name not in viewer._viewer.layers and time.monotonic() < until:
        QApplication.processEvents()
        time.sleep(0.05)
    for _ in range(10):
        QApplication.processEvents()
        time.sleep(0.02)


def show(sdata) -> None:
    """Open every element by the plugin's own means, as a click in its list does."""
    from napari_spatialdata import Interactive

    viewer = Interactive(sdata, headless=True)
    for name in NAMES:  # each is read in a thread of its own, and the next is refused meanwhile
        viewer.add_element(name, element_coordinate_system="global")
        wait_for(viewer, name)
    layers = {layer.name: layer for layer in viewer._viewer.layers}
    found = {name: type(layer).__name__ for name, layer in layers.items()}
    assert found == NAMES, f"layers {found}, expected {NAMES}"
    for name in ("segmentation_nucleus_labels", "segmentation_cell_labels"):
        layer = layers[name]
        finest = layer.data[0] if layer.multiscale else layer.data
        assert np.array_equal(np.asarray(finest), np.asarray(sdata[name]["scale0"]["image"])), name
    cells, table = layers["segmentation_cell_labels"], sdata["segmentation_table"]
    assert cells.metadata["sdata"] is sdata
    adata = cells.metadata["adata"]
    assert adata is not None, "the table is not offered for the cells"
    assert adata.obs["cell_id"].tolist() == table.obs["cell_id"].tolist()
    assert set(adata.var_names) == set(table.var_names)
    n = len(layers["segmentation_cell_boundaries"].data)
    assert n == len(sdata["segmentation_cell_boundaries"]), f"{n} outlines"
    print({**found, "cells": table.n_obs})


def main() -> None:
    """Write, open, check."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        show(result(Path(folder) / "tissue.zarr"))


if __name__ == "__main__":
    main()

"""`write_seg_npy`, read by the loader of Cellpose's own GUI, without a window.

It needs cellpose, of version 3 or 4, in an environment of its own: see `test_cellpose4`.
"""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest
import tifffile

from spatialdata_segment.formats import write_seg_npy

gui = pytest.importorskip("cellpose.gui.io")


class Cells:
    """The number of cells, as the window of Cellpose 4 has it; of version 3 it is plain."""

    n = 0

    def set(self, n):
        self.n = int(n)

    def get(self):
        return self.n

    def __gt__(self, n):
        return self.n > n


def window(is_volume):
    """Return what stands in for the window: what `reset` sets, and nothing that draws."""
    parent = MagicMock(restore=None, load_3D=is_volume, saturation=[])
    del parent.stack_filtered
    parent.autobtn.isChecked.return_value = False
    parent.colormap = np.zeros((1_000_000, 3), np.uint8)

    def reset():
        parent.flows, parent.recompute_masks = [[], [], [], [], [[]]], True

    parent.reset.side_effect = reset
    parent.ncells = Cells()
    return parent


@pytest.mark.parametrize("is_volume", [False, True])
def test_the_loader_of_the_gui_takes_the_file(tmp_path, is_volume):
    labels = np.kron(np.arange(20).reshape(4, 5), np.ones((12, 15), np.uint32)) * 7
    labels = np.stack([labels, np.roll(labels, 4, axis=0), labels * 0]) if is_volume else labels
    tifffile.imwrite(tmp_path / "cell.tif", (labels % 251).astype(np.uint8), photometric="minisblack")
    write_seg_npy(tmp_path / "cell_seg.npy", labels)
    parent = window(is_volume)
    gui._load_seg(parent, str(tmp_path / "cell_seg.npy"), load_3D=is_volume)
    assert parent.loaded is True
    assert parent.filename == str(tmp_path / "cell.tif")
    assert np.array_equal(parent.cellpix.squeeze(), labels // 7)
    n_cells = parent.ncells.get() if isinstance(parent.ncells, Cells) else parent.ncells
    assert n_cells == 19 == len(parent.ismanual)
    assert parent.recompute_masks is False
    assert parent.flows == [[], [], [], [], [[]]]
    from cellpose.utils import masks_to_outlines

    planes = parent.cellpix if is_volume else parent.cellpix[:1]
    assert np.array_equal(parent.outpix > 0, np.stack([masks_to_outlines(p) for p in planes]))

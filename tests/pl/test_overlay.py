"""Outlines lie on the borders of pixels, and only the crop is read."""

from __future__ import annotations

import subprocess
import sys

import dask.array as da
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from skimage.io import imread

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError
from spatialdata_segment.pl import overlay, save_overlay
from spatialdata_segment.pl._draw import outlines
from spatialdata_segment.testing import Tissue, strategies

mpl.use("Agg")

TISSUE = Tissue((120, 140), seed=2)
BLOCK = TISSUE.block(Box.whole(TISSUE.shape))


@pytest.fixture(autouse=True)
def _closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def segments(labels):
    return {tuple(map(tuple, s.astype(int))) for s in outlines(np.array(labels))}


def test_outline_of_one_pixel():
    assert segments([[0, 0, 0], [0, 5, 0], [0, 0, 0]]) == {
        ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((1, 1), (2, 1)), ((1, 2), (2, 2)),
    }  # fmt: skip


def test_straight_borders_are_one_segment():
    assert segments([[1, 1, 2], [1, 1, 2]]) == {((2, 0), (2, 2))}
    assert segments(np.ones((4, 4), int)) == set()
    assert segments([[1]]) == set()


@settings(max_examples=40, deadline=None)
@given(labels=strategies.label_images(max_side=20))
def test_outlines_cover_every_border_once(labels):
    lines = outlines(labels)
    length = np.abs(lines[:, 1] - lines[:, 0]).sum()
    assert length == (labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum()
    for (x0, y0), (x1, y1) in lines.astype(int):
        if x0 == x1:
            assert (labels[y0:y1, x0 - 1] != labels[y0:y1, x0]).all()
        else:
            assert (labels[y0 - 1, x0:x1] != labels[y0, x0:x1]).all()


def test_masks_have_their_own_colours():
    ax = overlay(BLOCK.image, {"nucleus": BLOCK.nuclei, "cell": BLOCK.cells, "other": BLOCK.cells})
    colors = [tuple(c.get_color()[0]) for c in ax.collections]
    assert len(set(colors)) == 3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["nucleus", "cell", "other"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 140), (120, 0))


@pytest.mark.parametrize("crop", [Box((20, 30), (60, 90)), (slice(20, 60), slice(30, 90))])
def test_a_crop_shows_the_pixels_of_the_whole_and_reads_no_more(crop):
    read = []

    def note(block, block_info=None):
        read.append(block_info[0]["array-location"])
        return block

    image = da.from_array(BLOCK.image, chunks=(2, 10, 10)).map_blocks(note, meta=BLOCK.image[:, :0, :0])
    labels = xr.DataArray(da.from_array(BLOCK.cells, chunks=10), dims=("y", "x"))
    ax = overlay(xr.DataArray(image, dims=("c", "y", "x")), labels, crop=crop)
    assert ax.images[0].get_array().shape == (40, 60, 3)
    assert ax.images[0].get_extent() == [30, 90, 60, 20]
    assert len(read) == 2 * 4 * 6
    lines = np.array(ax.collections[0].get_segments())
    np.testing.assert_array_equal(lines, outlines(BLOCK.cells[20:60, 30:90]) + np.array([30, 20]))


def test_grey_flat_and_given_axes():
    import matplotlib.pyplot as plt

    ax = plt.subplots()[1]
    assert overlay(np.full((5, 5), 7), ax=ax) is ax
    assert ax.images[0].get_array().max() == 0
    picture = overlay(BLOCK.image, channels=[1]).images[0].get_array()
    assert (picture[..., 0] == picture[..., 2]).all()
    assert picture.max() == 1


def test_save_overlay(tmp_path):
    save_overlay(tmp_path / "a.png", BLOCK.image, {"cell": BLOCK.cells}, crop=(slice(0, 50), slice(0, 70)), zoom=4)
    picture = imread(tmp_path / "a.png")
    assert picture.shape[:2] == (200, 280)
    assert ((picture[..., 0] > 240) & (picture[..., 1] < 120)).sum() > 500


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="shape"):
        overlay(BLOCK.image, BLOCK.cells[:50])
    with pytest.raises(InputError, match="expected an array"):
        overlay(np.zeros((2, 3, 4, 5)))
    with pytest.raises(InputError, match="pass crop="):
        overlay(da.zeros((10, 10)), crop=(slice(4, 4), slice(0, 9)))
    with pytest.raises(InputError, match="Crop"):
        overlay(BLOCK.image, crop=(slice(5, 5), slice(0, 9)))
    with pytest.raises(InputError, match="Channels"):
        overlay(BLOCK.image, channels=[2])


def test_import_leaves_matplotlib_out():
    code = "import sys, spatialdata_segment.pl; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"

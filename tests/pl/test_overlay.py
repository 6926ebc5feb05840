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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.io import imread

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError
from spatialdata_segment.pl import maximum_projection, orthogonal_views, overlay, save_overlay
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
    with pytest.raises(InputError, match="has no pixel"):
        overlay(da.zeros((10, 10)), crop=(slice(4, 4), slice(0, 9)))
    with pytest.raises(InputError, match="Crop"):
        overlay(BLOCK.image, crop=(slice(5, 5), slice(0, 9)))
    with pytest.raises(InputError, match="Channels"):
        overlay(BLOCK.image, channels=[2])


def test_a_crop_outside_and_one_that_is_too_large_are_told_apart():
    with pytest.raises(InputError, match=r"has no pixel of the image \(120, 140\): expected one inside of it"):
        overlay(BLOCK.image, crop=(slice(500, 600), slice(0, 50)))
    large = da.zeros((2, 6001, 6001), chunks=1000)
    with pytest.raises(InputError, match=r"Crop .* 36,012,001 px to draw, .*; pass a smaller crop="):
        orthogonal_views(large, crop=(slice(0, 2), slice(0, 6001), slice(0, 6001)))
    with pytest.raises(InputError, match=r"^Image .* 36,012,001 px to draw, .*; pass crop="):
        orthogonal_views(large)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_without_a_value_are_left_out_of_the_contrast(bad):
    image = BLOCK.image[0].astype(np.float32)
    seen = overlay(image[:, 30:]).images[0].get_array()
    holed = image.copy()
    holed[:, :30] = bad
    picture = overlay(holed).images[0].get_array()
    np.testing.assert_array_equal(picture[:, 30:], seen)
    assert seen.std() > 0.1
    assert (picture[:, :30] == (0 if np.isnan(bad) else 1)).all()
    assert not overlay(np.full((8, 9), np.nan)).images[0].get_array().any()


def test_masks_of_any_name_are_in_the_legend():
    """Matplotlib would hide the first, and fail on the second as a formula."""
    masks = {"_a": BLOCK.cells, "b$_{c$": BLOCK.nuclei}
    for ax in (overlay(BLOCK.image, masks), overlay(BLOCK.image, masks, ax=Figure().add_subplot())):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == list(masks)
        FigureCanvasAgg(ax.figure).draw()
        colors = [mpl.colors.to_hex(line.get_color()) for line in ax.get_legend().get_lines()]
        assert colors == [mpl.colors.to_hex(c.get_color()[0]) for c in ax.collections]
    volume = np.stack([BLOCK.image[0]] * 3), {"_a": np.stack([BLOCK.cells] * 3), "b$_{c$": np.stack([BLOCK.nuclei] * 3)}
    told = [text.get_text() for text in maximum_projection(*volume).get_legend().get_texts()]
    assert [text.partition(":")[0] for text in told] == list(masks)
    (legend,) = orthogonal_views(*volume)[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(masks)
    legend.figure.canvas.draw()


@pytest.mark.parametrize("shape", [(40, 140), (120, 30), (120, 140)])
def test_a_new_figure_has_the_shape_of_the_picture(shape):
    """Outlines fill it, and the legend hides none of them."""
    at = tuple(slice(0, n) for n in shape)
    ax = overlay(BLOCK.image, {"nucleus": BLOCK.nuclei, "cell": BLOCK.cells}, crop=at)
    ax.figure.canvas.draw()
    picture, whole, legend = ax.get_window_extent(), ax.figure.bbox, ax.get_legend().get_window_extent()
    assert picture.height / picture.width == pytest.approx(shape[0] / shape[1], rel=0.02)
    inch = ax.figure.dpi
    assert whole.width - picture.width < 1.3 * inch
    assert whole.height - picture.height < 1.7 * inch
    assert legend.y0 >= picture.y1
    assert whole.contains(legend.x0, legend.y0)
    assert whole.contains(legend.x1, legend.y1)


def test_import_leaves_matplotlib_out():
    code = "import sys, spatialdata_segment.pl; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"

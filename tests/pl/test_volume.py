"""Planes, orthogonal views and projections: the right pixels, of the right scale, and nothing else is read."""

from __future__ import annotations

import dask.array as da
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.io import imread

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError
from spatialdata_segment.pl import _source, maximum_projection, orthogonal_views, overlay, save_overlay
from spatialdata_segment.pl._draw import columns, hidden, outlines, silhouettes
from spatialdata_segment.testing import Tissue

mpl.use("Agg")

TISSUE = Tissue((12, 60, 70), seed=2, anisotropy=2.0)
BLOCK = TISSUE.block(Box.whole(TISSUE.shape))
MASKS = {"nucleus": BLOCK.nuclei, "cell": BLOCK.cells}


@pytest.fixture(autouse=True)
def _closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def noted(array, chunks, read):
    """The array, lazy; where a block was computed goes into ``read``."""

    def note(block, block_info=None):
        read.append(tuple(a for a, _ in block_info[0]["array-location"]))
        return block

    return da.from_array(array, chunks=chunks).map_blocks(note, meta=array[(slice(0, 0),) * array.ndim])


def unit_edges(lines):
    """Segments cut into sides of pixels."""
    found = set()
    for (x0, y0), (x1, y1) in np.asarray(lines).astype(int).tolist():
        n = abs(x1 - x0) + abs(y1 - y0)
        dx, dy = (x1 - x0) // n, (y1 - y0) // n
        found |= {(x0 + k * dx, y0 + k * dy, dx, dy) for k in range(n)}
    return found


def segments(ax, k=0):
    return np.array(ax.collections[k].get_segments())


# --- one plane ----------------------------------------------------------------------------------------------


def test_a_plane_is_that_of_the_volume():
    flat = overlay(BLOCK.image[:, 5], {name: mask[5] for name, mask in MASKS.items()})
    deep = overlay(BLOCK.image, MASKS, z=5)
    np.testing.assert_array_equal(deep.images[0].get_array(), flat.images[0].get_array())
    for k in range(2):
        np.testing.assert_array_equal(segments(deep, k), segments(flat, k))
    alone = overlay(BLOCK.image[0], BLOCK.nuclei, z=5, crop=(slice(10, 30), slice(20, 60)))
    assert alone.images[0].get_extent() == [20, 60, 30, 10]


def test_a_plane_reads_the_chunks_in_which_it_lies():
    read, seen = [], []
    image = xr.DataArray(noted(BLOCK.image, (2, 4, 30, 35), read), dims=("c", "z", "y", "x"))
    overlay(image, noted(BLOCK.cells, (4, 30, 35), seen), z=5, crop=Box((0, 0), (20, 30)))
    assert read == [(0, 4, 0, 0)] * 2  # once a channel
    assert seen == [(4, 0, 0)]


def test_a_plane_is_saved(tmp_path):
    save_overlay(tmp_path / "a.png", BLOCK.image, BLOCK.cells, z=3, zoom=2)
    assert imread(tmp_path / "a.png").shape[:2] == (120, 140)


def test_the_scale_fits_the_picture(monkeypatch):
    """The finest that is no larger than the picture may be; a small crop is shown in full."""
    monkeypatch.setattr(_source, "_SIDE", 40)
    sdata = TISSUE.to_spatialdata((4, 30, 35), [2])
    labels = da.from_array(BLOCK.cells[::2, 1::2, 1::2], chunks=(3, 15, 15))
    masks = xr.DataTree.from_dict({
        f"scale{k}": xr.Dataset({"image": xr.DataArray(a, dims=("z", "y", "x"))})
        for k, a in enumerate((da.from_array(BLOCK.cells), labels))
    })  # fmt: skip
    ax = overlay(sdata["image"], masks, z=7)
    assert ax.images[0].get_array().shape == (30, 35, 3)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 70), (60, 0))
    np.testing.assert_array_equal(segments(ax), 2 * outlines(labels[3].compute()))
    ax = overlay(sdata["image"], masks, z=7, crop=(slice(11, 31), slice(20, 60)))
    assert ax.images[0].get_array().shape == (20, 40, 3)
    np.testing.assert_array_equal(segments(ax), outlines(BLOCK.cells[7, 11:31, 20:60]) + np.array([20, 11]))
    one = overlay(sdata["image"], BLOCK.cells, z=7)  # the only scale that both have
    assert one.images[0].get_array().shape == (60, 70, 3)


# --- three planes -------------------------------------------------------------------------------------------


def test_orthogonal_views():
    z, y, x = point = (4, 20, 33)
    axes = orthogonal_views(BLOCK.image, BLOCK.cells, point=point, pixel_size=(2, 1, 0.5), channels=[0])
    low, high = np.quantile(
        np.concatenate([p.ravel() for p in (BLOCK.image[0, z], BLOCK.image[0, :, :, x], BLOCK.image[0, :, y])]),
        (0.01, 0.998),
    )
    cuts = (np.s_[z], np.s_[:, :, x], np.s_[:, y])
    for ax, cut, turned in zip(axes, cuts, (False, True, False), strict=True):
        plane, labels = BLOCK.image[0][cut], BLOCK.cells[cut]
        plane, labels = (plane.T, labels.T) if turned else (plane, labels)
        expected = np.clip((plane - low) / (high - low), 0, 1)
        np.testing.assert_allclose(ax.images[0].get_array()[..., 1], expected, atol=1e-5)
        np.testing.assert_array_equal(segments(ax), outlines(labels))
    assert [ax.get_aspect() for ax in axes] == [2.0, 0.5, 4.0]  # height of a pixel over its width, in µm
    lines = [{tuple(np.ravel(line.get_xdata())) for line in ax.lines} for ax in axes]
    assert [(33.5, 33.5) in lines[0], (4.5, 4.5) in lines[1], (33.5, 33.5) in lines[2]] == [True] * 3


def test_orthogonal_views_lie_side_by_side():
    """A µm is as long in every view, and those that share an axis have it in one place."""
    axes = orthogonal_views(BLOCK.image, MASKS, pixel_size=(2, 1, 0.5))
    axes[0].figure.canvas.draw()
    xy, zy, xz = (ax.get_window_extent() for ax in axes)
    assert [xy.y0, xy.y1] == pytest.approx([zy.y0, zy.y1], abs=0.5)
    assert [xy.x0, xy.x1] == pytest.approx([xz.x0, xz.x1], abs=0.5)
    scale = xy.height / 60
    assert [xy.width, zy.width, xz.height] == pytest.approx([35 * scale, 24 * scale, 24 * scale], rel=0.01)
    given = np.array(mpl.figure.Figure().subplots(1, 3))
    assert orthogonal_views(BLOCK.image, MASKS, axes=given) == tuple(given)


def test_orthogonal_views_read_three_planes():
    seen = []
    labels = noted(BLOCK.cells, (4, 20, 35), seen)
    orthogonal_views(BLOCK.image, labels, point=(4, 20, 33), crop=np.s_[:8, 10:50, :])
    whole = {(a, b, c) for a in (0, 4) for b in (0, 20, 40) for c in (0, 35)}
    assert set(seen) == {p for p in whole if p[0] == 4 or p[1] == 20 or p[2] == 0}


# --- projections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("chunks", [None, (5, 31, 20)])
def test_projection(axis, chunks):
    cells = BLOCK.cells if chunks is None else da.from_array(BLOCK.cells, chunks=chunks)
    image = BLOCK.image if chunks is None else da.from_array(BLOCK.image, chunks=(1, *chunks))
    ax = maximum_projection(image, cells, axis=axis, channels=[0], pixel_size=(2, 1, 0.5))
    turn = {"z": lambda v: v.max(0), "y": lambda v: v.max(1), "x": lambda v: v.max(2).T}[axis]
    shown = turn(BLOCK.image[0])
    low, high = np.quantile(shown, (0.01, 0.998))
    np.testing.assert_allclose(ax.images[0].get_array()[..., 0], np.clip((shown - low) / (high - low), 0, 1), atol=1e-5)
    seen = {i: turn(BLOCK.cells == i) for i in np.unique(BLOCK.cells[BLOCK.cells > 0]).tolist()}
    assert unit_edges(segments(ax)) == set().union(*(unit_edges(outlines(s)) for s in seen.values()))
    depth = sum(s.astype(int) for s in seen.values())
    over = sum(bool((depth[s] > 1).any()) for s in seen.values())
    text = ax.get_legend().get_texts()[0].get_text()
    assert text == f"cell: {len(seen)} objects, {over} over or under another"


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.tuples(*[st.integers(1, 6)] * 3), n=st.integers(1, 4))
def test_silhouettes_are_the_outlines_of_each_object_alone(data, shape, n):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    labels = rng.integers(0, n + 1, shape).astype(np.uint32)
    triples = columns(labels)
    alone = {i: (labels == i).any(0) for i in np.unique(labels[labels > 0]).tolist()}
    assert {tuple(t) for t in triples.tolist()} == {
        (i, *at) for i, s in alone.items() for at in np.argwhere(s).tolist()
    }
    lines = silhouettes(triples, shape[1:])
    assert unit_edges(lines) == set().union(*(unit_edges(outlines(s)) for s in alone.values()))
    depth = sum((s.astype(int) for s in alone.values()), np.zeros(shape[1:], int))
    assert hidden(triples) == (len(alone), sum(bool((depth[s] > 1).any()) for s in alone.values()))


def test_a_projection_of_one_object_and_of_none():
    labels = np.zeros((3, 5, 6), np.uint8)
    ax = maximum_projection(labels.astype(float), labels)
    assert ax.get_legend().get_texts()[0].get_text() == "cell: 0 objects"
    labels[1, 1:3, 2:5] = 7
    ax = maximum_projection(labels.astype(float), labels)
    assert ax.get_legend().get_texts()[0].get_text() == "cell: 1 objects"
    assert len(segments(ax)) == 4


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: overlay(BLOCK.image, BLOCK.cells, z=12), "z=12: expected a plane from 0 to 11"),
        (lambda: overlay(BLOCK.image, BLOCK.cells), "pass z= for one plane"),
        (lambda: overlay(xr.DataArray(BLOCK.image[0], dims=("z", "y", "x"))), "pass z= for one plane"),
        (lambda: overlay(BLOCK.image, BLOCK.cells[:3], z=1), "expected the same grid"),
        (lambda: overlay(BLOCK.image[0, 0], z=1), r"expected an array \(z, y, x\) or \(c, z, y, x\)"),
        (lambda: orthogonal_views(BLOCK.image, point=(0, 0, 70)), r"point=\(0, 0, 70\): expected voxels \(z, y, x\)"),
        (lambda: orthogonal_views(BLOCK.image, crop=np.s_[3:5, :, :], point=(2, 0, 0)), "inside of what is shown"),
        (lambda: orthogonal_views(BLOCK.image, pixel_size=(1, 1)), "one per axis zyx"),
        (lambda: orthogonal_views(BLOCK.image, axes=[None]), "1 given, expected three"),
        (lambda: orthogonal_views(BLOCK.image, crop=Box((0, 0), (5, 5))), "a box of 3 axes"),
        (lambda: orthogonal_views(BLOCK.image, point=5), "point=5: expected voxels"),
        (lambda: orthogonal_views(BLOCK.image, point=(np.nan, 0, 0)), r"point=\(nan, 0, 0\): expected voxels"),
        (lambda: orthogonal_views(BLOCK.image, axes=5), "axes: 1 given"),
        (lambda: maximum_projection(BLOCK.image, axis="c"), "axis='c': expected 'z', 'y' or 'x'"),
        (lambda: maximum_projection(BLOCK.image, axis=["z"]), r"axis=\['z'\]: expected"),
        (lambda: maximum_projection(da.zeros((2, 10_000, 10_000))), "pass crop="),
        (lambda: maximum_projection(BLOCK.image, crop=(slice(3),)), r"expected slices \(z, y, x\), or \(y, x\)"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(draw, message):
    with pytest.raises(InputError, match=message):
        draw()

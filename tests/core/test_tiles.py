"""The layout of tiles against the formula of Cellpose, written again from its documentation, and its own numbers."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.tiles import Tiling

# (shape, side, mirrored, overlap) -> shape of a tile, first rows, first columns: make_tiles of cellpose 3.1.1.3
CELLPOSE3 = {
    ((100, 100), 224, False, 0.1): ((128, 128), [-14], [-14]),
    ((224, 224), 224, False, 0.1): ((224, 224), [-8, 8], [-8, 8]),
    ((500, 333), 224, False, 0.1): ((224, 224), [-14, 138, 290], [-9, 119]),
    ((60, 1000), 224, False, 0.3): ((80, 224), [-10], [-12, 102, 216, 330, 445, 559, 673, 788]),
    ((230, 700), 224, True, 0.1): ((224, 224), [-13, 3, 19], [-10, 72, 155, 238, 320, 403, 486]),
    ((50, 300), 224, True, 0.1): ((224, 224), [-15], [-10, 38, 86]),
    ((600, 513), 256, False, 0.1): ((256, 256), [-12, 172, 356], [-15, 129, 273]),
    ((33, 511), 128, False, 0.5): ((64, 128), [-15], [-8, 42, 92, 142, 192, 242, 292, 342, 392]),
}
# the same of cellpose 4.2, whose tiles are never smaller
CELLPOSE4 = {
    ((100, 100), 256, False, 0.1): ((256, 256), [-78], [-78]),
    ((224, 224), 256, False, 0.1): ((256, 256), [-16], [-16]),
    ((500, 333), 256, False, 0.1): ((256, 256), [-14, 122, 258], [-9, 87]),
    ((60, 1000), 256, False, 0.3): ((256, 256), [-98], [-12, 116, 244, 372, 500, 628, 756]),
    ((230, 700), 256, True, 0.1): ((256, 256), [-13], [-10, 82, 175, 268, 361, 454]),
    ((50, 300), 256, True, 0.1): ((256, 256), [-103], [-10, 22, 54]),
}

tilings = st.builds(
    Tiling, st.tuples(st.integers(1, 900), st.integers(1, 900)), st.sampled_from([64, 128, 224, 256]),
    st.sampled_from([0.05, 0.1, 0.25, 0.5]), st.booleans(), st.booleans(),
)  # fmt: skip


def documented(length, tile, overlap, mirrored, full):
    """Return the side and the first pixels: padded to a multiple of 16 and by 16, or to a tile; spread evenly."""
    lacking = max(0, tile - length - 16) if full and length < tile else -length % 16
    before, padded = 8 + lacking // 2, length + lacking + 16
    if mirrored:
        padded = max(padded, tile)
        n = max(2, ceil(2 * padded / tile))
    else:
        n = 1 if padded <= tile else ceil((1 + 2 * min(0.5, max(0.05, overlap))) * padded / tile)
    side = tile if mirrored else min(tile, padded)
    return side, [int(s) - before for s in np.linspace(0, padded - side, n)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("tile", "overlap", "full"), [(224, 0.1, False), (256, 0.1, True), (64, 0.5, False)])
def test_layout_of_every_length(tile, overlap, full, mirrored):
    for length in range(1, 601):
        rows, columns = Tiling((length, 100), tile, overlap, mirrored, full).axes
        side, starts = documented(length, tile, overlap, mirrored, full)
        assert rows.starts.tolist() == starts, length
        assert rows.side == len(rows.weights) == side, length
        assert (rows.length, columns.length) == (length, 100)


@pytest.mark.parametrize(
    ("given", "expected", "full"),
    [(*item, False) for item in CELLPOSE3.items()] + [(*item, True) for item in CELLPOSE4.items()],
)
def test_layout_of_cellpose(given, expected, full):
    shape, tile, mirrored, overlap = given
    axes = Tiling(shape, tile, overlap, mirrored, full).axes
    assert tuple(a.side for a in axes) == expected[0]
    for axis, starts in zip(axes, expected[1:], strict=True):
        assert sorted(set(axis.starts.tolist())) == starts


def test_weights_of_cellpose():
    """Rows of ``_taper_mask`` of cellpose 3.1.1.3."""
    rows, columns = Tiling((30, 600)).axes
    assert (rows.side, columns.side) == (48, 224)
    found = [rows.weights[0] * columns.weights[at] for at in (0, 10, 50)]
    np.testing.assert_allclose(found, [0.06913095, 0.21980466, 0.98304806], atol=1e-8)
    full = Tiling((9, 9), 256, full=True).axes[0].weights
    np.testing.assert_allclose(full[[0, 20, 128]] * full[128], [0.06913838, 0.51666019, 0.99999881], atol=1e-8)


@settings(deadline=None, max_examples=150)
@given(tilings)
def test_tiles_cover_the_image(tiling):
    """Every pixel lies in a tile and has a weight; the network's input suits it: multiples of 16 px."""
    for axis in tiling.axes:
        assert axis.side % 16 == 0
        assert (np.diff(axis.starts) >= 0).all()
        assert (np.diff(axis.starts) < axis.side).all()
        assert axis.starts[0] <= 0
        assert axis.starts[-1] + axis.side >= axis.length
        total = axis.total(0, axis.length)
        assert (total > 0).all()
        assert np.isfinite(total).all()
        assert ((axis.weights > 0) & (axis.weights < 1)).all()
        np.testing.assert_allclose(axis.weights, axis.weights[::-1], rtol=1e-12)
    if tiling.full:
        assert all(axis.side == tiling.tile for axis in tiling.axes)


@settings(deadline=None, max_examples=150)
@given(tilings, st.data())
def test_tiles_of_a_part(tiling, data):
    """Those that hold one of its pixels, all of them, and their weights, are those of the whole."""
    axis = tiling.axes[data.draw(st.integers(0, 1))]
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    expected = [k for k, s in enumerate(axis.starts) if s < stop and s + axis.side > start]
    assert list(axis.meeting(start, stop)) == expected
    assert np.array_equal(axis.total(start, stop), axis.total(0, axis.length)[start:stop])


def test_of_mirrored_tiles_four_see_every_pixel_of_the_inside():
    axis = Tiling((1000, 1000), mirrored=True).axes[0]
    seen = np.array([len(axis.meeting(at, at + 1)) for at in range(112, 888)])
    assert (seen >= 2).all()

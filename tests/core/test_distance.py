import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.distance import FAR, squared_distance, unknown
from spatialdata_segment.core.plan import Window

masks = st.builds(
    lambda shape, seed, share: np.random.default_rng(seed).random(shape) < share,
    st.tuples(st.sampled_from([1, 1, 2, 7]), st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 2**16), st.sampled_from([0.0, 0.3, 0.9, 0.99]),
)  # fmt: skip


@settings(deadline=None)
@given(masks)
def test_as_scipy(mask):
    found = squared_distance(mask)
    if mask.all():
        assert (found == FAR).all()
    else:
        assert np.array_equal(found, np.rint(ndimage.distance_transform_edt(mask) ** 2))


def test_no_background_at_all():
    assert squared_distance(np.ones((1, 4, 5), bool)).tolist() == [[[FAR] * 5] * 4]


def test_outside_is_no_background():
    mask = np.ones((1, 3, 9), bool)
    mask[0, :, 4] = False
    assert squared_distance(mask)[0, 1].tolist() == [16, 9, 4, 1, 0, 1, 4, 9, 16]


@settings(deadline=None)
@given(masks, st.data())
def test_known_distances_are_those_of_the_whole_image(mask, data):
    """What a window does not call unknown is exact; the margin at its open sides is not looked at."""
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in mask.shape]
    box, image = Box(*(tuple(e[k] for e in ends) for k in (0, 1))), Box.whole(mask.shape)
    margin = data.draw(st.tuples(*[st.integers(0, 2)] * 3))
    window = Window(box, box, image)
    inner = window.shrink(margin)
    if inner.size == 0:
        return
    squared = squared_distance(np.ascontiguousarray(mask[inner.slices]))
    hidden = unknown(squared, window, margin)
    whole = squared_distance(mask)[inner.slices]
    assert (whole[~hidden] == squared[~hidden]).all()
    assert (whole <= squared).all()
    assert not hidden[squared == 0].any()


@pytest.mark.parametrize("open_side", [True, False])
def test_foreground_at_an_open_side_is_never_known(open_side):
    """A line one pixel wide: its distances are all 1, but it goes on where nobody sees it."""
    squared = np.ones((1, 1, 6), np.int64)
    box = Box((0, 0), (1, 6))
    window = Window(box, box, Box((0, 0), (1, 9 if open_side else 6)))
    assert unknown(squared, window, (0, 0))[0, 0].tolist() == [False] * 5 + [open_side]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.shards import ShardObjects, dense
from spatialdata_segment.testing.strategies import label_images


@settings(deadline=None)
@given(st.one_of(label_images(max_side=24), label_images(3, max_side=18)), st.data())
def test_objects_as_measured_one_by_one(scattered, data):
    labels, _ = dense(scattered)
    offset = tuple(data.draw(st.integers(0, 9)) for _ in labels.shape)
    box = Box(offset, tuple(o + n for o, n in zip(offset, labels.shape, strict=True)))
    sides = zip(box.start, box.stop, strict=True)
    ends = [sorted(data.draw(st.lists(st.integers(a, b), min_size=2, max_size=2, unique=True))) for a, b in sides]
    core = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    found = ShardObjects.of(labels, None, Window(box, core, Box.whole(tuple(b + 5 for b in box.stop))))
    assert len(found) == labels.max()
    for i in range(len(found)):
        at = np.argwhere(labels == i + 1) + offset
        assert found.area[i] == len(at)
        assert found.bbox[i].tolist() == [*at.min(0), *(at.max(0) + 1)]
        assert found.touches[i] == core.holds(at).any()
        distance = ((len(at) * at - at.sum(0)) ** 2).sum(1)
        assert found.anchor[i].tolist() == at[distance.argmin()].tolist()
        assert found.owned[i] == core.holds(found.anchor[i : i + 1])[0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_dense_numbers_in_ascending_order(dtype):
    labels = np.array([[0, 7, 7], [100, 3, 0]], dtype)
    numbered, values = dense(labels)
    assert numbered.dtype == np.int32
    assert numbered.tolist() == [[0, 2, 2], [3, 1, 0]]
    assert values.tolist() == [3, 7, 100]


def test_dense_takes_any_id_without_an_array_of_that_size():
    labels = np.array([[0, 2**62, -1], [5, 2**62, -7]])
    numbered, values = dense(labels)
    assert numbered.tolist() == [[0, 2, -1], [1, 2, -1]]
    assert values.tolist() == [5, 2**62]
    assert dense(np.array([[0, -3, 4]]))[0].tolist() == [[0, -1, 1]]

"""What is proposed, stays and has no pixel of its own is told; what is joined of planes is no such thing."""

import numpy as np
import pytest

from spatialdata_segment import segment
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.engine.entries import write_entry
from spatialdata_segment.engine.proposals import with_unseen
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyDiscs


def objects_at(ids, anchors):
    none = np.zeros(len(ids), np.int64)
    at = np.array(anchors, np.int64).reshape(-1, 2)
    return Objects(np.array(ids, np.int64), at, none, at.astype(float), np.column_stack([at, at]))


def test_those_without_a_pixel_come_last(tmp_path):
    anchors = np.array([[0, 3], [1, 1], [2, 0], [2, 5], [7, 7]])
    write_entry(tmp_path / "proposals.entry", {"anchors": anchors})
    seen = np.array([[1, 1], [2, 0], [7, 7]])  # the first and the last of these have pixels
    found = with_unseen(objects_at([2], [[2, 0]]), 3, seen, tmp_path / "proposals.entry", (8, 8))
    assert found.ids.tolist() == [2, 4, 5]
    assert found.anchor.tolist() == [[2, 0], [0, 3], [2, 5]]
    assert not found.area.any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("threshold", [0, 0.2])
def test_joined_planes_are_not_covered(threshold):
    sdata = Tissue((4, 50, 60), seed=1, cell_diameter=14, channels=("DAPI",)).to_spatialdata()
    segment(sdata, "image", DummyDiscs(threshold=4000, stitch_threshold=threshold), progress=False, shapes=False)
    candidates = sdata["segmentation_candidates"].obs
    assert len(candidates) == len(sdata["segmentation_table"]) > 3
    assert candidates["is_kept"].all()

"""Flows of labels in a volume against a slow reference in numpy; box by box as in the whole."""

import numpy as np
import pytest

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.flows import tissue_maps, volume_flows, volume_maps


def slow_flows(labels, anisotropy):
    """Return the flows, and where they have a direction that is more than rounding."""
    flows, sure = np.zeros((3, *labels.shape)), np.zeros(labels.shape, bool)
    along = anisotropy**-2.0
    for label in np.unique(labels[labels != 0]):
        at = np.argwhere(labels == label)
        low, high = at.min(axis=0) - 1, at.max(axis=0) + 2
        inside = np.zeros(high - low, bool)
        inside[tuple((at - low).T)] = True
        centre = tuple(at[((at - at.mean(axis=0)) ** 2).sum(axis=1).argmin()] - low)
        heat = np.zeros(inside.shape)
        for _ in range(6 * sum(inside.shape)):
            heat[centre] += 1
            wide = np.pad(heat, 1)
            heat = (
                heat
                + along * (wide[:-2, 1:-1, 1:-1] + wide[2:, 1:-1, 1:-1])
                + (wide[1:-1, :-2, 1:-1] + wide[1:-1, 2:, 1:-1] + wide[1:-1, 1:-1, :-2] + wide[1:-1, 1:-1, 2:])
            ) / (5 + 2 * along)
            heat[~inside] = 0
        wide = np.pad(heat, 1)
        step = np.stack([
            (wide[2:, 1:-1, 1:-1] - wide[:-2, 1:-1, 1:-1]) / anisotropy,
            wide[1:-1, 2:, 1:-1] - wide[1:-1, :-2, 1:-1],
            wide[1:-1, 1:-1, 2:] - wide[1:-1, 1:-1, :-2],
        ])  # fmt: skip
        length = np.sqrt((step**2).sum(axis=0))
        step[0] /= anisotropy
        flows[:, *at.T] = (step / (length + 1e-60))[:, *(at - low).T]
        sure[tuple(at.T)] = (length > 1e-4 * heat)[tuple((at - low).T)]
    return flows, sure


@pytest.mark.parametrize("anisotropy", [1.0, 2.5])
def test_as_the_slow_one(anisotropy):
    tissue = Tissue((14, 24, 26), seed=3, cell_diameter=9, anisotropy=anisotropy)
    labels = tissue.block(Box.whole(tissue.shape)).cells
    expected, sure = slow_flows(labels, anisotropy)
    found = volume_flows(labels, anisotropy)
    assert sure.sum() > 0.9 * (labels > 0).sum()
    np.testing.assert_allclose(found[:, sure], expected[:, sure], atol=2e-3)
    assert not found[:, labels == 0].any()


def test_flows_have_length_one_and_lead_to_the_centre():
    z, y, x = np.indices((17, 17, 17))
    labels = 7 * ((z - 8) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 <= 36)
    flows = volume_flows(labels)
    length = np.sqrt((flows**2).sum(axis=0))
    assert length[8, 8, 8] == 0
    length[8, 8, 8] = 1
    np.testing.assert_allclose(length[labels > 0], 1, atol=1e-5)
    inward = flows[0] * (8 - z) + flows[1] * (8 - y) + flows[2] * (8 - x)
    assert (inward[labels > 0] >= 0).all()


def test_no_labels_no_flows():
    assert not volume_flows(np.zeros((3, 4, 5), np.uint8)).any()
    assert volume_flows(np.full((3, 4, 5), 2**40)).any()


def test_a_box_as_in_the_whole():
    tissue = Tissue((24, 60, 64), seed=1, cell_diameter=10, anisotropy=2.0)
    whole = tissue_maps(tissue, Box.whole(tissue.shape))
    assert np.array_equal(whole, volume_maps(tissue.block(Box.whole(tissue.shape)).cells))
    box = Box((8, 22, 20), (17, 40, 45))
    assert np.array_equal(tissue_maps(tissue, box), whole[:, *box.slices])

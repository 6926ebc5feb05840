"""Flows of volumes are cut into the same objects whatever the shards: cells, and flows that go anywhere."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import FlowRules
from spatialdata_segment.core.flows3d import decode_flows_3d
from spatialdata_segment.testing import MethodTests, Tissue
from spatialdata_segment.testing.dummies import DummyFlows
from spatialdata_segment.testing.flows import volume_maps
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

few = settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def tissue_maps(shape, seed, diameter):
    """The oracle flows of a tissue in which cells touch."""
    tissue = Tissue(shape, seed=seed, cell_diameter=diameter, density=0.95, touching=1.0)
    cells = np.unique(np.append(tissue.block(Box.whole(shape)).cells, 0), return_inverse=True)[1][:-1].reshape(shape)
    return volume_maps(cells.astype(np.int32)).astype(np.float32)


def random_maps(shape, seed, length):
    """Flows that lead together, along each other and around, over many voxels; of any length."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, 2, 2, 2), mode="nearest")
    slope = np.stack(np.gradient(np.pad(smooth[0], 1, mode="edge")))[:, 1:-1, 1:-1, 1:-1]
    flows = slope if seed % 2 else smooth[:3]
    flows = flows / (np.linalg.norm(flows, axis=0) + 1e-6) * length + rng.normal(0, 0.3, (3, *shape))
    return np.stack([*(5 * flows), smooth[3] * 50 + 2]).astype(np.float32)


def locked(maps):
    maps.flags.writeable = False
    return maps


class TestContract(MethodTests):
    method = DummyFlows(min_size=30)
    ndim = 3
    in_configurations = False

    @pytest.fixture
    def image(self):
        return locked(tissue_maps((15, 37, 41), 3, 10))


maps = st.one_of(
    st.builds(
        tissue_maps, st.tuples(st.integers(5, 20), st.integers(9, 28), st.integers(9, 30)), st.integers(0, 99),
        st.sampled_from([7, 10]),
    ),
    st.builds(
        random_maps, st.tuples(st.integers(1, 18), st.integers(1, 26), st.integers(1, 30)), st.integers(0, 999),
        st.sampled_from([0.3, 1.0, 2.0]),
    ),
)  # fmt: skip


@few
@given(maps, st.data(), st.sampled_from([5, 60, 200]), st.sampled_from([(0, 1e18), (20, 900.0)]))
def test_any_plan(tmp_path_factory, image, data, steps, sizes):
    """Shards smaller than a cell, halos of the least size: paths lead through many of them."""
    shape, method = image.shape[1:], DummyFlows(steps=steps, min_size=sizes[0], max_size=sizes[1])
    core = [data.draw(st.integers(max(1, -(-n // 3)), n + 3)) for n in shape]
    first = [data.draw(st.integers(0, c)) for c in core]
    halo = [data.draw(st.sampled_from([0, 0, 3, 12])) for _ in shape]
    folder = tmp_path_factory.mktemp("scratch")
    image = locked(image)
    whole = tile(image, method, whole_plan(shape), folder / "whole")
    parts = tile(image, method, make_plan(shape, core, halo, first), folder / "parts")
    assert np.array_equal(whole.labels, parts.labels)
    assert np.array_equal(whole.anchors, parts.anchors)
    for count in ("twins", "adopted", "contested_px"):
        assert parts.mask.evidence[count] == 0
    alone = decode_flows_3d(method.stored(image), np.zeros((3, 2), np.int64), method._rules)
    assert len(alone.sinks) == len(whole.anchors) + whole.covered
    assert np.array_equal(alone.labels > 0, whole.labels > 0)


def test_ten_plans_of_a_dense_tissue(tmp_path):
    image = locked(tissue_maps((22, 44, 48), 8, 10))
    whole = tile(image, DummyFlows(), whole_plan(image.shape[1:]), tmp_path / "whole")
    assert len(whole.anchors) > 50
    rng = np.random.default_rng(0)
    for k in range(10):
        core = [int(rng.integers(n // 3, n)) for n in image.shape[1:]]
        plan = make_plan(image.shape[1:], core, rng.integers(0, 20, 3).tolist())
        assert tile(image, DummyFlows(), plan, tmp_path / str(k)).same_as(whole), plan
    assert FlowRules().steps == DummyFlows().steps

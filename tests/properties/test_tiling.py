"""The labels are the same for any shard plan, any executor, any order, and after any interruption."""

import hashlib
import random
import warnings

import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from spatialdata_segment import ExpandNuclei, Function, ThresholdNuclei, Workflow, segment
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import ShardError
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.dummies import DummyDiscs, DummyNetwork, DummyVolume
from spatialdata_segment.testing.strategies import tissue_images
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

few = settings(
    max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def blobs(image):
    """Reach 1 + 2 + 2: a blur of radius 1, an opening by two pixels."""
    smooth = ndimage.gaussian_filter(image[0].astype(np.float32), 1, radius=1)
    return ndimage.label(ndimage.binary_opening(smooth > 1500, iterations=2))[0]


def gaussian_opening(image):
    mask = ndimage.gaussian_filter(image[0].astype(np.float32), 1) > 1500
    return ndimage.label(ndimage.binary_opening(mask, iterations=2))[0]


METHODS_2D = {
    "threshold": ThresholdNuclei(threshold="otsu", min_distance=4),
    "threshold, no blur": ThresholdNuclei(threshold="otsu", sigma=0, min_distance=1),
    "threshold, all foreground": ThresholdNuclei(threshold=0, sigma=0.5, min_distance=6),
    "expand": ExpandNuclei(distance=4.5),
    "callable, exact context": Function(function=blobs, context_px=5),
    "callable": Function(function=gaussian_opening, context_px=16),
    "network": DummyNetwork(tile=8),
    "network, components": DummyNetwork(tile=8, decoder="components"),
    "discs": DummyDiscs(radius=4, spacing=6),
}
METHODS_3D = {
    "threshold": ThresholdNuclei(threshold="otsu", min_distance=4, sigma=0.5),
    "expand": ExpandNuclei(distance=3),
    "volume": DummyVolume(),
}


@st.composite
def cores(draw, shape, most):
    """Core sizes: odd, smaller than a cell, larger than the image, a first core of any size; few of them."""
    core = [draw(st.integers(max(1, -(-n // most)), n + 3)) for n in shape]
    return core, [draw(st.integers(0, c)) for c in core]


def _agree(data, image, method, tmp_path_factory, most):
    shape = image.shape[1:]
    nucleus = ThresholdNuclei(threshold="otsu", min_distance=4, sigma=0.5) if method.seeded else None
    core, first = data.draw(cores(shape, most))
    context = method.context(_info(image))
    halo = [c + data.draw(st.sampled_from([0, 0, 1, 3, 8, 40])) for c in context]
    image.flags.writeable = False
    folder = tmp_path_factory.mktemp("scratch")
    whole = tile(image, method, whole_plan(shape), folder / "whole", nucleus=nucleus)
    parts = tile(image, method, make_plan(shape, core, halo, first), folder / "parts", nucleus=nucleus)
    assert np.array_equal(whole.labels, parts.labels)
    assert np.array_equal(whole.anchors, parts.anchors)
    for count in ("twins", "adopted", "contested_px", "covered"):
        assert parts.mask.evidence[count] == 0


def _info(image):
    from spatialdata_segment.methods.base import ImageInfo

    return ImageInfo(image.shape[1:], image.dtype)


@pytest.mark.parametrize("method", METHODS_2D.values(), ids=list(METHODS_2D))
@few
@given(data=st.data(), image=tissue_images(min_side=3, max_side=56))
def test_tiling_invariance(data, image, method, tmp_path_factory):
    _agree(data, image[:1], method, tmp_path_factory, 4)


@pytest.mark.parametrize("method", METHODS_3D.values(), ids=list(METHODS_3D))
@settings(few, max_examples=10)
@given(data=st.data(), image=tissue_images(3, min_side=8, max_side=36))
def test_tiling_invariance_in_3d(data, image, method, tmp_path_factory):
    _agree(data, image[:1], method, tmp_path_factory, 2)


@settings(few, max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**16), levels=st.sampled_from([2, 3, 8]), smooth=st.sampled_from([0, 1, 3]))
def test_ties(data, seed, levels, smooth, tmp_path_factory):
    """Noise of few levels: equal distances, equal costs and equal scores everywhere."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((40, 47)), smooth)
    image = (np.argsort(np.argsort(noise.ravel())).reshape(noise.shape) * levels // noise.size).astype(np.uint8)[None]
    method = data.draw(st.sampled_from([
        ThresholdNuclei(threshold=0, sigma=0, min_distance=3),
        ThresholdNuclei(threshold="otsu", sigma=0, min_distance=1),
        DummyNetwork(tile=4, threshold=0.2), DummyDiscs(radius=2, spacing=5, threshold=-1),
        ExpandNuclei(distance=7),
    ]))  # fmt: skip
    _agree(data, image, method, tmp_path_factory, 4)


def connected(image):
    return ndimage.label(image[0])[0]


def opened(image):
    return ndimage.label(ndimage.binary_opening(image[0], iterations=2))[0]


@settings(few, max_examples=25)
@given(
    data=st.data(), seed=st.integers(0, 2**16), smooth=st.sampled_from([1.5, 3.0]),
    share=st.sampled_from([0.4, 0.5, 0.6]),
)  # fmt: skip
def test_winding_objects(data, seed, smooth, share, tmp_path_factory):
    """Noise near percolation: objects of all sizes that leave a window and come back; small ones are many."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((150, 240)), smooth)
    image = (noise > np.quantile(noise, share)).astype(np.uint8)[None]
    method = data.draw(st.sampled_from([
        Function(function=connected, context_px=0), Function(function=opened, context_px=8),
        ThresholdNuclei(threshold=0.5, sigma=0, min_distance=12), ExpandNuclei(distance=3),
    ]))  # fmt: skip
    _agree(data, image, method, tmp_path_factory, 3)


def test_object_that_comes_back_into_the_window(tmp_path):
    """A long arm ends in the core; the short one is seen in the halo alone, and the two meet beyond it."""
    image = np.zeros((1, 260, 300), np.uint8)
    image[0, 40:126, 100:104] = image[0, 120:126, 100:120] = image[0, 105:126, 116:120] = 1
    found = tile(image, Function(function=connected), make_plan((260, 300), (100, 300), (17, 17)), tmp_path)
    assert np.array_equal(found.labels, image[0])


def eroded(image):
    return ndimage.label(ndimage.binary_erosion(image[0], np.ones((3, 3))))[0]


def test_pixels_at_the_window_edge_are_not_background(tmp_path):
    """The erosion clears the outermost pixel of a window; an object that ends there may go on."""
    image = np.zeros((1, 20, 40), np.uint8)
    image[0, 5:15, 5:35] = 1
    method = Function(function=eroded, context_px=1)
    found = tile(image, method, make_plan((20, 40), (20, 20), (1, 1)), tmp_path)
    assert np.array_equal(found.labels, eroded(image))


def test_suppression_chains_through_the_image(tmp_path):
    """Whether the last point of a ramp stays is decided at the other end, 12 shards away."""
    for length in (240, 245):
        image = np.zeros((1, 9, length), np.float32)
        points = np.arange(2, length - 2, 5)
        image[0, 4, points] = np.arange(1, len(points) + 1)
        method = DummyDiscs(radius=2, spacing=6, threshold=0)
        found = tile(image, method, make_plan((9, length), (9, 20), (7, 7)), tmp_path / str(length))
        assert found.anchors[:, 1].tolist() == points[::-1][::2][::-1].tolist()
        assert found.same_as(tile(image, method, whole_plan((9, length)), tmp_path / f"whole{length}"))


def test_proposals_without_any_pair(tmp_path):
    image = np.zeros((1, 20, 40), np.uint8)
    image[0, 10, [5, 30]] = 9
    found = tile(image, DummyDiscs(), make_plan((20, 40), (20, 20), (9, 9)), tmp_path)
    assert found.anchors.tolist() == [[10, 5], [10, 30]]


def test_proposals_of_an_earlier_image_are_not_taken(tmp_path):
    """The same folder, the same process, other pixels: nothing is remembered."""
    image = np.zeros((1, 20, 40), np.uint8)
    for column in (5, 12):
        image[:] = 0
        image[0, 10, [column, 30]] = 9
        found = tile(image, DummyDiscs(radius=1), make_plan((20, 40), (20, 20), (9, 9)), tmp_path)
        assert found.anchors.tolist() == [[10, column], [10, 30]]


def test_cells_of_earlier_nuclei_are_not_taken(tmp_path):
    """A seeded method reads no pixels: the seeds tell that its shards are of another image."""
    image, plan = np.zeros((1, 40, 80), np.uint8), make_plan((40, 80), (40, 40), (20, 20))
    for column in (18, 22):
        image[:] = 0
        image[0, 18:23, column : column + 3] = image[0, 18:23, 60:63] = 9
        nucleus = ThresholdNuclei(threshold=1, sigma=0)
        found = tile(image, ExpandNuclei(distance=3), plan, tmp_path, nucleus=nucleus)
        assert found.mask.evidence["again"] == 0
        assert found.anchors[:, 1].tolist() == [column + 1, 61]


@few
@given(order=st.randoms(use_true_random=False))
def test_any_order_of_shards(order, tmp_path_factory):
    class Shuffled(Executor):
        def map(self, function, items, stage, before=0, *, on_device=False):
            found = {i: function(items[i]) for i in order.sample(range(len(items)), len(items))}
            return [found[i] for i in range(len(items))]

        def run(self, graph, keys, stage, before=0, total=0, *, on_device=False):
            mixed = order.sample(keys, len(keys))
            results = dict(zip(mixed, super().run(graph, mixed, stage), strict=True))
            return [results[k] for k in keys]

    image, plan = _tissue()[:1], make_plan((80, 90), (30, 40), (15, 15))
    folder = tmp_path_factory.mktemp("scratch")
    method = ThresholdNuclei(threshold="otsu", min_distance=4)
    first = tile(image, method, plan, folder / "a")
    assert tile(image, method, plan, folder / "b", executor=Shuffled(1)).same_as(first)
    assert _bytes(folder / "a") == _bytes(folder / "b")


# through segment: the bytes of the whole store


def _tissue(shape=(80, 90)):
    tissue = Tissue(shape, seed=4, cell_diameter=14)
    return tissue.image().compute()


def _store(path, image):
    parsed = Image2DModel.parse(
        da.from_array(image, chunks=(1, 37, 41)), dims=("c", "y", "x"), c_coords=["DAPI", "WGA"], scale_factors=[2]
    )
    SpatialData(images={"image": parsed}).write(path)
    return SpatialData.read(path)


def _bytes(folder):
    """Checksums of every file of a store, or of a scratch; the package's own dot-folder is not the result."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".spatialdata_segment" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _segmented(path, image, workflow, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segment(_store(path, image), "image", workflow, progress=False, **kwargs)
    return _bytes(path)


WORKFLOWS = {
    "dapi": "dapi",
    "pair": Workflow(nucleus=ThresholdNuclei(threshold="otsu", min_distance=4), cell=ExpandNuclei(distance=4)),
    "network": Workflow(cell=DummyNetwork(tile=16)),
    "discs": Workflow(cell=DummyDiscs(threshold=900)),
}


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=list(WORKFLOWS))
def test_plans_write_the_same_bytes(workflow, tmp_path):
    """Neither the plan nor the number of threads is in the store."""
    image = _tissue()
    whole = _segmented(tmp_path / "whole", image, workflow, n_jobs=1)
    assert _segmented(tmp_path / "small", image, workflow, shard_size=41 * 39, n_jobs=1) == whole
    overlap = 45 if workflow == "dapi" else 17
    assert _segmented(tmp_path / "thin", image, workflow, shard_size=1300, overlap_px=overlap, n_jobs=2) == whole
    assert len([n for n in whole if n.startswith("labels/")]) > 2


@pytest.fixture(scope="module")
def cluster():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=list(WORKFLOWS))
def test_serial_threads_and_distributed_write_the_same_bytes(workflow, cluster, tmp_path):
    image = _tissue()
    serial = _segmented(tmp_path / "serial", image, workflow, shard_size=2000, n_jobs=1)
    threads = _segmented(tmp_path / "threads", image, workflow, shard_size=2000, n_jobs=3)
    with cluster.as_current():
        distributed = _segmented(tmp_path / "distributed", image, workflow, shard_size=2000)
    assert threads == serial
    assert distributed == serial


class _Fails:
    """A function that fails in some windows, as often as it is told."""

    def __init__(self, rng, failures):
        self.rng, self.failures = rng, failures

    def __call__(self, image):
        if self.failures and self.rng.random() < 0.4:
            self.failures -= 1
            raise RuntimeError("interrupted")
        return blobs(image)


def test_resumed_run_writes_the_same_bytes(tmp_path):
    image = _tissue()
    wanted = _segmented(tmp_path / "undisturbed", image, Function(function=blobs, version="1"), shard_size=900)
    failing = Function(function=_Fails(random.Random(3), 6), version="1")
    sdata, failed = _store(tmp_path / "killed", image), 0
    while True:
        try:
            segment(sdata, "image", failing, shard_size=900, n_jobs=1, progress=False)
            break
        except ShardError:
            failed += 1
    assert failed > 1
    assert _differing(_bytes(tmp_path / "killed"), wanted) <= {"function"}


def _differing(found, wanted):
    """Files that differ; the tables name the function, which here is another one."""
    assert found.keys() == wanted.keys()
    return {"function" if n.startswith("tables/") else n for n in found if found[n] != wanted[n]}

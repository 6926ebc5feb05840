"""`Cellpose(do_3D=True)`: the contract of methods, windows, mistakes, and the whole way into SpatialData."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from pydantic import ValidationError
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel

from spatialdata_segment import Cellpose, Normalization, Workflow, decode, label_image, predict, segment
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.core.statistics import quantile_or_end
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.whole import measure_image
from spatialdata_segment.errors import InputError
from spatialdata_segment.methods.base import ImageInfo, View
from spatialdata_segment.testing import MethodTests

torch = pytest.importorskip("torch")

SHAPE = 20, 46, 56
RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "parity/cellpose3/make_golden.py"))


@pytest.fixture(scope="module")
def gentle_file(save_network):
    """A network that finds bright spots, with flows that bring paths to rest."""
    return save_network(gain=4.0)


@pytest.fixture(scope="module")
def image():
    """Bright balls."""
    pixels = np.ascontiguousarray(RECIPE["balls"]()[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]])
    pixels.flags.writeable = False
    return pixels


@pytest.fixture
def cellpose(gentle_file):
    def make(**given):
        fixed = {"model_path": gentle_file, "channels": 0, "tile_size": 64, "do_3D": True}
        return Cellpose(**{**fixed, "rescale": 1.0, **given})

    return make


class _Contract(MethodTests):
    settings: dict = {}  # noqa: RUF012
    ndim = 3
    n_plans = 1

    @pytest.fixture
    def image(self):
        pixels = np.ascontiguousarray(RECIPE["balls"]()[:, :13, :30, :34])
        pixels.flags.writeable = False
        return pixels

    @pytest.fixture(autouse=True, scope="class")
    def _made(self, request, gentle_file):
        request.cls.method = Cellpose(model_path=gentle_file, do_3D=True, **{"tile_size": 64, **self.settings})


class TestAnisotropicAndSmoothed(_Contract):
    settings = {"rescale": 0.9, "anisotropy": 1.4, "flow3D_smooth": 0.7}  # noqa: RUF012


class TestWithoutResampling(_Contract):
    settings = {"rescale": 0.8, "resample": False, "min_size": 5}  # noqa: RUF012


def test_planes_are_those_of_each_orientation(cellpose, image):
    """Flows add up from two orientations each, and three probabilities: as by 2D runs of every plane."""
    method, info = cellpose(normalize=False), ImageInfo(SHAPE, image.dtype)
    flat, network = Cellpose(**{**dict(method), "do_3D": False}), method.load("cpu")
    whole = Box.whole(SHAPE)
    view = View(Window(whole, whole, whole), info, {}, model=network, read=lambda box: image[:, *box.slices])
    maps, expected = method.predict(image[:, :0], view), np.zeros((4, *SHAPE))
    for axis, (first, second) in enumerate([(1, 2), (0, 2), (0, 1)]):
        for at in range(SHAPE[axis]):
            plane = np.ascontiguousarray(np.take(image, at, axis + 1))
            said, _ = flat.whole_maps(network, plane, {})
            here = tuple(at if k == axis else slice(None) for k in range(3))
            for part, to in enumerate((first, second, 3)):
                expected[(to, *here)] += said[part]
    np.testing.assert_allclose(maps, expected, atol=2e-5)


def test_slabs_change_nothing(cellpose, image, monkeypatch):
    method, info = cellpose(anisotropy=1.3), ImageInfo(SHAPE, image.dtype)
    whole = Box.whole(SHAPE)
    levels = {quantile_or_end(0, 0.01): 10.0, quantile_or_end(0, 0.99): 900.0}
    view = View(Window(whole, whole, whole), info, levels, model=method.load("cpu"), read=lambda b: image[:, *b.slices])
    expected = method.predict(image[:, :0], view)
    monkeypatch.setattr("spatialdata_segment.methods.cellpose.volume.SLAB_BYTES", 3e5)
    assert np.array_equal(method.predict(image[:, :0], view), expected)


def test_levels_of_whole_planes(cellpose, image):
    """With ``norm3D=False`` each plane is normalised by itself, in all orientations: as in 2D runs of every plane."""
    pixels = (image * np.linspace(0.5, 2, SHAPE[0])[:, None, None]).astype(np.uint16)
    method = cellpose(normalize=Normalization(norm3D=False, percentile=(0, 98)))
    info, whole = ImageInfo(SHAPE, pixels.dtype), Box.whole(SHAPE)
    source, plan = da.from_array(pixels, chunks=(1, 7, 20, 30)), Plan.fewest(SHAPE, 9_000, (0, 0, 0))
    levels = measure_image(source, method.statistics(info), plan, Executor(1), "")
    network, expected = method.load("cpu"), np.zeros((4, *SHAPE))
    flat = Cellpose(**{**dict(method), "do_3D": False, "normalize": False})
    for axis, (first, second) in enumerate([(1, 2), (0, 2), (0, 1)]):
        for at in range(SHAPE[axis]):
            plane = np.ascontiguousarray(np.take(pixels, at, axis + 1))
            low, high = plane.min(), np.quantile(plane, 0.98)
            assert levels[quantile_or_end(0, 0.0, axis, at)] == low
            assert levels[quantile_or_end(0, 0.98, axis, at)] == pytest.approx(high)
            said, _ = flat.whole_maps(network, (plane - low) / (high - low), {})
            here = tuple(at if k == axis else slice(None) for k in range(3))
            for part, to in enumerate((first, second, 3)):
                expected[(to, *here)] += said[part]
    view = View(Window(whole, whole, whole), info, levels, model=network, read=lambda box: pixels[:, *box.slices])
    np.testing.assert_allclose(method.predict(pixels[:, :0], view), expected, atol=1e-4)


def store(image, path=None):
    sdata = SpatialData(images={"image": Image3DModel.parse(image, dims=("c", "z", "y", "x"), chunks=(1, 10, 40, 40))})
    if path is not None:
        sdata.write(path)
    return sdata


def labels_of(sdata):
    return np.asarray(sdata.labels["segmentation_cell_labels"].data)


def test_segment_in_two_phases(cellpose, image, tmp_path):
    """Fused, in two phases, and in two phases without the image: the same bytes."""
    method = cellpose(min_size=30)
    fused = segment(store(image), "image", method, shard_size=30_000, overlap_px=8, shapes=False)
    labels = labels_of(fused)
    assert labels.max() > 8
    kept = predict(store(image), "image", method, tmp_path / "maps", shard_size=30_000, overlap_px=8)
    apart = decode(kept, shapes=False)
    assert np.array_equal(labels_of(apart), labels)
    table = fused.tables["segmentation_table"]
    assert table.obsm["spatial"].shape == (len(table), 3)
    assert table.obs["area"].min() >= 30
    candidates = fused.tables["segmentation_candidates"].obs
    assert (candidates["drop_reason"] == "too_small").any()


def test_a_region_is_that_of_the_whole(cellpose, image):
    whole = segment(store(image), "image", cellpose(), shard_size=18_000, overlap_px=8, shapes=False)
    box = [25, 20, 56, 46]
    part = segment(store(image), "image", cellpose(), shard_size=18_000, overlap_px=8, shapes=False, bounding_box=box)
    expected, found = labels_of(whole), labels_of(part)
    ids = np.unique(found[found > 0])
    assert len(ids) > 2
    for k in ids:
        (same,) = np.unique(expected[found == k])
        assert np.array_equal(expected == same, found == k)


def test_the_anisotropy_is_that_of_the_pixel_size(cellpose, image):
    method, info = cellpose(rescale=None, diameter=17.0), ImageInfo(SHAPE, image.dtype, (2.0, 1.0, 1.0))
    adapted = method.adapted(info, {})
    assert adapted.anisotropy == 2.0
    assert adapted.halo(info) == (17, 34, 34)
    assert method.adapted(ImageInfo(SHAPE, image.dtype), {}).anisotropy == 1.0
    assert cellpose(anisotropy=3.0).adapted(info, {}).anisotropy == 3.0


def test_the_diameter_is_estimated_of_planes(gentle_file, image, tmp_path):
    """As of an image that is one of the planes, where all are alike."""
    size = tmp_path / "size.npz"
    np.savez(size, **RECIPE["small_size_numbers"]())
    given = {"model_path": gentle_file, "size_model_path": size, "channels": 0, "tile_size": 64}
    plane, found = image[:, 10], []
    for pixels, do_3D in ((plane, False), (np.repeat(plane[:, None], 5, axis=1), True)):
        method, info = Cellpose(**given, do_3D=do_3D), ImageInfo(pixels.shape[1:], pixels.dtype)
        plan, source = Plan.fewest(info.shape, 10**9, (0,) * info.ndim), da.from_array(pixels, chunks=-1)
        estimate = partial(_estimated, method, info)
        values = measure_image(source, method.statistics(info), plan, Executor(1), "", diameter=estimate)
        found.append(method.adapted(info, values).diameter)
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert 5 < found[0] < 12


def _estimated(method, info, read, values):
    return method.estimate(read, info, values, method.load("cpu"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"do_3D": False, "anisotropy": 2.0}, "anisotropy=2.0 has no effect without do_3D=True"),
        ({"do_3D": False, "flow3D_smooth": 1}, "flow3D_smooth=1.0 has no effect"),
        ({"follow_on": "device"}, "follow_on='device' is for planes"),
        ({"normalize": Normalization(tile_norm_blocksize=64)}, "tile_norm_blocksize is for planes"),
        ({"anisotropy": 0}, "greater than 0"),
        ({"do_3D": False, "normalize": Normalization(norm3D=False)}, "norm3D=False has no effect without do_3D=True"),
        ({"flow3D_smooth": (1, 2)}, "flow3D_smooth"),
    ],
)
def test_mistakes(cellpose, given, says):
    with pytest.raises(ValidationError, match=says):
        cellpose(**given)


def test_volumes_and_images_are_told_apart(cellpose, image):
    flat = SpatialData(images={"image": Image2DModel.parse(image[:, 0], dims=("c", "y", "x"))})
    with pytest.raises(InputError, match=r"cellpose works on 3D images, and this one is 2D"):
        segment(flat, "image", cellpose())
    with pytest.raises(InputError, match=r"stitch_threshold=0.25: cellpose works on volumes alone"):
        segment(store(image), "image", cellpose(stitch_threshold=0.25))
    with pytest.raises(InputError, match=r"anisotropy=3000 .*expected 0.05 to 20"):
        segment(store(image), "image", cellpose(), pixel_size=(1500, 0.5, 0.5))
    with pytest.raises(InputError, match="without a pass over the whole image"):
        label_image(image, cellpose())


def test_settings_survive_a_configuration(cellpose):
    method = cellpose(anisotropy=2.0, flow3D_smooth=(0, 1, 1))
    assert Workflow(**Workflow(cell=method).model_dump(mode="json")).cell == method

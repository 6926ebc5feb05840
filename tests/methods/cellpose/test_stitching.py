"""`Cellpose` on the planes of a volume: its tiles, its own grid, its diameter, its ``min_size``."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image3DModel

from spatialdata_segment import Cellpose, decode, predict, segment
from spatialdata_segment._stack import stitch_label_array
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.errors import SegmentationWarning
from spatialdata_segment.testing import Tissue
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

pytest.importorskip("torch")

SHAPE = 4, 70, 90
FIXED = {"channels": 0, "tile_size": 64, "normalize": {"lowhigh": (300, 12000)}}


@pytest.fixture(scope="module")
def image():
    tissue = Tissue(SHAPE, seed=3, cell_diameter=16, density=0.8, anisotropy=2.0)
    pixels = tissue.block(Box.whole(SHAPE)).image[:1]
    pixels.flags.writeable = False
    return pixels


def sdata_of(pixels):
    return SpatialData(images={"image": Image3DModel.parse(pixels, dims=("c", "z", "y", "x"))})


def labels_of(sdata):
    return np.asarray(sdata["segmentation_cell_labels"].data)


@pytest.mark.parametrize(
    "settings", [{"diameter": 17.0}, {"diameter": 12.0}, {"diameter": 14.0, "resample": False}], ids=str
)
def test_planes_are_images(settings, image, cells_file, tmp_path):
    """In any shards, and from kept maps, also where these have a grid of their own."""
    method = Cellpose(model_path=cells_file, stitch_threshold=0.2, flow_threshold=None, **FIXED, **settings)
    alone = method.model_copy(update={"min_size": -1})
    planes = [
        tile(image[:, z], alone, whole_plan(SHAPE[1:]), tmp_path / f"{z}").mask.labels.read(Box.whole(SHAPE[1:]))
        for z in range(SHAPE[0])
    ]
    found = tile(image, method, make_plan(SHAPE, (3, 50, 90), (0, 30, 30)), tmp_path / "volume")
    assert found.labels.max() > 10
    phases = tile(image, method, make_plan(SHAPE, (2, 70, 50), (0, 30, 30)), tmp_path / "maps", two_phases=True)
    assert phases.same_as(found)
    objects = found.mask.objects
    assert np.array_equal(objects.reason == Reason.TOO_SMALL, objects.area < method.min_size)
    expected = np.asarray(stitch_label_array(np.stack(planes).astype(np.int64), 0.2).labels)
    assert np.array_equal(found.labels, expected)


def test_what_flows_refuse_joins_nothing(image, cells_file, tmp_path):
    strict = Cellpose(model_path=cells_file, diameter=17.0, stitch_threshold=0.2, flow_threshold=0.25, **FIXED)
    found = tile(image, strict, whole_plan(SHAPE), tmp_path).mask.objects
    refused = found.reason == Reason.FLOW_ERROR
    assert 0 < refused.sum() < len(found)
    assert (found.bbox[refused, 3] - found.bbox[refused, 0] == 1).all()


def test_the_diameter_is_the_median_of_planes(image, save_network, tmp_path):
    """Without a size model it is that of the training; the files are read of the volume's method as of an image's."""
    method = Cellpose(model_path=save_network(diameter=19.0), channels=0, tile_size=64, stitch_threshold=0.2)
    sdata = segment(sdata_of(image), "image", method, shapes=False, progress=False)
    assert '"diameter": 19.0' in sdata["segmentation_table"].uns["segmentation"]
    fixed = method.model_copy(update={"diameter": 19.0})
    same = segment(sdata_of(image), "image", fixed, shapes=False, table=False, progress=False)
    assert np.array_equal(labels_of(sdata), labels_of(same))


def test_two_phases_and_another_least_size(image, cells_file, tmp_path):
    """``min_size`` and the threshold may differ when maps of planes are decoded."""
    method = Cellpose(model_path=cells_file, diameter=17.0, stitch_threshold=0.2, **FIXED)
    options = {"shapes": False, "progress": False}
    maps = predict(sdata_of(image), "image", method, tmp_path / "maps", progress=False)
    other = method.model_copy(update={"min_size": 60, "stitch_threshold": 0.4})
    apart = decode(maps, workflow=other, **options)
    fused = segment(sdata_of(image), "image", other, **options)
    assert np.array_equal(labels_of(apart), labels_of(fused))
    assert np.bincount(labels_of(apart).ravel())[1:].min() >= 60
    small = apart["segmentation_candidates"].obs.query("drop_reason == 'too_small'")
    assert 0 < small["area"].max() < 60


def test_a_volume_without_a_threshold(image, cells_file):
    """As with Cellpose planes are then apart, and that is told."""
    method = Cellpose(model_path=cells_file, diameter=17.0, **FIXED)
    with pytest.warns(SegmentationWarning, match="cellpose works on planes"):
        sdata = segment(sdata_of(image), "image", method, shapes=False, table=False, progress=False)
    labels = labels_of(sdata)
    assert labels.max() == sum(len(np.unique(plane)) - 1 for plane in labels)

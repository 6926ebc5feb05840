"""StarDist as people use it: images of all kinds, regions, partners, previews, runs that end early, many objects."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import Image2DModel

from spatialdata_segment import (
    SeededWatershed,
    StarDist,
    Workflow,
    decode,
    plan,
    predict,
    preview,
    resegment,
    segment,
)
from spatialdata_segment.engine.events import listen
from spatialdata_segment.errors import InputError
from spatialdata_segment.testing import Tissue

pytest.importorskip("torch")
pytest.importorskip("pyclipper")
pytestmark = pytest.mark.filterwarnings("ignore")

write_model = runpy.run_path(str(Path(__file__).parent / "networks.py"))["write_model"]
TABLE, LABELS = "segmentation_table", "segmentation_cell_labels"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "spots", grid=(2, 2), n_rays=16, radius=6.0)


def image_of(pixels, names=None):
    """Return an object with an image, ``(c, y, x)``."""
    return sd.SpatialData(images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names)})


def labels_of(pixels, method, **how):
    found = segment(image_of(pixels), "image", method, progress=False, **{"shapes": False} | how)
    return np.asarray(found[LABELS])


@pytest.fixture(scope="module")
def pixels():
    return np.asarray(Tissue((120, 130), seed=4, cell_diameter=18).to_spatialdata()["image"])


def test_values_of_any_scale_are_the_same(model, pixels):
    method = StarDist(model, channels=[0], tile_size=64)
    expected = labels_of(pixels, method)
    assert expected.max() > 5
    assert np.array_equal(labels_of(pixels.astype(np.float32) / 1000 - 3, method), expected)
    assert np.array_equal(labels_of(pixels.astype(np.float64) * 7, method), expected)


def test_each_channel_is_normalised_by_itself(tmp_path, pixels):
    """As csbdeep does it with ``axis=(0, 1)``."""
    method = StarDist(write_model(tmp_path / "rgb", n_channels=3, grid=(2, 2), radius=6.0), tile_size=64)
    rgb = np.stack([pixels[0] // 4, 255 - pixels[1] // 300, pixels[0] // 7]).astype(np.uint16)
    low, high = (np.percentile(rgb, p, axis=(1, 2), keepdims=True) for p in (1, 99.8))
    by_hand = ((rgb - low) / (high - low + 1e-20)).astype(np.float32)
    expected = labels_of(by_hand, method.model_copy(update={"normalize": False}))
    assert expected.max() > 5
    assert np.array_equal(labels_of(rgb, method), expected)


def test_channels_are_found_by_name(model, pixels):
    many = np.concatenate([np.zeros((3, *pixels.shape[1:]), pixels.dtype), pixels])
    names = ["CD3", "CD8", "CD20", "DAPI", "WGA"]
    found = segment(image_of(many, names), "image", StarDist(model, channels="DAPI"), progress=False, shapes=False)
    assert np.array_equal(np.asarray(found[LABELS]), labels_of(pixels, StarDist(model, channels=[0])))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (37, 2), (40, 33)])
def test_small_and_empty_images(model, shape):
    for value in (0, 700):
        sdata = segment(
            image_of(np.full((1, *shape), value, np.uint16)), "image", StarDist(model, channels=[0]), progress=False
        )
        assert np.asarray(sdata[LABELS]).shape == shape
        assert len(sdata[TABLE]) == np.asarray(sdata[LABELS]).max() == 0


def test_values_that_are_none_are_told(model, pixels):
    spoilt = pixels.astype(np.float32)
    spoilt[0, 7, 9] = np.nan
    for normalize in (True, False):
        with pytest.raises(InputError, match=r"NaN|nan"):
            labels_of(spoilt, StarDist(model, channels=[0], normalize=normalize))


def test_a_region_and_a_preview(model, pixels):
    """Objects inside are those of the whole image."""
    method = StarDist(model, channels=[0], tile_size=32)
    whole, sdata = labels_of(pixels, method), image_of(pixels)
    assert plan(sdata, "image", method, shard_size=50 * 50).masks["cell"].n_shards > 4
    segment(sdata, "image", method, bounding_box=(40, 30, 100, 90), shard_size=30 * 30, progress=False, shapes=False)
    part = np.asarray(sdata[LABELS])
    assert 0 < part.max() < whole.max()
    pairs = np.unique(np.stack([part.ravel(), whole.ravel()])[:, part.ravel() > 0], axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    found = preview(image_of(pixels), "image", method, size=80)
    assert any(np.asarray(found[name]).max() > 3 for name in found.labels)


def test_matched_with_another_method(model, pixels):
    """StarDist's nuclei, and cells that grow from them; each pair shares its id."""
    flow = Workflow(nucleus=StarDist(model, channels=[0]), cell=SeededWatershed(channels=[1]))
    sdata = segment(image_of(pixels, ["DAPI", "WGA"]), "image", flow, progress=False, shard_size=60 * 60)
    nuclei, cells = (np.asarray(sdata[f"segmentation_{m}_labels"]) for m in ("nucleus", "cell"))
    assert len(sdata[TABLE]) == nuclei.max() == cells.max() > 3
    inside = nuclei > 0
    assert (nuclei == cells)[inside].mean() > 0.95
    alone = segment(image_of(pixels, ["DAPI", "WGA"]), "image", flow.nucleus, progress=False, shapes=False)
    prob = np.r_[np.nan, alone[TABLE].obs["prob"]][np.asarray(alone[LABELS])]  # of each pixel
    table = sdata[TABLE].obs.set_index("cell_id")
    assert "prob" not in table
    assert not any(name.startswith("nucleus__") for name in table)
    assert np.array_equal(prob[inside], table["nucleus_prob"].loc[nuclei[inside]])
    before = set(table.index)
    resegment(sdata, "image", flow, bounding_box=(0, 0, 70, 130), progress=False)
    nuclei, table = np.asarray(sdata["segmentation_nucleus_labels"]), sdata[TABLE].obs.set_index("cell_id")
    assert set(table.index) - before
    inside = nuclei > 0
    assert np.array_equal(prob[inside], table["nucleus_prob"].loc[nuclei[inside]])


def test_kept_maps_serve_for_other_thresholds(model, pixels, tmp_path):
    image_of(pixels).write(tmp_path / "a.zarr")
    sdata, settings = sd.read_zarr(tmp_path / "a.zarr"), {"channels": [0], "keep_prob": 0.3}
    segment(sdata, "image", StarDist(model, **settings), progress=False, shapes=False, keep_maps=True)
    kept, strict = (
        tmp_path / "a.zarr/.spatialdata_segment/segmentation.maps",
        StarDist(model, **settings, prob_thresh=0.9),
    )
    found = np.asarray(decode(kept, workflow=strict, progress=False)[LABELS])
    assert 0 < found.max() < np.asarray(sdata[LABELS]).max()
    assert np.array_equal(found, labels_of(pixels, strict))


def test_goes_on_where_it_ended(model, pixels, tmp_path):
    """Ended in the midst of the second phase, and called again: nothing is predicted twice, and the result is whole."""
    image_of(pixels).write(tmp_path / "a.zarr")
    sdata, method = sd.read_zarr(tmp_path / "a.zarr"), StarDist(model, channels=[0], tile_size=32)

    def end(event):
        if event.stage == "cell shards" and event.done == 2:
            raise KeyboardInterrupt

    with listen(end), pytest.raises(KeyboardInterrupt):
        segment(sdata, "image", method, progress=False, shard_size=40 * 40, n_jobs=1)
    stages: dict[str, int] = {}
    with listen(lambda e: stages.setdefault(e.stage, e.done)):
        segment(sdata, "image", method, progress=False, shard_size=40 * 40, n_jobs=1)
    assert stages["cell shards"] >= 1
    assert np.array_equal(np.asarray(sdata[LABELS]), labels_of(pixels, method))


def test_more_objects_than_16_bits_have_numbers(tmp_path):
    """Single bright pixels, each an object, all in one image."""
    folder = write_model(tmp_path / "tiny", radius=2.8, growth=0.0, gain=400.0, threshold=0.09)
    image = np.zeros((1, 6 * 260, 6 * 260), np.float32)
    image[:, 3::6, 3::6] = 1
    sdata = segment(
        image_of(image), "image", StarDist(folder, normalize=False), progress=False, shapes=False, shard_size=500 * 500
    )
    labels, ids = np.asarray(sdata[LABELS]), sdata[TABLE].obs["cell_id"].to_numpy()
    assert labels.dtype == np.uint32
    assert len(ids) == 260**2 > 1 << 16
    assert np.array_equal(labels[3::6, 3::6].ravel(), np.arange(1, len(ids) + 1))
    assert np.array_equal(ids, np.arange(1, len(ids) + 1))


def test_polygons_of_rays_and_a_region_of_shapes(model, pixels):
    method = StarDist(model, channels=[0], outlines="rays")
    sdata = segment(image_of(pixels), "image", method, bounding_box=(20, 20, 110, 110), progress=False)
    shapes = sdata["segmentation_cell_boundaries"]
    assert len(shapes) == len(sdata[TABLE]) > 2
    assert shapely.is_valid(shapes.geometry.to_numpy()).all()


def test_what_one_phase_keeps_the_other_reads_in_any_shards(model, pixels, tmp_path):
    method = StarDist(model, channels=[0], tile_size=32)
    predict(image_of(pixels), "image", method, tmp_path / "maps", progress=False, shard_size=64 * 64)
    expected = labels_of(pixels, method)
    for size in (30 * 30, 10**6):
        found = decode(tmp_path / "maps", progress=False, shard_size=size, shapes=False, table=False)
        assert np.array_equal(np.asarray(found[LABELS]), expected)

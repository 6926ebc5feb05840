"""What nobody asks for and everybody meets: two runs at once, foreign scratch, unreadable chunks, odd dtypes."""

import json

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy import ndimage as ndi
from spatialdata.models import Image2DModel, Labels2DModel

from spatialdata_segment import Function, ThresholdNuclei, label_image, segment
from spatialdata_segment.errors import InputError, MissingError, ScratchError, ShardError

BLOBS = (ndi.gaussian_filter(np.random.default_rng(0).random((2, 150, 150)), (0, 5, 5)) * 4000).astype("uint16")
BLOBS.flags.writeable = False
LEVEL = int(np.quantile(BLOBS[0], 0.8))
SHARD = 8000


def blobs(image):
    return ndi.label(image[0] > LEVEL)[0]


def an_object(pixels=BLOBS, **elements):
    parsed = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DAPI", "WGA"])
    return sd.SpatialData(images={"image": parsed}, **elements)


def test_label_image_reads_the_channel_that_the_method_names():
    second = label_image(BLOBS[1:], ThresholdNuclei()).compute()
    assert second.any()
    np.testing.assert_array_equal(label_image(BLOBS, ThresholdNuclei(channels=1)).compute(), second)
    named = label_image(an_object()["image"], ThresholdNuclei(channels="WGA"))
    np.testing.assert_array_equal(named.data.compute(), second)
    with pytest.raises(MissingError, match="'nope'"):
        label_image(an_object()["image"], ThresholdNuclei(channels="nope"))
    with pytest.raises(InputError, match="shard_size=0"):
        label_image(BLOBS, ThresholdNuclei(), shard_size=0)


@pytest.mark.parametrize("version", [None, "1"])
def test_two_runs_on_one_store_leave_each_other_alone(tmp_path, version):
    an_object().write(tmp_path / "store.zarr")
    first, second = (sd.read_zarr(tmp_path / "store.zarr") for _ in range(2))
    calls = []

    def nested(image):
        calls.append(1)
        if len(calls) == 3:
            segment(second, "image", method, key_added="b", shard_size=SHARD, n_jobs=1, progress=False)
        return blobs(image)

    method = Function(function=nested, version=version)
    segment(first, "image", method, key_added="a", shard_size=SHARD, n_jobs=1, progress=False)
    labels = sd.read_zarr(tmp_path / "store.zarr").labels
    assert set(labels) == {"a_cell_labels", "b_cell_labels"}
    np.testing.assert_array_equal(labels["a_cell_labels"], labels["b_cell_labels"])
    assert list((tmp_path / "store.zarr" / ".spatialdata_segment").glob("scratch/*")) == []


def test_a_given_scratch_with_the_shards_of_another_run_is_refused_by_a_function_without_version(tmp_path):
    def fails(image):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("enough")
        return blobs(image)

    calls = []
    options = {"shard_size": SHARD, "n_jobs": 1, "progress": False, "scratch": tmp_path / "scratch"}
    with pytest.raises(ShardError, match="finished shards are kept"):
        segment(an_object(), "image", Function(function=fails, version="1"), **options)
    shards = sorted((tmp_path / "scratch").rglob("*.shard"))
    assert shards
    with pytest.raises(ScratchError, match="belongs to another run"):
        segment(an_object(), "image", blobs, **options)
    assert sorted((tmp_path / "scratch").rglob("*.shard")) == shards


def test_nothing_is_promised_that_is_not_kept():
    def fails(image):
        raise RuntimeError("no")

    with pytest.raises(ShardError, match=r"Nothing is kept.*scratch="):
        segment(an_object(), "image", fails, shard_size=SHARD, progress=False)


def test_a_chunk_that_cannot_be_read_names_its_shards():
    def broken(block, block_id=None):
        if block_id == (0, 0, 2):
            raise OSError("disk gone")
        return block

    pixels = da.from_array(np.array(BLOBS), chunks=(2, 50, 50))
    pixels = pixels.map_blocks(broken, dtype=BLOBS.dtype, meta=np.empty((0, 0, 0), BLOBS.dtype))
    with pytest.raises(ShardError, match=r"core \[y 0:.*OSError: disk gone"):
        segment(an_object(pixels), "image", Function(function=blobs, context_px=2), shard_size=SHARD, progress=False)


def test_the_region_stays_and_is_told_alike_wherever_the_store_lies(tmp_path):
    roi = np.zeros((150, 150), np.uint8)
    roi[20:120, 30:140] = 1
    told = []
    for name in "ab":
        an_object(labels={"segmentation_nucleus_labels": Labels2DModel.parse(roi, dims=("y", "x"))}).write(
            tmp_path / f"{name}.zarr"
        )
        sdata = sd.read_zarr(tmp_path / f"{name}.zarr")
        segment(sdata, "image", blobs, roi_key="segmentation_nucleus_labels", overwrite=True, progress=False)
        assert "segmentation_nucleus_labels" in sdata.labels
        told.append(json.loads(sdata["segmentation_table"].uns["segmentation"]))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("dtype", "offset"), [("int32", 0), ("int32", 10**7), ("float32", 30_000), ("float64", -(10**6))]
)
def test_the_threshold_does_not_depend_on_the_dtype(dtype, offset):
    expected = label_image(BLOBS, ThresholdNuclei()).compute() > 0
    found = label_image((BLOBS.astype("int64") + offset).astype(dtype), ThresholdNuclei()).compute() > 0
    assert (expected & found).sum() / (expected | found).sum() > 0.98


def test_a_class_is_no_workflow():
    with pytest.raises(InputError, match="expected an instance"):
        segment(an_object(), "image", ThresholdNuclei)

"""Which channels a method reads: rules of the workflow, projections, stains."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from pydantic import ValidationError
from skimage import data
from skimage.color import rgb2hed
from spatialdata.models import Image2DModel

from spatialdata_segment import (
    ExpandNuclei,
    Function,
    ThresholdNuclei,
    Workflow,
    label_image,
    plan,
    preview,
    segment,
)
from spatialdata_segment._table import read_metadata
from spatialdata_segment.errors import InputError, MissingError

NAMES = ["DAPI", "WGA", "CD45"]


class Saw:
    """A method that finds nothing, and keeps what it was given."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.blocks.append(np.array(image))
        return np.zeros(image.shape[1:], np.int64)


def pixels(dtype="uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (3, 20, 30)).astype(dtype)


def an_object(image: np.ndarray, names: list[str] | None = None, chunks: tuple = (1, 11, 13)) -> sd.SpatialData:
    chunked = da.from_array(image, chunks=chunks)
    return sd.SpatialData(images={"image": Image2DModel.parse(chunked, dims=("c", "y", "x"), c_coords=names)})


def seen(image: np.ndarray, rules: dict, *, names=NAMES, channels=None, own=None, store=None) -> np.ndarray:
    """Return what a function that reads every channel gets."""
    saw = Saw()
    flow = Workflow(cell=Function(function=saw, context_px=0, channels=own), **rules)
    sdata = an_object(image, names)
    if store is not None:
        sdata.write(store)
        sdata = sd.read_zarr(store)
    with pytest.warns(UserWarning, match="is empty"):
        segment(sdata, "image", flow, channels=channels, progress=False, n_jobs=1, table=False, shapes=False)
    return saw.blocks[-1]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [[0], [1], [2]]),
        ({"segmentation_channel_nuclei": 2}, [[2], [1], [2]]),
        ({"segmentation_channel_nuclei": [2]}, [[2], [1], [2]]),
        ({"segmentation_channel_nuclei": "CD45", "segmentation_channel_cytosol": ["DAPI"]}, [[2], [0], [2]]),
        ({"combine_nucleus_channels": [0, 2]}, [[0, 2], [1], [2]]),
        ({"combine_cytosol_channels": ["WGA", 2]}, [[0], [1, 2], [2]]),
        ({"combine_nucleus_channels": [0, 2], "segmentation_channel_nuclei": 1}, [[0, 2], [1], [2]]),
        ({"segmentation_channel_nuclei": [2], "combine_cytosol_channels": [1, 2]}, [[2], [1, 2], [2]]),
    ],
)
@pytest.mark.parametrize("backed", [False, True])
def test_rules(rules, expected, backed, tmp_path):
    image = pixels()
    found = seen(image, rules, store=tmp_path / "store.zarr" if backed else None)
    np.testing.assert_array_equal(found, np.stack([image[at].max(axis=0) for at in expected]))
    assert found.dtype == image.dtype


def test_what_is_given_goes_before_the_rules_and_a_methods_own_before_both():
    image, rules = pixels(), {"combine_nucleus_channels": [0, 2], "segmentation_channel_cytosol": 0}
    np.testing.assert_array_equal(seen(image, rules, channels=["WGA", 0]), image[[1, 0]])
    np.testing.assert_array_equal(seen(image, rules, channels=["WGA", 0], own=("CD45",)), image[[2]])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float32", "float64"])
def test_a_projection_keeps_the_dtype(dtype):
    found = seen(pixels(dtype), {"combine_nucleus_channels": [0, 2]})
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], pixels(dtype)[[0, 2]].max(axis=0))


def test_rules_reach_each_mask():
    image = np.zeros((3, 60, 60), np.uint8)
    for channel, at in enumerate([5, 25, 45]):
        image[channel, at : at + 8, at : at + 8] = 200
    sdata = an_object(image, NAMES)
    flow = Workflow(
        nucleus=ThresholdNuclei(sigma=0), cell=ExpandNuclei(distance=2), combine_nucleus_channels=["DAPI", "CD45"]
    )
    segment(sdata, "image", flow, progress=False, shard_size=30 * 30)
    table = sdata["segmentation_table"]
    assert table.n_obs == 2
    assert read_metadata(table)["channels"] == {"nucleus": ["max(DAPI, CD45)"], "cell": []}
    assert read_metadata(table)["workflow"]["combine_nucleus_channels"] == ["DAPI", "CD45"]
    single = flow.model_copy(update={"cell": None})
    np.testing.assert_array_equal(
        label_image(da.from_array(image), single.model_copy(update={"combine_nucleus_channels": (0, 2)})) > 0,
        sdata["segmentation_nucleus_labels"].to_numpy() > 0,
    )


def test_cytosol_of_an_image_with_one_channel():
    image = pixels()[:1]
    np.testing.assert_array_equal(seen(image, {"segmentation_channel_cytosol": 0}, names=["DAPI"]), image[[0, 0]])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"combine_nucleus_channels": [0]}, "at least 2 items"),
        ({"segmentation_channel_nuclei": [0, 1]}, r"\[0, 1\] are 2 channels, expected one: .* combine_"),
        ({"segmentation_channel_nuclei": []}, "are 0 channels"),
        ({"segmentation_channel_nuclei": -1}, "greater than or equal to 0"),
        ({"segmentation_channel_cytosol": True}, "valid integer"),
        ({"combine_cytosol_channels": [0, 1.5]}, "valid integer"),
    ],
)
def test_rules_that_cannot_be(rules, message):
    with pytest.raises(ValidationError, match=message):
        Workflow(cell=len, **rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"segmentation_channel_nuclei": "GFP"}, "no channel 'GFP'; its channels: 0: 'DAPI'"),
        ({"combine_nucleus_channels": [0, 3]}, "no channel 3; expected 0 to 2"),
    ],
)
def test_rules_that_name_no_channel(rules, message):
    with pytest.raises(MissingError, match=message):
        plan(an_object(pixels(), NAMES), "image", Workflow(nucleus=ThresholdNuclei(), **rules))


def test_too_few_channels_say_what_was_expected():
    class Both(ThresholdNuclei):
        default_channels = (1, 0)

    sdata = an_object(pixels()[:1], ["DAPI"])
    with pytest.raises(InputError, match=r"needs 2 channels \(0: nuclear, 1: membrane stain\), but 1 is given"):
        segment(sdata, "image", Both(), progress=False)
    assert plan(sdata, "image", Workflow(cell=Both(), segmentation_channel_cytosol=0)).masks["cell"].n_shards == 1


def test_rules_round_trip_and_decide_the_fingerprint():
    flows = [
        Workflow(nucleus=ThresholdNuclei(), **rules)
        for rules in (
            {}, {"segmentation_channel_nuclei": 1}, {"segmentation_channel_nuclei": "1"},
            {"combine_nucleus_channels": [1, "WGA"]}, {"combine_cytosol_channels": [1, "WGA"]},
        )
    ]  # fmt: skip
    for flow in flows:
        assert Workflow(**json.loads(flow.model_dump_json())) == flow
    assert len({json.dumps(flow.fingerprint(), sort_keys=True) for flow in flows}) == len(flows)


def test_channels_of_one_name_are_told_apart():
    sdata = an_object(pixels(), ["DAPI", "WGA", "WGA"])
    found = []
    for channel in (1, 2):
        segment(sdata, "image", channels=channel, overwrite=True, progress=False)
        found.append(read_metadata(sdata["segmentation_table"])["channels"]["nucleus"])
    assert found == [["WGA (1)"], ["WGA (2)"]]


# --- stains -----------------------------------------------------------------------------------------------

HE = data.immunohistochemistry()[:120, :170].transpose(2, 0, 1)


@pytest.mark.parametrize(
    "image", [HE, HE.astype("uint16") * 257, (HE / 255).astype("float32"), HE / 255], ids=["u8", "u16", "f4", "f8"]
)
@pytest.mark.parametrize(("stain", "at"), [("haematoxylin", 0), ("hematoxylin", 0), ("eosin", 1)])
def test_a_stain_is_that_of_scikit_image(image, stain, at):
    found = seen(image, {}, names=None, channels=stain)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], rgb2hed(HE, channel_axis=0)[at], atol=1e-6)


def test_a_stain_beside_a_channel():
    found = seen(HE, {"segmentation_channel_nuclei": "haematoxylin"}, names=["r", "g", "b"])
    np.testing.assert_array_equal(found[1:], HE[1:])
    assert found[0].max() < 1


def test_a_stain_is_the_same_for_every_plan(tmp_path):
    an_object(HE, ["r", "g", "b"], (1, 47, 53)).write(tmp_path / "store.zarr")
    sdata = sd.read_zarr(tmp_path / "store.zarr")
    flow = Workflow(nucleus=ThresholdNuclei(sigma=1), median_filter_size=1)
    for key, side in {"whole": 500, "parts": 61, "small": 45}.items():
        segment(sdata, "image", flow, channels="haematoxylin", key_added=key, shard_size=side**2, progress=False)
        np.testing.assert_array_equal(sdata[f"{key}_nucleus_labels"], sdata["whole_nucleus_labels"])
    assert sdata["whole_table"].n_obs > 5
    assert read_metadata(sdata["whole_table"])["channels"] == {"nucleus": ["haematoxylin"]}
    named = label_image(sdata["image"], flow, channels="hematoxylin")
    np.testing.assert_array_equal(named > 0, sdata["whole_nucleus_labels"] > 0)
    assert preview(sdata, "image", flow, channels="haematoxylin", size=100)["segmentation_table"].n_obs


def test_a_channel_of_that_name_is_the_channel():
    image = pixels()
    np.testing.assert_array_equal(seen(image, {}, names=["a", "eosin", "b"], channels="eosin"), image[[1]])


def test_stains_that_cannot_be():
    with pytest.raises(InputError, match=r"no channel 'haematoxylin'.*exactly 3 channels; its channels: 0: 'DAPI'"):
        segment(an_object(pixels()[:2], NAMES[:2]), "image", channels="haematoxylin", progress=False)
    with pytest.raises(InputError, match="uint8, uint16, or floats from 0 to 1, and image 'image' has dtype int32"):
        segment(an_object(pixels("int32"), NAMES), "image", channels="eosin", progress=False)
    with pytest.raises(InputError, match=r"199\.0.*expected floats from 0 to 1"):
        segment(an_object(pixels("float32"), NAMES), "image", channels="eosin", progress=False)

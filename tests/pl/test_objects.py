"""Pictures of objects by name: the same pixels and outlines as of their arrays, and errors that name what is there."""

from __future__ import annotations

import dask.array as da
import matplotlib as mpl
import numpy as np
import pytest
import spatialdata as sd
from matplotlib.collections import LineCollection, PathCollection
from spatialdata.models import Image2DModel

from spatialdata_segment import ExpandNuclei, SizeFilter, ThresholdNuclei, Workflow, pl, segment
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.pl._marks import bar_length, length_text
from spatialdata_segment.testing import Tissue

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore")

FLOW = Workflow(
    nucleus=ThresholdNuclei(threshold="otsu", channels="DAPI"),
    cell=ExpandNuclei(distance=3),
    filter_masks_size=True,
    nucleus_size=SizeFilter(min_size=80),
)
CROP = (slice(20, 100), slice(30, 150))


@pytest.fixture(scope="module")
def sdata():
    tissue = Tissue((150, 170), seed=4, cell_diameter=20, debris=0.3).to_spatialdata()
    return segment(tissue, "image", FLOW, pixel_size=0.5, progress=False, n_jobs=1)


@pytest.fixture(autouse=True)
def _closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def masks(sdata):
    return {m: sdata[f"segmentation_{m}_labels"] for m in ("nucleus", "cell")}


def lines(ax):
    return {c.get_label(): np.array(c.get_segments()) for c in ax.collections if isinstance(c, LineCollection)}


@pytest.mark.parametrize("named", ["image", None])
def test_an_object_is_drawn_as_its_arrays(sdata, named):
    one, other = pl.overlay(sdata, named, crop=CROP), pl.overlay(sdata["image"], masks(sdata), crop=CROP, channels=[0])
    np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())
    assert one.images[0].get_extent() == other.images[0].get_extent() == [30, 150, 100, 20]
    assert list(lines(one)) == list(lines(other)) == ["nucleus", "cell"]
    for name, segments in lines(one).items():
        np.testing.assert_array_equal(segments, lines(other)[name])


def test_a_labels_element_by_its_name_and_none(sdata):
    alone = pl.overlay(sdata, "image", key="segmentation_nucleus_labels")
    np.testing.assert_array_equal(lines(alone)["cell"], lines(pl.overlay(sdata))["nucleus"])
    assert not pl.overlay(sdata, "image", key=None).collections


def test_channels_by_name_with_colours(sdata):
    by_name = pl.overlay(sdata, channels=["WGA", "DAPI"]).images[0].get_array()
    np.testing.assert_array_equal(by_name, pl.overlay(sdata, channels=[1, 0]).images[0].get_array())
    ax = pl.overlay(sdata, channels={"DAPI": "red", "WGA": "#0000ff"}, legend=True)
    picture = ax.images[0].get_array()
    assert picture[..., 1].max() == 0
    np.testing.assert_array_equal(picture[..., 0], pl.overlay(sdata, channels="DAPI").images[0].get_array()[..., 0])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["DAPI", "WGA", "nucleus", "cell"]
    array = pl.overlay(sdata["image"], channels={1: "lime"}).images[0].get_array()
    assert array[..., [0, 2]].max() == 0
    assert array[..., 1].max() == 1


def test_dropped_candidates_are_boxed_by_reason(sdata):
    rows = sdata["segmentation_candidates"].obs
    rows = rows[~rows["is_kept"]]
    assert len(rows) > 2
    drawn = lines(pl.overlay(sdata, dropped=True))
    found = {name: len(segments) for name, segments in drawn.items() if name not in ("nucleus", "cell")}
    counts = rows["drop_reason"].astype(str).value_counts()
    assert found == {f"{r.replace('_', ' ')} ({n})": n for r, n in counts.items() if n}
    row = rows.iloc[0]
    x, y = int(row["bbox_x_min"]), int(row["bbox_y_min"])
    elsewhere = pl.overlay(sdata, dropped=True, crop=(slice(y, y + 1), slice(x, x + 1)))
    over = (rows["bbox_x_min"] <= x) & (rows["bbox_x_max"] > x) & (rows["bbox_y_min"] <= y) & (rows["bbox_y_max"] > y)
    assert 1 <= over.sum() < len(rows)
    assert sum(len(s) for name, s in lines(elsewhere).items() if name not in ("nucleus", "cell")) == over.sum()


def test_small_boxes_become_points(sdata):
    ax = mpl.figure.Figure(figsize=(0.5, 0.5)).add_subplot()
    pl.overlay(sdata, dropped=True, ax=ax)
    points = [c for c in ax.collections if isinstance(c, PathCollection)]
    dropped = int((~sdata["segmentation_candidates"].obs["is_kept"]).sum())
    assert sum(len(p.get_offsets()) for p in points) == dropped
    assert all(p.get_sizes().min() >= 4**2 for p in points)  # square points: as wide as the least box


def test_the_scale_bar_is_as_long_as_it_says(sdata):
    (bar,) = pl.overlay(sdata).artists
    assert bar.txt_label.get_text() == "10 µm"  # a fifth of 170 px of 0.5 µm are 17
    assert bar.size_bar.get_children()[0].get_width() == 20
    assert not pl.overlay(sdata["image"]).artists
    assert len(pl.overlay(sdata["image"], pixel_size=0.1).artists) == 1


@pytest.mark.parametrize(("size", "width", "text"), [(1, 100, "20 µm"), (0.65, 40_000, "5 mm"), (0.1, 12, "0.2 µm")])
def test_lengths_of_scale_bars(size, width, text):
    assert length_text(bar_length(size, width)) == text


def test_one_scale_that_is_too_large_is_thinned():
    pixels = da.zeros((1, 7000, 7000), chunks=(1, 3500, 3500), dtype=np.uint8)
    ax = pl.overlay(pixels, da.ones((7000, 7000), chunks=3500, dtype=np.uint8))
    assert ax.images[0].get_array().shape[:2] == (1750, 1750)
    assert ax.images[0].get_extent() == [0, 7000, 7000, 0]


def test_save_overlay_of_an_object(sdata, tmp_path):
    pl.save_overlay(tmp_path / "a.png", sdata, "image", crop=CROP, zoom=2, channels=["WGA"])
    from skimage.io import imread

    assert imread(tmp_path / "a.png").shape[:2] == (160, 240)


def test_volumes_of_an_object():
    tissue = Tissue((12, 60, 70), seed=1, cell_diameter=16).to_spatialdata()
    flow = ThresholdNuclei(threshold="otsu")
    volume = segment(tissue, "image", flow, pixel_size=(2, 1, 1), progress=False, n_jobs=1)
    image, labels = volume["image"], volume["segmentation_cell_labels"]
    for named, arrays in (
        (pl.overlay(volume, z=6), pl.overlay(image, labels, z=6, channels=[0])),
        (pl.maximum_projection(volume), pl.maximum_projection(image, labels, channels=[0])),
        (pl.orthogonal_views(volume)[1], pl.orthogonal_views(image, labels, channels=[0], pixel_size=(2, 1, 1))[1]),
    ):
        np.testing.assert_array_equal(named.images[0].get_array(), arrays.images[0].get_array())
        assert len(named.collections[0].get_segments()) == len(arrays.collections[0].get_segments()) > 0
        assert named.get_aspect() == arrays.get_aspect()
    with pytest.raises(InputError, match="pass z="):
        pl.overlay(volume)


def test_the_scale_that_was_segmented_is_the_grid():
    pixels = Tissue((128, 128), seed=2, cell_diameter=24).to_spatialdata()["image"].data
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DAPI", "WGA"], scale_factors=[2])
    coarse = segment(sd.SpatialData(images={"image": image}), "image", scale="scale1", progress=False, n_jobs=1)
    ax = pl.overlay(coarse, "image")
    assert ax.images[0].get_array().shape[:2] == (64, 64)
    coarse["other"] = Image2DModel.parse(pixels[:, :50], dims=("c", "y", "x"))
    with pytest.raises(InputError, match=r"scales of .* and the labels"):
        pl.overlay(coarse, "other")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("no",), {}, MissingError, "no image 'no'.*'image'"),
        (("image",), {"key": "other"}, MissingError, "no segmentation 'other'.*Segmentations there: 'segmentation'"),
        (("image",), {"channels": ["CD3"]}, MissingError, "no channel 'CD3': expected one of 'DAPI', 'WGA'"),
        (("image",), {"channels": {"DAPI": "greenish"}}, InputError, "'greenish' is no colour"),
        ((np.zeros((3, 3)),), {}, InputError, "expected the name of an image in it, not ndarray"),
        (("image",), {"key": None, "dropped": True}, InputError, "dropped=True needs an object with a result"),
    ],
)
def test_wrong_names_are_told(sdata, arguments, options, error, message):
    with pytest.raises(error, match=message):
        pl.overlay(sdata, *arguments, **options)


def test_what_needs_an_object(sdata):
    with pytest.raises(InputError, match="names need an object"):
        pl.overlay(sdata["image"], channels=["DAPI"])
    bare = sd.SpatialData(images={"a": sdata["image"], "b": sdata["image"]})
    with pytest.raises(MissingError, match="has 2 images"):
        pl.overlay(bare, key=None)
    bare["mine"] = sdata["segmentation_cell_labels"]
    with pytest.raises(MissingError, match="no table mine_candidates"):
        pl.overlay(bare, "a", key="mine", dropped=True)

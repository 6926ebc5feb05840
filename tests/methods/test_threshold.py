"""`ThresholdNuclei`: every parameter acts, mistakes are told, and windows agree."""

import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import binary_dilation, binary_erosion, disk

from spatialdata_segment import ThresholdNuclei
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.whole import measure_image, usual_radius
from spatialdata_segment.methods.base import ImageInfo, View
from spatialdata_segment.testing import MethodTests, Tissue, match_scores
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

SHAPE = 300, 320
TISSUE = Tissue(SHAPE, seed=4, cell_diameter=24, density=0.8)


@pytest.fixture(scope="module")
def image():
    """A field four times as bright on the left as on the right."""
    pixels = TISSUE.block(Box.whole(SHAPE)).image[:1].copy()
    pixels[..., SHAPE[1] // 2 :] //= 4
    pixels.flags.writeable = False
    return pixels


def run(image, **parameters):
    """Return the method with what it measured, its mask, labels, anchors, and reasons, on the whole image."""
    method = ThresholdNuclei(**parameters)
    info = ImageInfo(image.shape[1:], image.dtype)
    plan = Plan.fewest(info.shape, 10**9, (0,) * info.ndim)
    source = da.from_array(np.asarray(image), chunks=-1)
    statistics = measure_image(source, method.statistics(info), plan, Executor(1), "statistics")
    method = method.adapted(info, statistics)
    box = Box.whole(info.shape)
    view = View(Window(box, box, box), info, statistics)
    maps = method.predict(image, view)
    return method, maps[0].astype(bool), method.decode(maps, view)


def _f1(truth, found):
    kept = np.concatenate([[False], found.reasons == 0])
    return match_scores(truth, np.where(kept[found.labels], found.labels, 0), [0.5]).f1[0]


class TestByLocalContrast(MethodTests):
    method = ThresholdNuclei()


class TestByLocalOtsu(MethodTests):
    method = ThresholdNuclei(threshold="local-otsu", otsu_block=16, min_distance=4, debris=0)


class TestAsInScPortrait(MethodTests):
    method = ThresholdNuclei.scportrait(median_block=21, median_step=2, speckle_kernel=3, dilation=1)

    @pytest.fixture
    def image(self):
        """Nuclei on a ground that is dark in every square of 42 px."""
        y, x = np.mgrid[:75, :91]
        image = np.random.default_rng(3).integers(0, 60, (1, 75, 91)).astype(np.uint16)
        for b, a in ((12, 15), (35, 40), (38, 52), (60, 80), (70, 20), (14, 70)):
            image[0][(y - b) ** 2 + (x - a) ** 2 <= 7**2] += 900
        image.flags.writeable = False
        return image


class TestByLocalContrastIn3D(MethodTests):
    method = ThresholdNuclei(object_radius=2, debris=0.05)
    ndim = 3


def test_both_sides_of_an_uneven_field_are_found(image):
    truth = TISSUE.block(Box.whole(SHAPE)).nuclei
    _, _, found = run(image)
    assert _f1(truth, found) > 0.85
    _, _, otsu = run(image, threshold="otsu")
    assert _f1(truth, otsu) < 0.7


@pytest.mark.parametrize("radius", [6, 12, 25])
def test_radius_is_estimated(radius):
    y, x = np.mgrid[:600, :700]
    image = np.zeros(y.shape, np.uint8)
    rng = np.random.default_rng(0)
    for b in range(40, 600, 60):
        for a in range(40, 700, 60):
            image[(y - b - rng.integers(-4, 4)) ** 2 + (x - a) ** 2 <= radius**2] = 200
    assert usual_radius(da.from_array(image), 100.0, Executor(1)) == pytest.approx(radius, rel=0.15)
    assert usual_radius(da.from_array(image, chunks=97), 100.0, Executor(2)) == usual_radius(
        da.from_array(image), 100.0, Executor(1)
    )


def test_radius_of_nothing_is_the_usual_one():
    assert usual_radius(da.zeros((50, 50), dtype=np.uint8), 0.0, Executor(1)) == 10.0


def test_radius_of_a_large_image_is_read_in_windows():
    """36 windows of 512 px, however large the image is."""
    read = []

    def block(block_info=None):
        at = block_info[None]["array-location"]
        read.append(at)
        y, x = np.mgrid[at[0][0] : at[0][1], at[1][0] : at[1][1]]
        return (((y % 40) - 20) ** 2 + ((x % 40) - 20) ** 2 <= 100).astype(np.uint8)

    image = da.map_blocks(block, chunks=((512,) * 40, (512,) * 40), dtype=np.uint8)
    read.clear()
    assert usual_radius(image, 0.5, Executor(1)) == pytest.approx(10, abs=1)
    assert len(set(map(str, read))) <= 36 * 9


PARAMETERS = {
    "threshold": ({"threshold": 300.0}, {"threshold": 2000.0}),
    "otsu": ({"threshold": "otsu"}, {}),
    "local-otsu": ({"threshold": "local-otsu"}, {"threshold": "otsu"}),
    "otsu_block": ({"threshold": "local-otsu", "otsu_block": 32}, {"threshold": "local-otsu", "otsu_block": 80}),
    "contrast": ({"contrast": 0.2}, {"contrast": 0.6}),
    "min_contrast": ({"min_contrast": 0.0}, {"min_contrast": 0.8}),
    "object_radius": ({"object_radius": 4}, {"object_radius": 20}),
    "lower_quantile_normalization": (
        {"lower_quantile_normalization": 0.0, "threshold": 0.1},
        {"lower_quantile_normalization": 0.7, "threshold": 0.1},
    ),
    "upper_quantile_normalization": (
        {"upper_quantile_normalization": 1.0, "threshold": 0.1},
        {"upper_quantile_normalization": 0.8, "threshold": 0.1},
    ),
    "median_filter_size": ({"median_filter_size": 4}, {}),
    "sigma": ({"sigma": 0}, {"sigma": 3}),
    "median_block": (
        {"median_block": 9, "threshold": 0.1, "upper_quantile_normalization": 0.9},
        {"median_block": 31, "threshold": 0.1, "upper_quantile_normalization": 0.9},
    ),
    "median_step": (
        {"median_block": 9, "threshold": 0.1, "upper_quantile_normalization": 0.9, "median_step": 2},
        {"median_block": 9, "threshold": 0.1, "upper_quantile_normalization": 0.9, "median_step": 6},
    ),
    "speckle_kernel": ({"speckle_kernel": 5}, {}),
    "min_distance": ({"min_distance": 3}, {"min_distance": 16}),
    "peak_footprint": ({"peak_footprint": 20}, {}),
    "dilation": ({"dilation": 3}, {}),
    "contact_filter": ({"contact_filter": 1.0}, {}),
    "debris": ({"debris": 0.6}, {"debris": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_acts(image, name):
    (_, _, one), (_, _, other) = (run(image, **given) for given in PARAMETERS[name])
    kept = [np.concatenate([[False], d.reasons == 0])[d.labels] * (1 + d.labels) for d in (one, other)]
    assert not np.array_equal(*kept)


def test_a_threshold_alone_acts(image):
    _, mask, _ = run(image, threshold=700.0, sigma=0)
    np.testing.assert_array_equal(mask, image[0] > 700)


def test_one_quantile_alone_works(image):
    top = np.quantile(image, 0.9)
    _, mask, _ = run(image, threshold=0.25, sigma=0, upper_quantile_normalization=0.9)
    low = float(image.min())
    np.testing.assert_array_equal(mask, np.clip((image[0] - low) / (top - low), 0, 1).astype(np.float32) > 0.25)
    _, mask, _ = run(image, threshold=0.25, sigma=0, lower_quantile_normalization=0.5)
    low = np.quantile(image, 0.5)
    np.testing.assert_array_equal(mask, np.clip((image[0] - low) / (image.max() - low), 0, 1).astype(np.float32) > 0.25)


def test_otsu_is_that_of_the_image_whatever_the_scale(image):
    expected = image[0] > threshold_otsu(image)
    for quantiles in ({}, {"lower_quantile_normalization": 0.01, "upper_quantile_normalization": 0.999}):
        _, mask, _ = run(image, threshold="otsu", sigma=0, **quantiles)
        assert (mask == expected).mean() > 0.999


def test_speckles_go_by_erosion_and_dilation(image):
    _, plain, _ = run(image, threshold=700.0, sigma=0)
    _, mask, _ = run(image, threshold=700.0, sigma=0, speckle_kernel=3)
    eroded = binary_erosion(plain, disk(3))
    np.testing.assert_array_equal(mask, binary_dilation(eroded, disk(2)))


def test_dilation_grows_the_mask_that_is_flooded(image):
    _, plain, _ = run(image, threshold=700.0, sigma=0)
    _, mask, found = run(image, threshold=700.0, sigma=0, dilation=2, debris=0)
    np.testing.assert_array_equal(mask, plain)
    np.testing.assert_array_equal(found.labels != 0, binary_dilation(plain, disk(2)))


def test_median_removes_specks():
    image = np.zeros((1, 60, 60), np.uint16)
    image[0, 20:40, 20:40] = 1000
    image[0, ::7, ::7] = 1000
    _, mask, _ = run(image, threshold=500.0, sigma=0, median_filter_size=2)
    assert ndimage.label(mask)[1] == 1


def test_peaks_within_the_footprint_are_one_though_they_do_not_see_each_other():
    mask = np.zeros((1, 40, 60), np.uint8)
    mask[0, 10:30, 10:28] = 200
    mask[0, 10:30, 29:48] = 200  # a pixel of background between
    apart = run(mask, threshold=100.0, sigma=0, min_distance=30, debris=0)[2]
    assert apart.labels.max() == 2
    joined = run(mask, threshold=100.0, sigma=0, min_distance=30, debris=0, peak_footprint=25)[2]
    assert joined.labels.max() == 1


def test_what_is_rejected_has_a_reason():
    image = np.zeros((1, 80, 80), np.uint8)
    y, x = np.mgrid[:80, :80]
    for a in (25, 47):  # neighbours that touch
        image[0][(y - 25) ** 2 + (x - a) ** 2 <= 13**2] = 200
    image[0, 60:64, 60:64] = 200  # debris
    _, _, found = run(image, threshold=100.0, sigma=0, object_radius=15, min_distance=10, contact_filter=0.9)
    reasons = sorted(Reason(int(r)).text for r in found.reasons)
    assert reasons == ["low_contact", "low_contact", "too_small"]


def test_cells_at_the_border_stay(image):
    _, _, found = run(image)
    edge = np.concatenate([found.labels[0], found.labels[-1], found.labels[:, 0], found.labels[:, -1]])
    assert (found.reasons[np.unique(edge[edge > 0]) - 1] == 0).sum() > 10


def test_flat_and_saturated_images_have_no_nuclei():
    for value in (0, 255):
        _, _, found = run(np.full((1, 64, 64), value, np.uint8))
        assert not found.labels.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.1, "median_block": 40}, "median_block=40 is even, expected an odd number: 39 or 41"),
        ({"speckle_kernel": 8}, "speckle_kernel=8 is even"),
        ({"lower_quantile_normalization": 0.5, "upper_quantile_normalization": 0.5}, "is not below"),
        ({"median_block": 41}, "needs a number as threshold"),
        ({"threshold": "otsu", "median_block": 41}, "needs a number as threshold"),
        ({"median_step": 2}, "median_step=2 has no effect"),
        ({"otsu_block": 64}, "otsu_block=64 has no effect"),
        ({"threshold": 5.0, "contrast": 0.5}, "contrast=0.5 has no effect"),
        ({"threshold": 5.0, "min_distance": 4, "debris": 0, "object_radius": 9}, "object_radius=9.0 has no effect"),
        ({"threshold": "ostu"}, "Input should be 'otsu' or 'local-otsu'"),
        ({"contact_filter": 1.5}, "less than or equal to 1"),
        ({"median_filter_size": 0}, "greater than or equal to 1"),
        ({"object_radius": 0.5}, "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told(given, message):
    with pytest.raises(ValidationError, match=message):
        ThresholdNuclei(**given)


@pytest.mark.parametrize(("pixels", "value"), [(16, 65535), (36, 40000), (81, 30000)])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"threshold": "otsu", "upper_quantile_normalization": 0.995}, {"upper_quantile_normalization": 0.995}],
)
def test_a_speck_of_debris_does_not_decide(pixels, value, parameters):
    image = TISSUE.block(Box.whole(SHAPE)).image[:1] // 5
    clean = run(image, **parameters)[2]
    dirty = image.copy()
    side = int(pixels**0.5)
    dirty[0, 5 : 5 + side, 5 : 5 + side] = value
    found = run(dirty, **parameters)[2]
    assert abs(int((found.reasons == 0).sum()) - int((clean.reasons == 0).sum())) <= 4


def test_a_local_median_is_one_whatever_the_units(image):
    levels = image.astype(np.float64) / 65535
    _, mask, _ = run(image, threshold=300.0, median_block=31, sigma=0)
    assert 0.05 < mask.mean() < 0.6
    for other, threshold in ((image + np.uint16(1000), 300.0), (levels - 1, 300 / 65535), (image.astype("f4"), 300.0)):
        _, found, _ = run(other, threshold=threshold, median_block=31, sigma=0)
        assert (found == mask).mean() > 0.998


@pytest.mark.parametrize("offset", [2**26, 2**31])
def test_a_large_offset_changes_nothing(image, offset):
    _, mask, _ = run(image)
    _, found, _ = run(image.astype(np.int64) + offset)
    assert (found == mask).mean() > 0.995


def test_values_of_scportrait():
    method = ThresholdNuclei.scportrait(dilation=2)
    assert method.model_dump(exclude_defaults=True) == {
        "threshold": 0.2, "lower_quantile_normalization": 0.01, "upper_quantile_normalization": 0.99, "sigma": 0.0,
        "median_block": 41, "speckle_kernel": 9, "min_distance": 8, "peak_footprint": 7, "dilation": 2,
        "contact_filter": 0.5, "debris": 0.0,
    }  # fmt: skip
    assert not any(s.kind == "radius" for s in method.statistics(ImageInfo((9, 9), np.dtype("u1"))))


METHODS = {
    "default": ThresholdNuclei(),
    "radius 5": ThresholdNuclei(object_radius=5, min_contrast=0, debris=0.3),
    "scportrait": ThresholdNuclei.scportrait(median_filter_size=2),
    "local otsu": ThresholdNuclei(threshold="local-otsu", otsu_block=20, peak_footprint=9, contact_filter=0.6),
}


@pytest.mark.parametrize("name", METHODS)
@settings(
    max_examples=4, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    data=st.data(), seed=st.integers(0, 99), kind=st.sampled_from(["16 bit", "8 bit", "flat and saturated", "noise"]),
)  # fmt: skip
def test_tiling_invariance(data, name, seed, kind, tmp_path_factory):
    shape = 310, 290
    image = Tissue(shape, seed=seed, cell_diameter=16, density=0.8).block(Box.whole(shape)).image[:1]
    if kind == "8 bit":
        image = (image >> 6).clip(0, 255).astype(np.uint8)
    elif kind == "flat and saturated":
        image = (image // 700 * 80).clip(0, 160).astype(np.uint8)
    elif kind == "noise":
        image = np.random.default_rng(seed).integers(0, 4, (1, *shape), dtype=np.uint8)
    core = [data.draw(st.integers(100, 250)) for _ in shape]
    first = [data.draw(st.integers(0, c)) for c in core]
    plan = make_plan(shape, core, (0, 0), first)  # the method's least halo
    method = METHODS[name]
    whole = tile(image, method, whole_plan(shape), tmp_path_factory.mktemp("whole"))
    parts = tile(image, method, plan, tmp_path_factory.mktemp("parts"))
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_array_equal(whole.anchors, parts.anchors)
    np.testing.assert_array_equal(whole.mask.objects.reason, parts.mask.objects.reason)
    assert parts.mask.evidence["contested_px"] == 0


@pytest.mark.parametrize("radius", [5.0, 6.8, 12.0])
def test_a_halo_has_room_for_what_touches(radius):
    """Beyond the context: a nucleus in a plane; two in a volume, where nearly all touch others."""
    method = ThresholdNuclei(object_radius=radius)
    for shape, nuclei in (((900, 900), 1), ((900, 900, 900), 2)):
        image = ImageInfo(shape, np.dtype(np.uint16))
        room = np.array(method.halo(image)) - method.context(image)
        assert (room >= nuclei * 2 * radius).all()


def test_dense_volumes_are_not_looked_at_again(tmp_path):
    image = Tissue((72, 72, 150), seed=1, channels=("DAPI",), cell_diameter=16).image().compute()
    method = ThresholdNuclei(threshold="otsu", object_radius=4)
    halo = method.halo(ImageInfo(image.shape[1:], image.dtype))
    found = tile(image, method, make_plan(image.shape[1:], (72, 72, 50), halo), tmp_path)
    assert found.mask.evidence["shards"] == 3
    assert len(found.anchors) > 100
    assert found.mask.evidence["again"] == 0

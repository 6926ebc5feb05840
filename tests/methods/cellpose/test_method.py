"""`Cellpose`: the contract of methods, every setting, mistakes, windows, and the whole way into SpatialData."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from spatialdata.models import Image2DModel

from spatialdata_segment import Cellpose, Normalization, Workflow, segment
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.core.resize import nearest
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.whole import measure_image
from spatialdata_segment.errors import InputError, MissingError, ShardError
from spatialdata_segment.methods.base import ImageInfo, View
from spatialdata_segment.testing import MethodTests, Tissue, match_scores
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

torch = pytest.importorskip("torch")

SHAPE = 130, 150
TISSUE = Tissue(SHAPE, seed=3, cell_diameter=16, density=0.8)
PLAIN = {"diameter": 17.0, "tile_size": 64}
"""At the scale of the network, in tiles that are smaller than the image."""

few = settings(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def locked(array):
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def image():
    return locked(TISSUE.block(Box.whole(SHAPE)).image)


@pytest.fixture
def cellpose(cells_file):
    """Make a method with the network that finds bright spots; settings replace those of `PLAIN`."""

    def make(**given):
        given = {**({} if "rescale" in given else {"diameter": 17.0}), "tile_size": 64, **given}
        return Cellpose(**{"model_path": cells_file, **given})

    return make


def prepared(method, image):
    """Return the method as it is adapted to an image, what is known of that, and its statistics."""
    info = ImageInfo(image.shape[1:], image.dtype, n_channels=len(image))
    plan, source = Plan.fewest(info.shape, 10**9, (0, 0)), da.from_array(np.asarray(image), chunks=-1)

    def estimate(read, values):
        return method.estimate(read, info, values, method.load("cpu"))

    found = measure_image(source, method.statistics(info), plan, Executor(1), "statistics", diameter=estimate)
    return method.adapted(info, found), info, found


def maps_of(method, image, box=None):
    """Return the method, its maps of a box in full precision, and the view."""
    method, info, found = prepared(method, image)
    whole = Box.whole(info.shape)
    box = box or whole
    view = View(Window(box, box, whole), info, found, model=method.load("cpu"))
    read = box.grow(method.reach(info), whole)
    return method, method.predict(locked(image[:, *read.slices].copy()), view), view


def run(method, image):
    """Return the labels that are kept, and what was decoded, of the whole image."""
    method, maps, view = maps_of(method, image)
    found = method.decode(locked(method.stored(maps)), view)
    return np.where(np.append(False, found.reasons == 0)[found.labels], found.labels, 0), found


def agree(one, other, threshold=0.5):
    return match_scores(one, other, [threshold]).f1[0]


# the contract


class _Contract(MethodTests):
    settings: dict = {}  # noqa: RUF012

    @pytest.fixture(autouse=True, scope="class")
    def _made(self, request, cells_file):
        request.cls.method = Cellpose(model_path=cells_file, **{"tile_size": 64, **self.settings})


class TestAtTheScaleOfTheNetwork(_Contract):
    settings = {"diameter": 17.0}  # noqa: RUF012


class TestEnlargedWithTwoChannels(_Contract):
    settings = {"rescale": 1.3, "channels": (1, 0), "cellprob_threshold": 3.0}  # noqa: RUF012
    n_plans = 2


class TestWithoutResampling(_Contract):
    settings = {"rescale": 0.8, "resample": False, "augment": True}  # noqa: RUF012
    n_plans = 2


# what is found


def test_nuclei_are_found(cellpose, image):
    kept, found = run(cellpose(), image[:1])
    assert agree(TISSUE.block(Box.whole(SHAPE)).nuclei, kept) > 0.6
    assert len(found.anchors) > 50
    edge = np.concatenate([kept[0], kept[-1], kept[:, 0], kept[:, -1]])
    assert len(np.unique(edge)) > 5


def test_diameter_and_rescale_are_one_thing(cellpose, image):
    one, _ = run(cellpose(rescale=2.0), image[:1])
    other, _ = run(cellpose(diameter=8.5), image[:1])
    assert np.array_equal(one, other)
    method, _, _ = prepared(cellpose(rescale=2.0), image[:1])
    assert (method.diameter, method.rescale) == (8.5, 2.0)


def test_an_image_twice_as_large_gives_the_same_cells(cellpose, image):
    small, _ = run(cellpose(), image[:1])
    large = np.repeat(np.repeat(image[:1], 2, axis=1), 2, axis=2)
    for resample in (True, False):
        found, _ = run(cellpose(diameter=34.0, resample=resample), large)
        assert agree(np.repeat(np.repeat(small, 2, 0), 2, 1), found) > 0.8


@pytest.mark.parametrize("rescale", [0.6, 1.7])
def test_resample_decides_on_which_grid_flows_are_followed(cellpose, image, rescale):
    seen = tuple(int(n * rescale) for n in SHAPE)
    fine, maps, _ = maps_of(cellpose(rescale=rescale), image[:1])
    coarse, own, view = maps_of(cellpose(rescale=rescale, resample=False), image[:1])
    assert maps.shape == (3, *SHAPE)
    assert own.shape[0] == 3
    assert all(n - 2 <= m <= n for n, m in zip(seen, own.shape[1:], strict=True))
    assert coarse.maps_box(view.image, view.window.box).shape == own.shape[1:]
    one, other = (run(m, image[:1])[0] for m in (fine, coarse))
    assert one.shape == other.shape == SHAPE
    assert not np.array_equal(one > 0, other > 0)
    assert agree(one, other) > 0.6


def test_every_row_of_the_network_is_followed_without_resampling(cellpose, image):
    """To an enlarging network the last pixel of the image is more than one: paths may end in any of them."""
    _, maps, _ = maps_of(cellpose(rescale=1.7, resample=False), image[:1])
    assert maps.shape[1:] == tuple(int(n * 1.7) for n in SHAPE)


def test_augmenting_averages_mirrored_tiles(cellpose, image):
    _, plain, _ = maps_of(cellpose(), image[:1])
    _, maps, _ = maps_of(cellpose(augment=True), image[:1])
    assert not np.array_equal(plain, maps)
    inner = np.s_[:, 30:-30, 30:-30]
    assert np.corrcoef(plain[inner].ravel(), maps[inner].ravel())[0, 1] > 0.98
    assert agree(run(cellpose(), image[:1])[0], run(cellpose(augment=True), image[:1])[0]) > 0.8


def test_a_mirrored_image_has_mirrored_flows(cellpose, image):
    """With tiles spread alike from both ends; the flow along the mirrored axis changes its sign."""
    pixels = image[:1, :112, :112]
    for augment in (False, True):
        _, maps, _ = maps_of(cellpose(augment=augment), pixels)
        _, turned, _ = maps_of(cellpose(augment=augment), pixels[:, :, ::-1])
        expected = turned[:, :, ::-1] * np.array([1, -1, 1]).reshape(3, 1, 1)
        close = np.isclose(maps, expected, atol=0.05).mean()
        assert close > 0.9, augment


def test_the_second_channel_takes_part(cellpose, image):
    one, _ = run(cellpose(), image[:1])
    both, _ = run(cellpose(), image)
    assert not np.array_equal(one, both)
    black = np.concatenate([image[:1], np.zeros_like(image[:1])])
    assert np.array_equal(run(cellpose(), black)[0], one)


# normalisation


def test_normalisation_is_that_of_percentiles(cellpose, image):
    pixels = image[:1].astype(np.float32)
    low, high = np.percentile(pixels, (1, 99))
    by_hand = (pixels - np.float32(low)) / np.float32(high - low)
    _, maps, _ = maps_of(cellpose(), image[:1])
    _, given, _ = maps_of(cellpose(normalize=False), by_hand)
    np.testing.assert_allclose(maps, given, atol=1e-3)
    pair = Normalization(lowhigh=(float(low), float(high)))
    _, given, _ = maps_of(cellpose(normalize=pair), image[:1])
    np.testing.assert_allclose(maps, given, atol=1e-3)


def test_other_percentiles_act(cellpose, image):
    ends = Normalization(percentile=(0.0, 100.0))
    method, _, found = prepared(cellpose(normalize=ends), image)
    assert sorted(found.values()) == sorted(float(f(c)) for c in image for f in (np.min, np.max))
    assert not np.array_equal(maps_of(method, image)[1], maps_of(cellpose(), image)[1])


def test_units_and_offsets_do_not_matter(cellpose, image):
    kept, _ = run(cellpose(), image[:1])
    for other in (image[:1].astype(np.float32) / 100 - 7, image[:1].astype(np.int32) + 10**5):
        assert agree(kept, run(cellpose(), other)[0], 0.9) > 0.98
    assert agree(run(cellpose(), image)[0], run(cellpose(), image.astype(np.float32))[0], 0.9) > 0.98


def test_levels_that_are_given_may_lie_close_together(cellpose, image):
    """Only percentiles say that a channel is flat."""
    pixels = image[:1].astype(np.float32) * np.float32(1e-7)
    low, high = (float(v) for v in np.percentile(pixels, (1, 99)))
    assert high - low < 1e-3
    kept, _ = run(cellpose(normalize=Normalization(lowhigh=(low, high))), pixels)
    assert agree(run(cellpose(), image[:1])[0], kept) > 0.9


@pytest.mark.parametrize("value", [0, 700])
def test_flat_channels_hold_nothing(cellpose, image, value):
    flat = np.full_like(image[:1], value)
    kept, _ = run(cellpose(), flat)
    assert not kept.any()
    one, _ = run(cellpose(), image[:1])
    assert np.array_equal(run(cellpose(), np.concatenate([image[:1], flat]))[0], one)
    assert np.array_equal(run(cellpose(invert=True), np.concatenate([65535 - image[:1], flat]))[0] > 0, one > 0)


def test_dark_cells_are_found_inverted(cellpose, image):
    kept, _ = run(cellpose(), image[:1])
    dark = np.uint16(65535) - image[:1]
    assert agree(kept, run(cellpose(), dark)[0]) < 0.2
    assert agree(kept, run(cellpose(invert=True), dark)[0], 0.9) > 0.98


# the rules of decoding


def test_rules_act(cellpose, image):
    usual, found = run(cellpose(), image[:1])
    assert (found.reasons == Reason.FLOW_ERROR).any()
    for off in (None, 0):
        kept, loose = run(cellpose(flow_threshold=off), image[:1])
        assert not (loose.reasons == Reason.FLOW_ERROR).any()
        assert len(np.unique(kept)) > len(np.unique(usual))
    strict, _ = run(cellpose(cellprob_threshold=6.0), image[:1])
    assert 0 < (strict > 0).sum() < 0.8 * (usual > 0).sum()
    short, _ = run(cellpose(niter=1), image[:1])
    assert (short > 0).sum() < 0.8 * (usual > 0).sum()
    again, _ = run(cellpose(niter=200), image[:1])
    assert np.array_equal(again, usual)


def test_what_is_too_small_or_too_large_is_told(cellpose, image):
    areas = np.bincount(run(cellpose(), image[:1])[0].reshape(-1))[1:]
    areas = areas[areas > 0]
    least, share = int(np.quantile(areas, 0.3)), float(np.quantile(areas, 0.8)) / np.prod(SHAPE)
    kept, found = run(cellpose(min_size=least, max_size_fraction=share), image[:1])
    for reason in (Reason.TOO_SMALL, Reason.TOO_LARGE):
        assert (found.reasons == reason).sum() > 5
    sizes = np.bincount(kept.reshape(-1))[1:]
    assert sizes[sizes > 0].min() >= least
    _, found = run(cellpose(min_size=-1), image[:1])
    assert not (found.reasons == Reason.TOO_SMALL).any()


# the diameter


def size_file(path, diameter, n=12, diam_mean=17.0):
    """Write a size model that always says one diameter."""
    given = {"A": np.zeros((1, n)), "smean": np.zeros(n), "diam_mean": diam_mean, "ymean": np.log(diameter / diam_mean)}
    np.save(path, given)
    return path


def test_diameter_is_estimated_once_for_the_image(cellpose, image, tmp_path):
    """From the style a first guess; then that of the masks it leads to: a circle of their median area."""
    given = {"diameter": None, "size_model_path": size_file(tmp_path / "size.npy", 12.0)}
    method, _, found = prepared(cellpose(**given), image[:1])
    (diameter,) = [v for s, v in found.items() if s.kind == "diameter"]
    kept, _ = run(cellpose(diameter=12.0, resample=False), image[:1])
    areas = np.bincount(kept.reshape(-1))[1:]
    assert diameter == pytest.approx(2 * np.sqrt(np.median(areas[areas > 0]) / np.pi), rel=0.02)
    assert method.diameter == diameter
    assert method.rescale == pytest.approx(17 / diameter)


def test_size_model_beside_the_weights_is_taken(save_network, image, tmp_path):
    path = save_network(folder=tmp_path)
    alone, _, _ = prepared(Cellpose(model_path=path, tile_size=64), image[:1])
    assert alone.diameter == 17.0  # what the file says of the cells in its training images
    size_file(tmp_path / "weights_size.npy", 9.0)
    beside, _, _ = prepared(Cellpose(model_path=path, tile_size=64), image[:1])
    assert beside.diameter not in (17.0, 9.0)


@pytest.mark.parametrize("given", [{"diameter": 17.0}, {"rescale": 0.5}])
def test_what_is_given_is_not_estimated(cellpose, image, given, monkeypatch):
    monkeypatch.setattr(Cellpose, "estimate", None)
    _, _, found = prepared(cellpose(**given), image[:1])
    assert {s.kind for s in found} == {"quantile"}


def test_diameter_of_nothing(cellpose, image, tmp_path):
    given = {"diameter": None, "size_model_path": size_file(tmp_path / "size.npy", 12.0)}
    method, _, _ = prepared(cellpose(**given), np.zeros_like(image[:1]))
    assert method.diameter == 17.0


def test_windows_of_a_large_image_are_read(cellpose, tmp_path, monkeypatch):
    """However large the image is: nine windows, here small ones."""
    monkeypatch.setattr("spatialdata_segment.methods.cellpose.diameter._WINDOW", 48)
    method = cellpose(diameter=None, size_model_path=size_file(tmp_path / "size.npy", 60.0))
    info, read = ImageInfo((40_000, 50_000), np.dtype(np.uint16)), []

    def pixels(box):
        read.append(box)
        return np.zeros((1, *box.shape), np.uint16)

    found = {s: float(s.value) for s in method.statistics(info)}
    assert method.estimate(pixels, info, found, method.load("cpu")) == 17.0
    assert {b.shape for b in read} == {(48, 48)}
    assert len(set(read)) == 9


# how the network runs


def test_tiles_without_signal_run_once(cellpose, image, monkeypatch):
    from spatialdata_segment.methods.cellpose import run as runs

    pixels = np.zeros((1, 240, 250), np.uint16)
    pixels[:, 90:150, 70:160] = image[:1, :60, :90]
    ran = []
    forward = runs.Network.forward
    monkeypatch.setattr(runs.Network, "forward", lambda self, batch: ran.append(len(batch)) or forward(self, batch))
    _, maps, _ = maps_of(cellpose(), pixels)
    few = sum(ran)
    ran.clear()
    monkeypatch.setattr(runs, "_constant", lambda tile: None)
    _, all_run, _ = maps_of(cellpose(), pixels)
    assert np.array_equal(maps, all_run)
    assert few < 0.7 * sum(ran)


@pytest.mark.parametrize("n", [4, 7])
def test_batches_make_no_difference_that_is_stored(cellpose, image, n):
    method, maps, _ = maps_of(cellpose(batch_size=1), image[:1])
    _, together, _ = maps_of(cellpose(batch_size=n), image[:1])
    np.testing.assert_allclose(maps, together, atol=1e-4)
    stored = [method.stored(m) for m in (maps, together)]
    assert (stored[0] == stored[1]).mean() > 0.999
    assert np.array_equal(run(cellpose(batch_size=1), image[:1])[0] > 0, run(cellpose(batch_size=n), image[:1])[0] > 0)


def test_number_of_threads_makes_no_difference(cellpose, image):
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(maps_of(cellpose(), image[:1])[1].tobytes())
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_precision(cellpose, image):
    _, maps, _ = maps_of(cellpose(), image[:1])
    _, rough, _ = maps_of(cellpose(precision="bfloat16"), image[:1])
    assert not np.array_equal(maps, rough)
    assert np.corrcoef(maps.ravel(), rough.ravel())[0, 1] > 0.99


def test_maps_that_are_not_finite_are_told(save_network, image, tmp_path):
    method = Cellpose(model_path=save_network(second=3e38), **PLAIN)
    with pytest.raises(ShardError, match=r"maps that are not finite in torch\.float32.*check the model"):
        tile(image, method, whole_plan(SHAPE), tmp_path)


# windows


@pytest.fixture(scope="module")
def random_file(save_network):
    return save_network("random", nbase=(2, 3, 4), diameter=30.0)


@settings(few, max_examples=12)
@given(data=st.data(), resample=st.booleans(), augment=st.booleans(), side=st.sampled_from([64, 80, 224]))
def test_maps_of_a_window_are_those_of_the_image(data, random_file, resample, augment, side):
    """Whatever the factor: what a window is given holds all tiles that it needs. Long images of few rows."""
    rescale = data.draw(st.sampled_from([0.11, 0.37, 0.9, 1.0, 1.3, 2.6]))
    n = int(data.draw(st.integers(1, 500)) / rescale) + 1
    image = locked(np.random.default_rng(n).integers(0, 999, (2, 30, n), dtype=np.uint16))
    method = Cellpose(model_path=random_file, rescale=rescale, resample=resample, augment=augment, tile_size=side)
    _, whole, _ = maps_of(method, image)
    start = data.draw(st.integers(0, n - 1))
    box = Box((0, start), (30, data.draw(st.integers(start + 1, min(n, start + 300)))))
    adapted, part, view = maps_of(method, image, box)
    first = start if resample else int(nearest(max(1, int(n * rescale)), n, start, start + 1)[0])
    assert np.array_equal(part[:, : whole.shape[1]], whole[:, :, first : first + part.shape[2]])
    assert adapted.maps_box(view.image, box).shape == part.shape[1:]


@pytest.mark.parametrize(
    ("rescale", "side", "n", "at"),
    [(0.03302, 64, 2574, (291, 2282)), (0.092051, 64, 901, (93, 807)), (0.219777, 64, 382, (342,)),
     (0.160694, 224, 2570, (583,))],
)  # fmt: skip
def test_a_window_is_given_what_its_tiles_need(random_file, rescale, side, n, at):
    """An image is shrunk to whole pixels, and so by a little more than the factor."""
    image = locked(np.random.default_rng(0).integers(0, 999, (1, 30, n), dtype=np.uint16))
    method = Cellpose(model_path=random_file, rescale=rescale, tile_size=side)
    _, whole, _ = maps_of(method, image)
    for start in at:
        _, part, _ = maps_of(method, image, Box((0, start), (30, start + 1)))
        assert np.array_equal(part, whole[:, :, start : start + 1])


WINDOWED = {
    "plain": {"diameter": 17.0},
    "two channels, shrunk": {"rescale": 0.7, "cellprob_threshold": -2.0},
    "enlarged": {"rescale": 1.4, "cellprob_threshold": 2.0},
    "shrunk, not resampled": {"rescale": 0.7, "resample": False},
    "enlarged, not resampled": {"rescale": 1.4, "resample": False, "flow_threshold": None},
    "augmented, small and large ones": {"diameter": 17.0, "augment": True, "min_size": 40, "max_size_fraction": 0.001},
    "short paths, no rules": {"diameter": 17.0, "niter": 9, "min_size": -1, "flow_threshold": None},
}


@pytest.mark.parametrize("name", WINDOWED)
@settings(few, max_examples=3)
@given(data=st.data(), kind=st.sampled_from(["tissue", "tissue", "noise", "half"]))
def test_tiling_invariance(data, name, kind, cells_file, tmp_path_factory):
    """The labels are the same for any plan: with the least halo, cores of any size, objects that look again."""
    shape = data.draw(st.integers(90, 190)), data.draw(st.integers(90, 230))
    seed = data.draw(st.integers(0, 99))
    image = Tissue(shape, seed=seed, cell_diameter=[12, 16, 24][seed % 3], density=0.9).block(Box.whole(shape)).image
    if kind == "noise":
        image = np.random.default_rng(seed).integers(0, 4, (2, *shape), dtype=np.uint16) * 300
    elif kind == "half":
        image[:, :, : shape[1] // 2] = 0
    image = locked(image if "two channels" in name else image[:1])
    method = Cellpose(model_path=cells_file, tile_size=64, **WINDOWED[name])
    core = [data.draw(st.integers(40, n)) for n in shape]
    halo = [data.draw(st.sampled_from([0, 0, 20, 64])) for _ in shape]
    plan = make_plan(shape, core, halo, [data.draw(st.integers(1, c)) for c in core])
    whole = tile(image, method, whole_plan(shape), tmp_path_factory.mktemp("whole"))
    parts = tile(image, method, plan, tmp_path_factory.mktemp("parts"))
    assert np.array_equal(whole.labels, parts.labels)
    assert np.array_equal(whole.anchors, parts.anchors)
    assert np.array_equal(whole.mask.objects.reason, parts.mask.objects.reason)
    assert parts.mask.evidence["contested_px"] == 0


def test_threads_make_no_difference(cellpose, image, tmp_path):
    plan, before = make_plan(SHAPE, (50, 60), (20, 20)), torch.get_num_threads()
    one = tile(image, cellpose(), plan, tmp_path / "one", executor=Executor(1))
    two = tile(image, cellpose(), plan, tmp_path / "two", executor=Executor(3))
    assert one.same_as(two)
    assert torch.get_num_threads() == before


# mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"diameter": 0}, "is 0, expected a number above 0, or None"),
        ({"diameter": -3.0}, "is -3.0, expected a number above 0"),
        ({"rescale": 0.0}, "is 0.0, expected a number above 0"),
        ({"diameter": float("nan")}, "expected a number above 0"),
        ({"diameter": float("inf")}, "finite"),
        ({"diameter": "auto"}, "valid number"),
        ({"diameter": 20, "rescale": 0.5}, r"diameter=20.0 and rescale=0.5 are both given"),
        ({"diameter": 20, "size_model_path": "x"}, "size_model_path has no effect"),
        ({"invert": True, "normalize": False}, "invert=True needs normalize"),
        ({"tile_size": 72}, "tile_size=72 is no multiple of 16: 64 is"),
        ({"tile_size": 48}, "greater than or equal to 64"),
        ({"tile_overlap": 0.6}, "less than or equal to 0.5"),
        ({"tile_overlap": 0.01}, "greater than or equal to 0.05"),
        ({"flow_threshold": -1}, "greater than or equal to 0"),
        ({"max_size_fraction": 0}, "greater than 0"),
        ({"max_size_fraction": 1.5}, "less than or equal to 1"),
        ({"min_size": -2}, "greater than or equal to -1"),
        ({"niter": 0}, "greater than or equal to 1"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"precision": "int8"}, "'float32', 'float16' or 'bfloat16'"),
        ({"normalize": {"percentile": (99, 1)}}, "expected the lower one first"),
        ({"normalize": {"percentile": (-1, 50)}}, "greater than or equal to 0"),
        ({"normalize": {"lowhigh": (5, 5)}}, "expected the lower value first"),
        ({"normalize": {"lowhigh": (1, 5, 9)}}, "lowhigh"),
        ({"normalize": {"lowhigh": ()}}, "lowhigh"),
        ({"normalize": {"lowhigh": (0, 9), "percentile": (2, 98)}}, "both given"),
        ({"normalize": {"sharpen": 3}}, "Extra inputs"),
        ({"normalise": False}, "Extra inputs"),
    ],
)
def test_mistakes_are_told(given, message):
    with pytest.raises(ValidationError, match=message):
        Cellpose("cyto3", **given)


def test_a_model_must_be_named():
    with pytest.raises(ValidationError, match=r"no model: give a name, such as Cellpose\('cyto3'\), or model_path="):
        Cellpose()


def test_a_name_goes_before_a_path(cells_file):
    with pytest.warns(UserWarning, match="model_path=.* is not used: model='cyto3' is given as well"):
        method = Cellpose("cyto3", model_path=cells_file)
    assert method.diam_mean == 30.0


def an_object(pixels, names=None):
    parsed = Image2DModel.parse(da.from_array(pixels, chunks=(1, 64, 77)), dims=("c", "y", "x"), c_coords=names)
    return sd.SpatialData(images={"image": parsed})


def go(sdata, method, **options):
    return segment(sdata, "image", method, **{"n_jobs": 1, "progress": False, "devices": "cpu", **options})


def refused(method, error, message, pixels=None, **options):
    """The call raises before anything runs, and adds nothing."""
    sdata = an_object(np.zeros((2, 70, 80), np.uint16) if pixels is None else pixels)
    with pytest.raises(error, match=message):
        go(sdata, method, **options)
    assert {name for _, name, _ in sdata.gen_elements()} == {"image"}


def test_bad_models_are_told_before_anything_runs(save_network, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "none"))
    good = save_network()
    cut = tmp_path / "cut"
    cut.write_bytes(good.read_bytes()[:3000])
    other = tmp_path / "other"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, other)
    refused(Cellpose("cyto33", diameter=30), MissingError, "did you mean 'cyto3'")
    refused(Cellpose(model_path=tmp_path / "gone", diameter=30), MissingError, "no file .*gone")
    refused(Cellpose(model_path=cut, diameter=30), InputError, "cut is damaged")
    refused(Cellpose(model_path=other, diameter=30), InputError, "no network of Cellpose")
    refused(Cellpose(model_path=save_network("random", nout=4), diameter=30), InputError, "returns 4 maps, expected 3")
    size = size_file(tmp_path / "size.npy", 10.0, n=256)
    refused(Cellpose(model_path=good, size_model_path=size), InputError, "length 256, the network gives 12")


def test_wrong_channels_are_told(cells_file):
    method = {"model_path": cells_file, "diameter": 17}
    three = np.zeros((3, 70, 80), np.uint16)
    refused(Cellpose(channels=(0, 1, 2), **method), InputError, "takes at most 2 channels, and 3 are given", three)
    refused(Cellpose(channels=("CY5",), **method), InputError, "CY5")
    refused(Cellpose(channels=5, **method), InputError, "5")
    refused(Cellpose(**method), InputError, "channel", np.zeros((1, 70, 80), np.uint16))  # a cell mask reads two
    pairs = Normalization(lowhigh=((0, 1), (0, 2), (0, 3)))
    refused(Cellpose(normalize=pairs, **method), InputError, r"expected one pair, or one a channel \(2\)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("devices", ["cuda", "cuda:3", ["cpu", "cuda:0"]])
def test_a_gpu_that_is_not_there_is_an_error(cells_file, devices):
    method = Cellpose(model_path=cells_file, diameter=17)
    refused(method, MissingError, "torch sees no CUDA device here.*devices='auto' or 'cpu'", devices=devices)


def test_pixels_that_are_not_finite_are_told(cells_file):
    pixels = np.zeros((2, 70, 80), np.float32)
    pixels[1, 3, 4] = np.nan
    refused(Cellpose(model_path=cells_file, diameter=17), InputError, "1 NaN or infinite pixels", pixels)


# the whole way


def test_segment(cellpose, image, tmp_path):
    """Labels, outlines and tables are those of the candidates that the method finds; parameters are on record."""
    method = cellpose(channels=("DAPI",), min_size=40, max_size_fraction=80 / (130 * 150))
    sdata = go(an_object(image, ["DAPI", "WGA"]), method, shard_size=70 * 80)
    whole = tile(image[:1], method.model_copy(update={"channels": None}), whole_plan(SHAPE), tmp_path)
    reason = whole.mask.objects.reason
    candidates, table = sdata["segmentation_candidates"].obs, sdata["segmentation_table"]
    assert len(candidates) == len(reason) + len(whole.mask.covered)
    texts = candidates["drop_reason"].astype(str).replace("nan", "").value_counts()
    for code in (Reason.TOO_SMALL, Reason.TOO_LARGE, Reason.FLOW_ERROR):
        assert texts[code.text] == (reason == code).sum() > 0
    assert candidates["is_kept"].sum() == table.n_obs == (reason == 0).sum()
    labels = np.asarray(sdata["segmentation_cell_labels"])
    kept = np.append(False, reason == 0)
    assert np.array_equal(labels, np.where(kept[whole.labels], np.cumsum(kept)[whole.labels], 0))
    assert len(sdata["segmentation_cell_boundaries"]) == table.n_obs
    record = json.loads(json.dumps(table.uns["segmentation"], default=str))
    assert "weights_sha256" in json.dumps(record)


def test_two_masks_of_networks(cellpose, image):
    kept = {"unmatched": "keep", "multinucleated": "keep"}
    flow = Workflow(nucleus=cellpose(), cell=cellpose(cellprob_threshold=-3.0), **kept)
    sdata = go(an_object(image, ["DAPI", "WGA"]), flow)
    assert {"segmentation_nucleus_labels", "segmentation_cell_labels"} <= set(sdata.labels)
    assert sdata["segmentation_table"].n_obs > 5


def test_a_killed_run_goes_on(cellpose, image, tmp_path, monkeypatch):
    """Shards that were finished do not run again, and the result is that of a run which nothing befell."""
    an_object(image[:1]).write(tmp_path / "a.zarr")
    an_object(image[:1]).write(tmp_path / "b.zarr")
    method = cellpose(channels=0)
    options = {"shard_size": 45 * 45, "overlap_px": 64}
    predict, calls = Cellpose.predict, []

    def counted(self, pixels, view):
        calls.append(view.window.core)
        if len(calls) == fails:
            raise RuntimeError("the power is cut")
        return predict(self, pixels, view)

    monkeypatch.setattr(Cellpose, "predict", counted)
    fails = None
    whole = go(sd.read_zarr(tmp_path / "a.zarr"), method, **options)
    every = len(set(calls))
    assert every > 8
    calls.clear()
    fails = 7
    with pytest.raises(ShardError, match="the power is cut"):
        go(sd.read_zarr(tmp_path / "b.zarr"), method, **options)
    calls.clear()
    fails = None
    again = go(sd.read_zarr(tmp_path / "b.zarr"), method, **options)
    assert len(set(calls)) == 1
    assert np.array_equal(whole["segmentation_cell_labels"], again["segmentation_cell_labels"])
    assert whole["segmentation_candidates"].obs.equals(again["segmentation_candidates"].obs)


def test_other_weights_are_another_run(save_network, image, tmp_path):
    """A file that was replaced is told by its content, and loaded again in the same process."""
    path = save_network(folder=tmp_path)
    method = Cellpose(model_path=path, **PLAIN)
    before = method.fingerprint()
    assert before == Cellpose(model_path=path, **PLAIN).fingerprint()
    one = tile(image[:1], method, whole_plan(SHAPE), tmp_path / "one")
    save_network(folder=tmp_path, threshold=0.6)
    assert method.fingerprint() != before
    other = tile(image[:1], method, whole_plan(SHAPE), tmp_path / "other")
    assert (other.labels > 0).sum() < 0.8 * (one.labels > 0).sum()


def test_settings_and_size_models_are_in_the_fingerprint(save_network, tmp_path):
    path = save_network(folder=tmp_path)
    plain = Cellpose(model_path=path)
    before = plain.fingerprint()
    size_file(tmp_path / "weights_size.npy", 9.0)
    beside = plain.fingerprint()
    assert beside != before
    assert Cellpose(model_path=path, diameter=9).fingerprint()["size_sha256"] is None
    assert Cellpose(model_path=path, niter=9).fingerprint() != beside
    assert json.dumps(beside)


def test_configuration_of_turing_segment(cells_file):
    config = {
        "pipeline": {"infer_size": 512, "overlap_margin": 64, "n_postprocess_processes": 8},
        "postprocess": {"niter": 150, "flow_threshold": 0.5},
    }
    method = Cellpose.from_turing(config, None, model_path=cells_file)
    assert (method.tile_size, method.tile_overlap, method.niter) == (512, 0.125, 150)
    assert (method.flow_threshold, method.resample) == (0.5, False)
    plain = Cellpose.from_turing({}, "cyto3")
    assert (plain.tile_size, plain.tile_overlap, plain.niter, plain.resample) == (1024, 0.05, 200, False)
    assert Cellpose.from_turing({"postprocess": {"resample": True, "niter": 9}}).resample
    with pytest.raises(InputError, match="'overlap' is no setting of a Turing Segment configuration"):
        Cellpose.from_turing({"pipeline": {"overlap": 3}})

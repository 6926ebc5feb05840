"""Networks of Cellpose 4, beside its own package: same tiles, same maps, same cells.

They need an environment of their own, since cellpose needs torchvision, and that the torch that it was built for::

    python -m venv .venv4 && .venv4/bin/pip install -e ".[cellpose4]" pytest hypothesis
    .venv4/bin/pytest tests/parity/test_cellpose4.py

No weights are shipped: encoders are random (and of two blocks, but for the test of the true size), and readouts are
fitted to synthetic tissue by least squares, so that there are cells. The networks of ``cpdino`` run where the dinov3
package can be imported.
"""

from __future__ import annotations

from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment import label_image
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.statistics import Histogram
from spatialdata_segment.core.tiles import Tiling
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.base import ImageInfo, View
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.testing import Tissue, match_scores

torch = pytest.importorskip("torch")
load = import_module("spatialdata_segment.methods.cellpose.load")
try:
    vit = load.import_vision(Path("cpsam"), "cpsam")
except MissingError as missing:
    pytest.skip(f"{missing}; the head of this file says how to run it", allow_module_level=True)

from cellpose import core, dynamics, models, transforms  # noqa: E402

try:
    dinov3 = import_module("dinov3.hub.backbones")
except ImportError:
    dinov3 = None
SIDES = {"cpsam": 256, "cpdino": 384}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shallow():
    """Make the package build encoders of two blocks."""
    sam = partial(import_module("segment_anything.build_sam")._build_sam, 64, 2, 4, [1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.sam_model_registry, "vit_l", sam)
        if dinov3 is not None:
            make = dinov3._make_dinov3_vit
            patch.setattr(dinov3, "_make_dinov3_vit", lambda **given: make(**given | {"depth": 2}))
        yield


@pytest.fixture(scope="module", params=["cpsam", "cpdino"])
def path(request, shallow, tmp_path_factory):
    """Save a network that finds some nuclei."""
    if request.param == "cpdino" and dinov3 is None:
        pytest.skip("needs github.com/facebookresearch/dinov3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = vit.CPSAM() if request.param == "cpsam" else vit.CPDINO("vitb")
        for name, value in net.named_parameters():
            if "pos" in name:
                torch.nn.init.normal_(value, std=0.1)
    fit(net.eval(), SIDES[request.param])
    file = tmp_path_factory.mktemp("weights") / request.param
    net.save_model(file)
    return file


@torch.no_grad()
def fit(net, side):
    """Fit the readout to the nuclei of four tiles."""
    block = Tissue((2 * side, 2 * side), cell_diameter=24, seed=1).block(Box.whole((2 * side, 2 * side)))
    image = transforms.normalize_img(block.image[:1].transpose(1, 2, 0).copy()).transpose(2, 0, 1)
    labels = np.unique(block.nuclei, return_inverse=True)[1].reshape(block.nuclei.shape)
    flows = dynamics.masks_to_flows_gpu(labels, device=torch.device("cpu"))[0]
    wanted = np.concatenate([5 * flows, np.where(labels > 0, 3, -3)[None]]).astype(np.float32)
    x, y = (
        torch.from_numpy(np.stack([a[:, i : i + side, j : j + side] for i in (0, side) for j in (0, side)]))
        for a in (image, wanted)
    )
    features = []
    handle = net.out.register_forward_hook(lambda module, taken, made: features.append(taken[0]))
    net(x)
    handle.remove()
    seen = features[0].flatten(2).mT.flatten(0, 1) if features[0].ndim == 4 else features[0].flatten(0, 1)
    seen = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
    asked = torch.nn.functional.unfold(y, 8, stride=8).mT.flatten(0, 1).double()
    ridge = seen.T @ seen + 0.1 * torch.eye(seen.shape[1]).double()
    found = torch.linalg.solve(ridge, seen.T @ asked).float()
    net.out.weight.copy_(found[:-1].T.reshape(net.out.weight.shape))
    net.out.bias.copy_(found[-1])


def picture(shape, n=1):
    """Return nuclei, membranes, and the nuclei turned around."""
    block = Tissue(shape, cell_diameter=24, seed=5).block(Box.whole(shape))
    return np.concatenate([block.image, block.image[:1, ::-1, ::-1]])[:n].copy()


@lru_cache(maxsize=2)
def their_model(path, half):
    return models.CellposeModel(pretrained_model=str(path), use_bfloat16=half, gpu=False)


def theirs(path, image, *, half=False, **settings):
    """Return labels and maps by the package."""
    model = their_model(path, half)
    labels, (_, flows, probability), _ = model.eval(image.copy(), channel_axis=0, batch_size=1, **settings)
    return labels, np.concatenate([flows, probability[None]])


def ours(method, image, box=None):
    """Return the maps of a window, of a whole image where none is given."""
    whole = Box.whole(image.shape[1:])
    info = ImageInfo(whole.shape, image.dtype, n_channels=len(image))
    method.check(info)
    network = method.load("cpu")
    known = {}
    for s in method.statistics(info):
        known[s] = (
            method.estimate(lambda b: image[:, *b.slices], info, known, network)
            if s.kind == "diameter"
            else Histogram.of(image[s.channel], 0.0).compute(s)
        )
    method = method.adapted(info, known)
    window = whole if box is None else box
    block = window.grow(method.reach(info), whole)
    view = View(Window(window, window, whole), info, known, model=network)
    return method.predict(image[:, *block.slices], view)


def difference(found, expected):
    """Return the largest difference of each map, in its standard deviation."""
    assert found.shape == expected.shape
    assert expected.std(axis=(1, 2)).min() > 0.1
    return (np.abs(found - expected).max(axis=(1, 2)) / expected.std(axis=(1, 2))).max()


@settings(max_examples=300, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    side=st.sampled_from([256, 384]),
    overlap=st.floats(0.05, 0.5),
    mirrored=st.booleans(),
)
def test_tiles(shape, side, overlap, mirrored):
    pads = transforms.get_pad_yx(*shape, min_size=(side, side))
    padded = np.zeros((1, shape[0] + sum(pads[:2]), shape[1] + sum(pads[2:])), np.float32)
    _, rows, columns, *_ = transforms.make_tiles(padded, bsize=side, augment=mirrored, tile_overlap=overlap)
    tiling = Tiling(shape, side, overlap, mirrored, full=True)
    y, x = (axis.starts + pad for axis, pad in zip(tiling.axes, pads[::2], strict=True))
    np.testing.assert_array_equal([a for a, _ in rows], np.repeat(y, len(x)))
    np.testing.assert_array_equal([a for a, _ in columns], np.tile(x, len(y)))
    assert [axis.side for axis in tiling.axes] == [side, side]
    mask = transforms._taper_mask(side, side)
    np.testing.assert_allclose(np.outer(*(axis.weights for axis in tiling.axes)), mask, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "n", "diameter"),
    [
        pytest.param((200, 190), 1, None, id="one tile"),
        pytest.param((200, 190), 2, None, id="two channels"),
        pytest.param((200, 190), 3, None, id="three channels"),
        pytest.param((246, 130), 1, None, id="smaller than a tile, larger with its margin"),
        pytest.param((200, 300), 1, None, id="tiles along x"),
        pytest.param((330, 270), 2, None, id="tiles along both"),
        pytest.param((330, 270), 1, 40, id="smaller to the network"),
        pytest.param((170, 120), 3, 17.5, id="larger to the network"),
    ],
)
def test_maps(path, shape, n, diameter):
    image = picture(shape, n)
    _, expected = theirs(path, image, diameter=diameter, compute_masks=False)
    assert difference(ours(Cellpose(model_path=path, diameter=diameter), image), expected) < 1e-4


@pytest.mark.parametrize(
    "given", [{"resample": False}, {"tile_overlap": 0.3}, {"augment": True}, {"normalize": False}], ids=str
)
def test_settings(path, given):
    image = picture((200, 300)) if given.get("normalize", True) else picture((200, 300)) / np.float32(4096)
    _, expected = theirs(path, image, diameter=36, compute_masks=False, **given)
    method = Cellpose(model_path=path, diameter=36, **given)
    found = ours(method, image)
    assert difference(found, expected) < 1e-4


def test_diameters_in_the_file_do_not_count(path, tmp_path):
    state = torch.load(path, weights_only=True) | {"diam_labels": torch.tensor([17.0])}
    torch.save(state, tmp_path / "mine")
    image = picture((200, 190))
    _, expected = theirs(tmp_path / "mine", image, compute_masks=False)
    assert difference(ours(Cellpose(model_path=tmp_path / "mine"), image), expected) < 1e-4


def test_percentiles(path):
    image = picture((200, 190), 2)
    image[:, :9, :9] = 60000
    image[1, 20:] = 7
    _, expected = theirs(path, image, compute_masks=False)
    assert difference(ours(Cellpose(model_path=path), image), expected) < 1e-4


def test_windows(path):
    image, method = picture((500, 420), 2), Cellpose(model_path=path, diameter=40)
    whole = ours(method, image)
    for start, stop in [((0, 0), (77, 80)), ((120, 190), (230, 310)), ((400, 0), (500, 420))]:
        part = ours(method, image, Box(start, stop))
        np.testing.assert_allclose(part, whole[:, start[0] : stop[0], start[1] : stop[1]], atol=1e-5)


@pytest.mark.parametrize("diameter", [None, 40])
@pytest.mark.parametrize("resample", [True, False])
def test_labels(path, diameter, resample):
    image = picture((330, 270))
    given = {"diameter": diameter, "resample": resample}
    expected, _ = theirs(path, image, **given)
    found = np.asarray(label_image(image, Cellpose(model_path=path, **given), channels=0, devices="cpu"))
    scores = match_scores(expected.astype(np.int64), found.astype(np.int64), thresholds=(0.9,))
    assert scores.n_truth > 15
    assert scores.tp[0] >= 0.9 * max(scores.n_truth, scores.n_found), scores


def test_a_network_of_every_generation_in_one_process(path, tmp_path):
    from spatialdata_segment.methods.cellpose.network import CPnet

    image = picture((200, 300), 2)
    before = ours(Cellpose(model_path=path), image)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(CPnet((2, 8, 16), diameter=30.0).state_dict(), tmp_path / "cpnet")
    old = ours(Cellpose(model_path=tmp_path / "cpnet", diameter=30), image)
    assert old.shape == before.shape
    assert old.std() > 0
    np.testing.assert_array_equal(ours(Cellpose(model_path=path), image), before)


def test_half_precision_is_near(path):
    image = picture((200, 190))
    whole = ours(Cellpose(model_path=path), image)
    half = ours(Cellpose(model_path=path, precision="bfloat16"), image)
    assert np.abs(half - whole).mean() < 0.1 * whole.std()
    _, expected = theirs(path, image, half=True, compute_masks=False)
    np.testing.assert_allclose(half, expected, atol=0.1 * whole.std())


def test_a_file_that_does_not_fit(path, tmp_path):
    image, state = picture((64, 64)), torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if "blocks.1." not in k}, tmp_path / "lacking")
    with pytest.raises(
        InputError, match=r"lacks \d+ of the tensors of its network, CP(SAM|DINO) of cellpose, such as "
    ):
        ours(Cellpose(model_path=tmp_path / "lacking"), image)
    torch.save(state | {"out.bias": torch.zeros(5)}, tmp_path / "misshaped")
    with pytest.raises(InputError, match="does not fit its network"):
        ours(Cellpose(model_path=tmp_path / "misshaped"), image)


def test_what_is_written_over_does_not_change_a_loaded_network(path, tmp_path):
    file = tmp_path / "mine"
    file.write_bytes(path.read_bytes())
    net = load.load_network(file, Cellpose(model_path=file)._description(), "cpu", batch_size=2).net
    before = {n: v.clone() for n, v in net.state_dict().items()}
    file.write_bytes(b"\0" * 100)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


@pytest.mark.slow
def test_true_size(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = vit.CPSAM()
        for name, value in net.named_parameters():
            if "pos" in name:
                torch.nn.init.normal_(value, std=0.1)
    net.out.weight.data *= 5
    net.save_model(tmp_path / "large")
    del net
    image = picture((200, 190), 2)
    _, expected = theirs(tmp_path / "large", image, compute_masks=False)
    their_model.cache_clear()
    assert difference(ours(Cellpose(model_path=tmp_path / "large"), image), expected) < 1e-4


def test_padding_is_that_of_run_net():
    """`core.run_net` is what the tiles are taken from: fails where a new version pads in another way."""
    names = core.run_net.__code__.co_names
    assert {"get_pad_yx", "make_tiles", "average_tiles", "resize_image"} <= set(names)

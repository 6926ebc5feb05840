"""Files of Cellpose models: what is read is right, what is not of Cellpose is refused, and nothing is executed."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from spatialdata_segment.errors import InputError, MissingError  # noqa: E402
from spatialdata_segment.methods.cellpose.network import CPnet  # noqa: E402
from spatialdata_segment.methods.cellpose.weights import (  # noqa: E402
    Description,
    describe,
    load_cpnet,
    read_state,
)

NBASE = (2, 4, 8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = CPnet(NBASE, diameter=17.0).eval()
    net.diam_labels.fill_(21.5)
    return net


@pytest.fixture
def state(net):
    return OrderedDict((name, value.clone()) for name, value in net.state_dict().items())


@pytest.fixture
def save(tmp_path):
    def save(what, name="model", **options):
        torch.save(what, tmp_path / name, **options)
        return tmp_path / name

    return save


def dino(width=1024, **more):
    shapes = {"encoder.cls_token": (1, 1, width), "encoder.patch_embed.proj.weight": (width, 3, 16, 16)}
    return {**sam(), **{name: torch.zeros(shape) for name, shape in shapes.items()}, **more}


def sam():
    shapes = {"W2": (12, 3, 2, 2), "encoder.patch_embed.proj.weight": (6, 3, 2, 2), "out.weight": (12, 6, 1, 1)}
    return {"diam_labels": torch.tensor([30.0]), **{name: torch.zeros(shape) for name, shape in shapes.items()}}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestState:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_round_trip(self, state, save, zipped):
        path = save(state, _use_new_zipfile_serialization=zipped)
        found = read_state(path)
        assert list(found) == list(state)
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_prefixes_of_data_parallel(self, state, save):
        assert list(read_state(save({f"module.{name}": value for name, value in state.items()}))) == list(state)
        mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
        assert list(read_state(save(mixed))) == list(mixed)

    def test_no_file(self, tmp_path):
        for call in (read_state, describe, load_cpnet):
            with pytest.raises(MissingError, match=r"no file .*nowhere"):
                call(tmp_path / "nowhere")
            with pytest.raises(InputError, match="is no file"):
                call(tmp_path)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
    def test_cut_off(self, state, save, zipped, share):
        path = save(state, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        for call in (read_state, describe, load_cpnet):
            with pytest.raises(InputError, match="damaged, cut off, or no file of torch"):
                call(path)

    @pytest.mark.parametrize("text", [b"hello world", b"<html></html>", b"PK\x03\x04", b"\x80\x02.", b"\x93NUMPY"])
    def test_something_else(self, tmp_path, text):
        (tmp_path / "a").write_bytes(text)
        with pytest.raises(InputError):
            read_state(tmp_path / "a")

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_a_wrong_byte_is_told_or_harmless(self, state, save, place, flip):
        path = save(state)
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= flip
        path.write_bytes(data)
        try:
            found = read_state(path)
        except InputError:
            return
        assert list(found) == list(state)
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_a_wrong_weight_is_told(self, state, save):
        path = save(state)
        value = state["output.2.weight"].numpy().tobytes()
        data = path.read_bytes()
        at = data.index(value) + len(value) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        for call in (read_state, describe, load_cpnet):
            with pytest.raises(InputError, match=r"the checksum of .* in it is wrong"):
                call(path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_nothing_is_executed(self, save, tmp_path, zipped):
        path = save({"a": Evil(tmp_path / "done")}, _use_new_zipfile_serialization=zipped)
        for call in (read_state, describe, load_cpnet):
            with pytest.raises(InputError, match="holds more than tensors"):
                call(path)
        assert not (tmp_path / "done").exists()

    def test_a_network_instead_of_its_state(self, net, save, tmp_path):
        with pytest.raises(InputError, match=r"save the network's state_dict\(\)"):
            read_state(save(net))
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "script")
        with pytest.raises(InputError, match="holds more than tensors"):
            read_state(tmp_path / "script")

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            (torch.zeros(3), "holds a Tensor"),
            ([torch.zeros(3)], "holds a list"),
            (3, "holds a int"),
            ({"state_dict": {"a": torch.zeros(3)}}, "holds a dict under 'state_dict'"),
            ({"a": torch.zeros(3), "epoch": 3}, "holds a int under 'epoch'"),
            ({0: torch.zeros(3)}, "under 0"),
            ({"a": torch.zeros(3, device="meta")}, "tensor a is sparse"),
            ({"a": torch.eye(3).to_sparse()}, "tensor a is sparse"),
            ({"a": torch.zeros(3, dtype=torch.complex64)}, "tensor a is sparse"),
        ],
    )
    def test_no_state_dict(self, save, what, message):
        with pytest.raises(InputError, match=message):
            read_state(save(what))

    def test_without_torch(self, state, save, monkeypatch):
        path = save(state)
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingError, match=r"pip install 'spatialdata-segment\[cellpose\]'"):
            read_state(path)


class TestDescribe:
    def test_a_cpnet(self, state, save):
        path = save(state)
        found = describe(path)
        assert found == Description("cpnet", NBASE, 3, 3, 17.0, 21.5, hashlib.sha256(path.read_bytes()).hexdigest())
        assert describe(str(path)) is found

    @pytest.mark.parametrize(("nbase", "nout", "size"), [((1, 4), 3, 3), ((3, 2, 4, 6, 8), 2, 5), ((2, 4, 8), 1, 1)])
    def test_other_architectures(self, save, nbase, nout, size):
        path = save(CPnet(nbase, nout, size).state_dict())
        found = describe(path)
        assert (found.nbase, found.nout, found.size) == (nbase, nout, size)
        assert load_cpnet(path).nbase == nbase

    def test_of_cellpose_1(self, state, save):
        del state["diam_mean"], state["diam_labels"]
        path = save(state)
        found = describe(path)
        assert (found.diam_mean, found.diam_labels) == (30.0, 30.0)
        found = describe(path, diameter=17.0)
        assert (found.diam_mean, found.diam_labels) == (17.0, 17.0)
        assert load_cpnet(path, diameter=17.0).diam_mean.item() == 17.0

    def test_labels_fall_back_to_the_mean(self, state, save):
        del state["diam_labels"]
        state["diam_mean"] = torch.tensor(12.0)
        found = describe(save(state))
        assert (found.diam_mean, found.diam_labels) == (12.0, 12.0)

    def test_told_again_where_the_file_changed(self, state, save):
        first = describe(save(state))
        state["diam_mean"].fill_(18)
        path = save(state)
        os.utime(path, ns=(1, 1))
        second = describe(path)
        assert (first.diam_mean, second.diam_mean) == (17.0, 18.0)
        assert first.sha256 != second.sha256

    @pytest.mark.parametrize("generation", ["cpsam", "cpdino"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_cellpose_4(self, save, generation, zipped):
        made = sam() if generation == "cpsam" else dino(768)
        path = save({f"module.{n}": v for n, v in made.items()}, _use_new_zipfile_serialization=zipped)
        found = describe(path, diameter=31.0)
        assert (found.generation, found.nbase, found.nout, found.size) == (generation, None, 3, None)
        assert (found.diam_mean, found.diam_labels) == (31.0, 30.0)
        with pytest.raises(InputError, match="Cellpose 4"):
            load_cpnet(path)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (dino(512), "512 features: expected 1024"),
            ({"W2": torch.zeros(3)}, "no network of Cellpose: its tensors are W2"),
            (dino(W2=torch.full((12, 3, 2, 2), torch.nan)), "W2 holds NaN"),
        ],
    )
    def test_not_cellpose_4(self, save, made, message):
        with pytest.raises(InputError, match=message):
            describe(save(made))


def change(state, **changes):
    """Return a state with values replaced, or left out where None; ``__`` stands for a point."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    changed = {**state, **changes}
    return {name: value for name, value in changed.items() if value is not None}


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"output__2__bias": None}, "1 missing: output.2.bias"),
            ({"output__3__bias": torch.zeros(3)}, "1 unexpected: output.3.bias"),
            ({"output__2__bias": torch.zeros(4)}, r"1 misshaped: output.2.bias \(4,\) instead of \(3,\)"),
            ({"output__2__bias": torch.zeros(3, dtype=torch.int32)}, "expected kind: output.2.bias torch.int32"),
            ({"output__2__bias": torch.tensor([0, np.inf, 0])}, "output.2.bias holds NaN or infinite"),
            ({"output__2__weight": None}, r"KeyError\('output.2.weight'\)"),
            ({"output__2__weight": torch.tensor(1.0)}, "no network of Cellpose: its tensors"),
            ({"output__2__weight": torch.zeros(0, 4, 1, 1)}, "no network of Cellpose: its tensors"),
            ({"diam_mean": torch.zeros(2)}, r"diam_mean has shape \(2,\)"),
            ({"diam_mean": torch.tensor([-1.0])}, "diam_mean is -1.0: expected a positive"),
            ({"diam_labels": torch.tensor([torch.nan])}, "diam_labels is nan"),
        ],
    )
    def test_a_spoilt_cpnet(self, state, save, changes, message):
        path = save(change(state, **changes))
        for call in (describe, load_cpnet):
            with pytest.raises(InputError, match=message):
                call(path)

    def test_many_wrong_keys_are_told_by_the_first(self, state, save):
        up = [name for name in state if name.startswith("upsample") and not name.endswith("tracked")]
        with pytest.raises(InputError, match=f"{len(up)} missing: {up[0]}, {up[1]}, {up[2]}, \\.\\.\\.$"):
            describe(save(change(state, **dict.fromkeys(up))))

    def test_another_network(self, save):
        layers = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.running_mean": torch.zeros(64)}
        for made in (layers, {}):
            with pytest.raises(InputError, match=r"no network of Cellpose: its tensors are (conv1|none)"):
                describe(save(made))

    def test_convolutions_in_3d(self, state, save):
        made = {n: v[..., None].repeat(1, 1, 1, 1, v.shape[-1]) if v.ndim == 4 else v for n, v in state.items()}
        with pytest.raises(InputError, match="misshaped"):
            describe(save(made))

    def test_an_even_convolution(self, save):
        with pytest.raises(InputError, match="no network of Cellpose"):
            describe(save(CPnet(NBASE, size=2).state_dict()))


class TestLoad:
    def test_same_maps(self, net, state, save):
        found = load_cpnet(save(state))
        assert not found.training
        assert not any(p.requires_grad for p in found.parameters())
        image = torch.rand(1, 2, 8, 8)
        with torch.no_grad():
            for a, b in zip(net(image), found(image), strict=True):
                assert torch.equal(a, b)
        assert (found.diam_mean.item(), found.diam_labels.item()) == (17.0, 21.5)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_precisions(self, state, save, dtype):
        kind = getattr(torch, dtype)
        cast = {n: v.to(kind) if v.is_floating_point() else v for n, v in state.items()}
        found = load_cpnet(save(cast))
        for name, value in found.state_dict().items():
            if value.is_floating_point():
                assert value.dtype == torch.float32
                assert torch.equal(value, cast[name].float()) or name.startswith("diam")

    def test_beyond_float32(self, state, save):
        state["output.2.bias"] = torch.tensor([1e300, 0, 0], dtype=torch.float64)
        with pytest.raises(InputError, match=r"output\.2\.bias holds NaN or infinite"):
            load_cpnet(save(state))

    def test_counts_may_be_missing(self, net, state, save):
        found = load_cpnet(save({n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}))
        assert torch.equal(found.output[2].weight, net.output[2].weight)

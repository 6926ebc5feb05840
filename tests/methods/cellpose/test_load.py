"""Networks are loaded once, in the right precision; what is missing for those of Cellpose 4 is said in so many words.

The package of Cellpose 4 is a stand-in here; see ``tests/parity/test_cellpose4.py`` for the true one.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spatialdata_segment.errors import InputError, MissingError  # noqa: E402
from spatialdata_segment.methods.cellpose import load  # noqa: E402
from spatialdata_segment.methods.cellpose.network import CPnet  # noqa: E402
from spatialdata_segment.methods.cellpose.weights import describe  # noqa: E402


class Vision(torch.nn.Module):
    """The least that has the keys of Cellpose 4."""

    def __init__(self, model_name="", width=6):
        super().__init__()
        self.model_name = model_name
        self.encoder = torch.nn.Module()
        self.encoder.patch_embed = torch.nn.Module()
        self.encoder.patch_embed.proj = torch.nn.Conv2d(3, width, 2, stride=2)
        self.out = torch.nn.Conv2d(width, 12, 1)
        self.W2 = torch.nn.Parameter(torch.eye(12).reshape(12, 3, 2, 2))
        self.diam_mean, self.diam_labels = (torch.nn.Parameter(torch.tensor([30.0])) for _ in range(2))

    def forward(self, x):
        proj = self.encoder.patch_embed.proj
        x = torch.nn.functional.conv2d(x, proj.weight[:, : x.shape[1]], proj.bias, stride=2)
        return torch.nn.functional.conv_transpose2d(self.out(x), self.W2, stride=2), torch.zeros(len(x), 256)


class Dino(Vision):
    def __init__(self, model_name=""):
        super().__init__(model_name, {"vitl": 1024, "vitb": 768}[model_name])
        self.encoder.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 4))


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(load, "_loaded", {})


@pytest.fixture
def package(monkeypatch):
    """Stand in for packages: an exception is raised by their import."""
    there = {"cellpose.vit": SimpleNamespace(CPSAM=Vision, CPDINO=Dino), "dinov3.hub.backbones": SimpleNamespace()}

    def find(name):
        if isinstance(there[name], Exception):
            raise there[name]
        return there[name]

    monkeypatch.setattr(load, "import_module", find)
    return there


@pytest.fixture
def save(tmp_path):
    def save(net, **more):
        state = net.state_dict() if isinstance(net, torch.nn.Module) else net
        torch.save({**state, **more}, tmp_path / "mine")
        return tmp_path / "mine", describe(tmp_path / "mine")

    return save


class TestLoad:
    def test_cpnet(self, save):
        path, said = save(CPnet((2, 4, 8)))
        network = load.load_network(path, said, "cpu")
        assert (network.generation, network.dtype, network.n_inputs, network.batch_size) == (
            "cpnet",
            torch.float32,
            2,
            1,
        )
        assert not network.net.training
        weights = next(v for v in network.net.parameters() if v.ndim == 4 and min(v.shape) > 1)
        assert weights.is_contiguous(memory_format=torch.channels_last)
        assert load.load_network(path, said, "cpu") is network
        assert load.load_network(path, said, "cpu", precision="bfloat16").dtype == torch.bfloat16
        assert load.load_network(path, said, "cpu", batch_size=3).batch_size == 3

    @pytest.mark.parametrize("stored", ["float32", "float16"])
    @pytest.mark.parametrize("precision", [None, "bfloat16"])
    def test_cellpose_4(self, package, save, stored, precision):
        made = Vision()
        path, said = save({n: v.to(getattr(torch, stored)) for n, v in made.state_dict().items()})
        network = load.load_network(path, said, "cpu", precision=precision)
        dtype = getattr(torch, precision or "float32")
        assert (network.generation, network.dtype, network.n_inputs, network.batch_size) == ("cpsam", dtype, None, 1)
        assert {v.dtype for v in network.net.state_dict().values()} == {dtype}
        assert not any(v.requires_grad or v.is_meta for v in network.net.parameters())
        x = np.random.default_rng(0).random((1, 2, 8, 8), np.float32)
        expected = made(torch.from_numpy(x))[0].detach().numpy()
        np.testing.assert_allclose(network.forward(x)[0], expected, atol=1e-3 if precision is None else 0.05)

    @pytest.mark.parametrize("name", ["vitl", "vitb"])
    def test_on_dinov3(self, package, save, name):
        path, said = save(Dino(name))
        assert said.generation == "cpdino"
        assert load.load_network(path, said, "cpu").net.model_name == name

    def test_a_file_without_diameters(self, package, save):
        state = Vision().state_dict()
        path, said = save({n: v for n, v in state.items() if not n.startswith("diam")})
        assert load.load_network(path, said, "cpu").net.diam_labels.item() == 30

    def test_a_file_that_lacks_tensors(self, package, save):
        path, said = save({n: v for n, v in Vision().state_dict().items() if n != "out.bias"})
        with pytest.raises(InputError, match=r"mine lacks 1 of the tensors of its network, Vision .*such as out\.bias"):
            load.load_network(path, said, "cpu")

    def test_a_file_of_another_shape(self, package, save):
        path, said = save(Vision(), **{"out.bias": torch.zeros(5)})
        with pytest.raises(InputError, match=r"does not fit its network, Vision of cellpose: .*out\.bias"):
            load.load_network(path, said, "cpu")

    def test_a_file_that_is_written_over(self, package, save):
        path, said = save(Vision())
        network = load.load_network(path, said, "cpu")
        before = {n: v.clone() for n, v in network.net.state_dict().items()}
        path.write_bytes(b"")
        assert all(torch.equal(v, before[n]) for n, v in network.net.state_dict().items())


@pytest.mark.parametrize(
    ("generation", "kind", "expected"),
    [
        ("cpnet", "cpu", "float32"),
        ("cpnet", "mps", "float32"),
        ("cpnet", "cuda", "float16"),
        ("cpsam", "cpu", "float32"),
        ("cpsam", "mps", "float32"),
        ("cpsam", "cuda", "bfloat16"),
        ("cpdino", "cuda", "bfloat16"),
    ],
)
def test_precision(generation, kind, expected):
    assert load.usual_precision(generation, kind) == expected


class TestMissing:
    def fails(self, save, match, net=Vision):
        path, said = save(net())
        with pytest.raises(MissingError, match=match):
            load.load_network(path, said, "cpu")

    def test_cellpose(self, package, save):
        package["cellpose.vit"] = ModuleNotFoundError("No module named 'cellpose'", name="cellpose")
        self.fails(save, r"mine is .*not installed: pip install 'spatialdata-segment\[cellpose4\]'$")

    def test_cellpose_is_of_version_3(self, package, save, monkeypatch):
        package["cellpose.vit"] = ModuleNotFoundError("No module named 'cellpose.vit'", name="cellpose.vit")
        monkeypatch.setattr(load, "version", {"cellpose": "3.1.1.3"}.__getitem__)
        self.fails(save, r"cellpose 3\.1\.1\.3 is installed, expected 4\.2 or later: pip .*\[cellpose4\]' --upgrade")

    def test_torchvision_is_of_another_torch(self, package, save, monkeypatch):
        package["cellpose.vit"] = RuntimeError("operator torchvision::nms does not exist")
        monkeypatch.setattr(load, "version", {"torchvision": "0.28.0", "torch": "2.13.0+cpu"}.__getitem__)
        self.fails(save, r"torchvision 0\.28\.0 does not work with torch 2\.13\.0\+cpu .*nms.*install both from one")

    def test_torchvision(self, package, save):
        package["cellpose.vit"] = ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
        self.fails(save, r"cannot be imported \(No module named 'torchvision'\): pip install .*\[cellpose4\]")

    def test_a_library(self, package, save):
        package["cellpose.vit"] = OSError("libGL.so.1: cannot open shared object file")
        self.fails(save, r"cannot be imported \(libGL\.so\.1")

    def test_dinov3(self, package, save):
        package["dinov3.hub.backbones"] = ModuleNotFoundError("No module named 'dinov3'", name="dinov3")
        self.fails(save, "mine is a network on DINOv3.*facebookresearch/dinov3.*cpsam_v2", lambda: Dino("vitb"))
        path, said = save(Vision())
        load.load_network(path, said, "cpu")

    def test_nothing_is_needed_of_cellpose_for_the_others(self, package, save):
        package["cellpose.vit"] = ModuleNotFoundError("No module named 'cellpose'", name="cellpose")
        load.load_network(*save(CPnet((2, 4, 8))), "cpu")

    def test_a_version_that_is_not_known(self):
        assert "no known version" in load._version("there-is-no-such-package")

"""Which devices a run gets, and whose turn it is."""

from __future__ import annotations

import sys

import pytest

from spatialdata_segment.engine import devices
from spatialdata_segment.engine.devices import borrowed, resolve_devices
from spatialdata_segment.errors import InputError, MissingError


def test_cpu_is_always_there() -> None:
    assert resolve_devices("cpu") == ("cpu",)
    assert resolve_devices(["cpu"]) == ("cpu",)


def test_auto_looks_only_where_something_runs_on_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_found", lambda: ("cuda:0", "cuda:1"))
    assert resolve_devices("auto", used=False) == ("cpu",)
    assert resolve_devices("auto") == ("cuda:0", "cuda:1")


def test_a_number_is_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_found", lambda: ("cuda:0", "cuda:1", "cuda:2"))
    assert [resolve_devices(n) for n in (1, 2, 7)] == [("cuda:0",), ("cuda:0", "cuda:1"), devices._found()]
    assert resolve_devices(0) == resolve_devices(2, used=False) == ("cpu",)
    monkeypatch.setattr(devices, "_found", lambda: ("cpu",))
    assert resolve_devices(2) == ("cpu",)


@pytest.mark.parametrize("given", ["gpu", "cuda:x", "", ["cpu", 3], "cuda:-1", ["cpu", "cpu"], [], -1, True, 1.5])
def test_what_is_no_device_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="devices="):
        resolve_devices(given)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingError, match=r"'cuda:0' is not there.*devices='auto' or 'cpu'"):
        resolve_devices("cuda")
    with pytest.raises(MissingError, match="cuda:3"):
        resolve_devices(["cpu", "cuda:3"])


def test_a_device_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert resolve_devices("auto") == ("cpu",)
    with pytest.raises(MissingError, match=r"spatialdata-segment\[cellpose\]"):
        resolve_devices("cuda:1")


def test_devices_are_shared_evenly() -> None:
    pair = ("cuda:0", "cuda:1")
    with borrowed(pair) as first, borrowed(pair) as second, borrowed(pair) as third:
        assert (first, second, third) == ("cuda:0", "cuda:1", "cuda:0")
        with borrowed(pair) as fourth:
            assert fourth == "cuda:1"
    with borrowed(pair) as again:
        assert again == "cuda:0"


def test_looking_for_devices_does_not_load_torch() -> None:
    import subprocess

    code = (
        "import sys; from spatialdata_segment.engine.devices import resolve_devices;"
        "resolve_devices('auto', used=False); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

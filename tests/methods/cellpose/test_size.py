"""Size models: the formula, the files of Cellpose, and pickles that would like to do more."""

from __future__ import annotations

import contextlib
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.cellpose.weights import SizeModel, read_size_model

RNG = np.random.default_rng(0)
A, SMEAN = RNG.normal(size=8), RNG.random(8)
PARAMETERS = {"A": A, "smean": SMEAN.astype(np.float32), "diam_mean": 17.0, "ymean": np.float32(0.25)}
STYLE = RNG.random(8).astype(np.float32)


def formula(style):
    smean = PARAMETERS["smean"].astype(float)
    return float(np.exp(A @ (style - smean) + np.log(17.0) + 0.25))


def npy(payload, shape=()):
    """Return the file that ``numpy.save`` writes around a pickle."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + payload


def object_array(value):
    array = np.empty((), object)
    array[()] = value
    return array


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestSizeModel:
    def test_no_file(self, tmp_path):
        with pytest.raises(MissingError, match=r"no file .*nowhere"):
            read_size_model(tmp_path / "nowhere")
        with pytest.raises(InputError, match="is no file"):
            read_size_model(tmp_path)

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "a.npz", **PARAMETERS)
        found = read_size_model(tmp_path / "a.npz")
        assert found.A.shape == (1, 8)
        assert (found.A.dtype, found.smean.dtype) == (np.float64, np.float64)
        assert (found.diam_mean, found.ymean) == (17.0, 0.25)
        assert found.diameter(STYLE) == pytest.approx(formula(STYLE), rel=1e-12)
        found.check(8)

    def test_as_cellpose_saves_it(self, tmp_path):
        np.save(tmp_path / "a.npy", {**PARAMETERS, "name": "mine", "smean2": [np.arange(3)], "none": None})
        assert read_size_model(tmp_path / "a.npy").diameter(STYLE) == pytest.approx(formula(STYLE), rel=1e-12)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("old", [False, True], ids=["numpy2", "numpy1"])
    def test_protocols_and_versions(self, tmp_path, protocol, old):
        made = {**PARAMETERS, "A": A[None].astype(">f8"), "fortran": np.asfortranarray(np.ones((2, 3)))}
        payload = pickle.dumps(object_array(made), protocol)
        if old and protocol < 4:  # text without lengths, so that names can be replaced
            payload = payload.replace(b"numpy._core.", b"numpy.core.")
        elif old:
            return
        (tmp_path / "a.npy").write_bytes(npy(payload))
        assert read_size_model(tmp_path / "a.npy").diameter(STYLE) == pytest.approx(formula(STYLE), rel=1e-12)

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_malice(self, tmp_path, protocol):
        path = tmp_path / "a.npy"
        for made in (Evil(tmp_path / "done"), {**PARAMETERS, "more": Evil(tmp_path / "done")}):
            path.write_bytes(npy(pickle.dumps(object_array(made), protocol)))
            with pytest.raises(InputError, match=r"not loaded, since it could run any code: it names posix\.mkdir"):
                read_size_model(path)
            path.write_bytes(npy(pickle.dumps(made, protocol)))
            with pytest.raises(InputError, match="not loaded"):
                read_size_model(path)
        assert not (tmp_path / "done").exists()

    @pytest.mark.parametrize(
        "payload",
        [
            b"cnumpy\nload\n(S'x'\ntR.",
            b"cbuiltins\neval\n(S'1'\ntR.",
            b"cnumpy.core.multiarray\nfromfile\n.",
            b"cnumpy\nndarray.tofile\n.",
            b"Pabc\n.",
            b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.",
            b"cnumpy\ndtype\n(Vm8\nI00\nI01\ntR.",
            # objects of raw bytes would be pointers that the file chose
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRC\x08AAAAAAAAtR.",
            # a count instead of bytes would ask for that much memory
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vf8\ntRI100000000000\ntR.",
        ],
    )
    def test_pickles_made_by_hand(self, tmp_path, payload):
        (tmp_path / "a.npy").write_bytes(npy(payload))
        with pytest.raises(InputError, match="not loaded"):
            read_size_model(tmp_path / "a.npy")

    def test_a_pickle_does_not_change_the_reader(self, tmp_path):
        """BUILD with a pair sets attributes of what is on the stack, here of the stand-in for the array's class."""
        (tmp_path / "a.npy").write_bytes(npy(b"cnumpy\nndarray\n(N(dVvalue\nI7\nstb."))
        with pytest.raises(InputError, match="no size model"):
            read_size_model(tmp_path / "a.npy")
        np.save(tmp_path / "b.npy", PARAMETERS)
        assert read_size_model(tmp_path / "b.npy").diam_mean == 17.0

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_cut_off(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        if suffix == "npy":
            np.save(path, PARAMETERS)
        else:
            np.savez(path, **PARAMETERS)
        data = path.read_bytes()
        for n in {0, 3, 60, 128, 140, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:n])
            with pytest.raises(InputError, match="damaged, cut off, or no size model"):
                read_size_model(path)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_wrong_bytes_raise_nothing_else(self, tmp_path, place, flip):
        path = tmp_path / "a.npy"
        np.save(path, PARAMETERS)
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= flip
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            assert isinstance(read_size_model(path), SizeModel)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            ({"A": A}, r"it holds \['A'\]; expected A, smean, diam_mean, ymean"),
            ([1, 2], "it holds a list"),
            ({**PARAMETERS, "smean": SMEAN[:3]}, r"A has shape \(1, 8\), smean \(3,\)"),
            ({**PARAMETERS, "A": np.zeros(0), "smean": np.zeros(0)}, "expected"),
            ({**PARAMETERS, "A": A * np.nan}, "not finite"),
            ({**PARAMETERS, "diam_mean": 0.0}, "diam_mean=0.0"),
            ({**PARAMETERS, "diam_mean": "large"}, "no size model"),
            ({**PARAMETERS, "ymean": A}, "no size model"),
        ],
    )
    def test_no_size_model(self, tmp_path, made, message):
        np.save(tmp_path / "a.npy", object_array(made))
        with pytest.raises(InputError, match=message):
            read_size_model(tmp_path / "a.npy")

    def test_other_arrays(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(3))
        with pytest.raises(InputError, match="where a dictionary was expected"):
            read_size_model(tmp_path / "a.npy")
        np.savez(tmp_path / "a.npz", A=object_array(Evil(tmp_path / "done")))
        with pytest.raises(InputError):
            read_size_model(tmp_path / "a.npz")
        assert not (tmp_path / "done").exists()

    def test_bounds_and_lengths(self):
        model = SizeModel(A[None], SMEAN, 17.0, 0.0)
        assert model.diameter(SMEAN) == 17.0
        assert SizeModel(A[None], SMEAN, 17.0, -9.0).diameter(SMEAN) == 5.0
        assert model.diameter(np.full(8, np.nan)) == 17.0
        with pytest.raises(InputError, match="length 8, the network gives 3"):
            model.diameter(STYLE[:3])
        with pytest.raises(InputError, match="length 8, the network gives 256"):
            model.check(256)

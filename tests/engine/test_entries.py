import errno
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.entries import DamagedError, Entry, scratch_error, sound, write_entry
from spatialdata_segment.errors import ScratchError

ARRAYS = {
    "labels": np.arange(300 * 270, dtype=np.int32).reshape(300, 270),
    "volume": np.random.default_rng(0).integers(0, 9, (50, 60, 20)).astype(np.uint8),
    "maps": np.random.default_rng(1).random((2, 300, 20)).astype(np.float16),
    "ids": np.arange(5),
    "none": np.zeros((0, 2)),
    "zeros": np.zeros((400, 400), np.int64),
    "flags": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new folder" / "0.shard"
    write_entry(path, ARRAYS, {"n": 3, "window": [[0, 1], [2, 3]]})
    return path


def test_what_was_written_is_read(path):
    entry = Entry(path)
    assert entry.meta == {"n": 3, "window": [[0, 1], [2, 3]]}
    for name, array in ARRAYS.items():
        assert name in entry
        found = entry.read(name)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert "other" not in entry
    assert [p.name for p in path.parent.iterdir()] == ["0.shard"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("entries") / "0.shard"
    write_entry(path, ARRAYS)
    return path


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_boxes(data, shared):
    name = data.draw(st.sampled_from(["labels", "volume", "maps"]))
    shape = ARRAYS[name].shape
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    assert np.array_equal(Entry(shared).read(name, box), ARRAYS[name][box.slices])


def test_a_part_is_read_where_another_is_damaged(path):
    with path.open("r+b") as file:
        file.seek(-20, 2)
        file.write(b"\0" * 20)
    entry = Entry(path)
    assert np.array_equal(entry.read("labels"), ARRAYS["labels"])
    with pytest.raises(DamagedError):
        entry.check()


@pytest.mark.parametrize("where", [0, 3, 9, 14, 17, 25, 300, 0.2, 0.5, 0.9, 1.0])
def test_flipped_bit_is_found(path, where, caplog):
    content = bytearray(path.read_bytes())
    at = where if isinstance(where, int) else int(where * (len(content) - 1))
    content[at] ^= 4
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert sound(path) is None
    assert "damaged, computed again" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 1, 12, 19, 20, 100, 0.3, 0.9])
def test_truncated_file_is_found(path, length, caplog):
    content = path.read_bytes()
    path.write_bytes(content[: length if isinstance(length, int) else int(length * len(content))])
    with caplog.at_level(logging.WARNING):
        assert sound(path) is None
    assert str(path) in caplog.text


def test_missing_file(tmp_path):
    assert sound(tmp_path / "no.shard") is None
    with pytest.raises(DamagedError, match="missing"):
        Entry(tmp_path / "no.shard")


def test_equal_content_has_an_equal_checksum(tmp_path):
    for name, array in (("a", np.arange(9)), ("b", np.arange(9)), ("c", np.arange(9) + 1), ("d", np.arange(8))):
        write_entry(tmp_path / name, {"x": array})
    a, b, c, d = (Entry(tmp_path / n).crc for n in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_nothing_appears_where_writing_fails(tmp_path, monkeypatch):
    import pathlib

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(ScratchError, match=r"no space left .* bytes needed"):
        write_entry(tmp_path / "0.shard", ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_error_names_the_file_and_the_next_step(tmp_path):
    error = scratch_error(tmp_path / "x", OSError(errno.EROFS, "Read-only file system"))
    assert "Read-only file system. Pass scratch=" in str(error)
    assert str(tmp_path / "x") in str(error)

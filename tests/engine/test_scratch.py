import json

import pytest

from spatialdata_segment.engine.scratch import Scratch, digest
from spatialdata_segment.errors import ScratchError

A = {"workflow": {"threshold": 3, "name": "x"}, "image": "one"}
B = {"workflow": {"threshold": 4, "name": "x"}, "image": "one"}


def _leave(scratch, text="work"):
    shard = scratch.part("cell") / "shards" / "0.shard"
    shard.parent.mkdir(parents=True)
    shard.write_text(text)
    scratch.close()
    return shard


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(A) != digest(B)


def test_same_fingerprint_finds_what_was_left(tmp_path):
    for given in (True, False):
        root = tmp_path / str(given)
        shard = _leave(Scratch(root, A, given=given, resume=True))
        again = Scratch(root, A, given=given, resume=True)
        assert shard.exists()
        assert again.holds_entries()
        assert again.folder == (root if given else root / digest(A))


def test_resume_false_discards(tmp_path):
    for given in (True, False):
        shard = _leave(Scratch(tmp_path / str(given), A, given=given, resume=True))
        assert not Scratch(tmp_path / str(given), A, given=given, resume=False).holds_entries()
        assert not shard.exists()


def test_other_run_in_a_given_folder_is_refused_with_what_differs(tmp_path):
    shard = _leave(Scratch(tmp_path, A, given=True, resume=True))
    with pytest.raises(ScratchError, match=r"workflow\.threshold \(3 then, 4 now\)") as error:
        Scratch(tmp_path, B, given=True, resume=True)
    assert "image" not in str(error.value).split("different:")[1]
    assert shard.exists()
    assert not Scratch(tmp_path, B, given=True, resume=False).holds_entries()


def test_other_run_in_our_own_folder_has_a_place_of_its_own(tmp_path):
    shard = _leave(Scratch(tmp_path, A, given=False, resume=True))
    assert not Scratch(tmp_path, B, given=False, resume=True).holds_entries()
    assert shard.exists()


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    for resume in (True, False):
        with pytest.raises(ScratchError, match="not empty and holds no run of this package"):
            Scratch(tmp_path, A, given=True, resume=resume)
    assert (tmp_path / "thesis.docx").exists()


DAMAGED = ["", '{"workflow": {"thr', "[]", "\x00\x01", '{"image": "one"}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_manifest_of_our_own_folder_is_written_again(content, tmp_path):
    """The folder's name says what it belongs to; its entries have checksums of their own."""
    scratch = Scratch(tmp_path, A, given=False, resume=True)
    shard = _leave(scratch)
    (scratch.folder / "run.json").write_text(content)
    again = Scratch(tmp_path, A, given=False, resume=True)
    assert shard.exists()
    assert json.loads((again.folder / "run.json").read_text()) == {"program": "spatialdata-segment", **A}


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_manifest_of_a_given_folder_is_refused(content, tmp_path):
    """Nothing says that the entries belong to this run, or to any run: they are not discarded either."""
    shard = _leave(Scratch(tmp_path, A, given=True, resume=True))
    (tmp_path / "run.json").write_text(content)
    for resume in (True, False):
        with pytest.raises(ScratchError, match=r"run\.json is damaged"):
            Scratch(tmp_path, A, given=True, resume=resume)
    assert shard.exists()


def test_clear_leaves_the_folder_that_the_user_named(tmp_path):
    given, ours = (Scratch(tmp_path / n, A, given=n == "given", resume=True) for n in ("given", "ours"))
    for scratch in (given, ours):
        _leave(scratch)
        scratch.clear()
    assert list((tmp_path / "given").iterdir()) == []
    assert not ours.folder.exists()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScratchError, match=r"is a file: pass scratch= with a folder"):
        Scratch(tmp_path / "file", A, given=True, resume=True)

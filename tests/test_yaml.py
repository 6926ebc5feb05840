"""YAML files: the line of everything in them, names that come twice, and what is no YAML."""

from __future__ import annotations

import pytest

from spatialdata_segment._problems import Problem
from spatialdata_segment._yaml import parse, read_document
from spatialdata_segment.errors import InputError, MissingError

TEXT = """\
# a comment
nucleus:
  method: threshold-nuclei
  sigma: 1.5

cell: {method: expand-nuclei, distance: 4}
preprocess:
  - name: subtract-background
    radius: 9
"""


def test_every_name_has_a_line():
    found = parse(TEXT, "x")
    assert found.content["cell"] == {"method": "expand-nuclei", "distance": 4}
    assert found.marks["nucleus", "sigma"] == (4, 3)
    assert found.marks["cell", "distance"] == (6, 31)
    assert found.marks["preprocess", 0] == (8, 5)
    assert found.marks["preprocess", 0, "radius"] == (9, 5)


def test_problems_come_in_order_of_their_lines():
    """A column where several names share a line; what is not there is told where it should be."""
    problems = [Problem(("cell", "distance"), "b"), Problem(("nucleus", "sigma"), "a"), Problem(("nucleus", "no"), "c")]
    told = str(parse(TEXT, "file").error(problems, "Next"))
    assert told == (
        "file not valid, 3 problems:\n  line 2: nucleus.no: c\n  line 4: nucleus.sigma: a\n"
        "  line 6, column 31: cell.distance: b. Next"
    )


def test_repeated_names_of_equal_value_pass():
    assert parse("a: 1\nb: {c: [1, 2], d: x}\na: 1\nb: {d: x, c: [1, 2]}", "x").content == {
        "a": 1, "b": {"c": [1, 2], "d": "x"},
    }  # fmt: skip


def test_repeated_names_of_different_values_do_not():
    with pytest.raises(InputError) as raised:
        parse("a: 1\nb:\n  c: 3\n  c: 4\na: 1.0\na: true", "file")
    assert str(raised.value) == (
        "file not valid, 3 problems:\n  line 4: b.c: given twice, as 4 here and as 3 in line 3: keep one\n"
        "  line 5: a: given twice, as 1.0 here and as 1 in line 1: keep one\n"
        "  line 6: a: given twice, as True here and as 1 in line 1: keep one"
    )


def test_anchors_and_merged_names():
    found = parse("a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3\nc: *x", "x")
    assert found.content == {"a": {"k": 1, "l": 2}, "b": {"l": 2, "k": 3}, "c": {"k": 1, "l": 2}}


def test_many_references_are_looked_at_once():
    """What grows without bound when it is written out."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    assert len(parse("\n".join(lines), "x").marks) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: [1, 2",
            "line 1, column 9: while parsing a flow sequence expected ',' or ']', but got",
        ),
        ("a:\n\tb: 1", r"line 2, column 1: .*found character '\\t' that cannot start any token \(indent with spaces\)"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n b: 2", "line 2, column 3: mapping values"),
        ("a: !!python/object:os.system 1", "line 1, column 4: could not determine a constructor"),
        ("a: *b", "line 1, column 4: .*found undefined alias 'b'"),
        ("", "holds nothing, expected names and values"),
        ("- 1", "holds list, expected"),
        ("just text", "holds str, expected"),
        ("1: 2", r"holds dict \(with 1\), expected"),
        ("a: &x [*x]", "line 1.*: a.0: refers to itself"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("[" * 3000, "cannot be read as YAML"),
    ],
)
def test_what_cannot_be_read(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_document(tmp_path / "a.yaml", "configuration")
    assert f"configuration {tmp_path / 'a.yaml'}" in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(MissingError, match="is not there"):
        read_document(tmp_path / "no.yaml", "configuration")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match=r"cannot be read: .*utf-8"):
        read_document(tmp_path / "b.yaml", "configuration")
    with pytest.raises(InputError, match=r"cannot be read: .*directory"):
        read_document(tmp_path, "configuration")


def test_a_byte_order_mark_is_none_of_the_content(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_document(tmp_path / "a.yaml", "x").content == {"a": 1}

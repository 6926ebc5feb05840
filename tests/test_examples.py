"""Every public name has an example: in a Python block of README or docs, which run, or in its docstring."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import spatialdata_segment

spec = importlib.util.spec_from_file_location("docs_blocks", Path(__file__).with_name("test_docs.py"))
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

SHOWN = "\n".join(source for page in docs.PAGES for _, source in docs.blocks(page))
API = (docs.ROOT / "docs" / "api.md").read_text(encoding="utf-8")
NAMES = [n for n in spatialdata_segment.__all__ if not n.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_an_example(name):
    text = getattr(spatialdata_segment, name).__doc__ or ""
    assert re.search(rf"\b{name}\b", SHOWN) or re.search(r"Examples\n\s*-{8}\n\s*>>>", text)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_in_the_reference(name):
    assert re.search(rf"^   {name}(\.\w+)?$", API, re.MULTILINE)

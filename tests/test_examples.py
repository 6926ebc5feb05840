"""Every public name has an example: in a Python block of README or docs, which run, or in its docstring."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import spatialdata_segment

spec = importlib.util.spec_from_file_location("docs_blocks", Path(__file__).with_name("test_docs.py"))
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

SHOWN = [source for page in docs.PAGES for _, source in docs.blocks(page)]
API = (docs.ROOT / "docs" / "api.md").read_text(encoding="utf-8")
PACKAGE = "spatialdata_segment"


def public_names() -> list[str]:
    """Return the names of the package and of its public submodules, ``module.name``."""
    names = [n for n in spatialdata_segment.__all__ if not n.startswith("__")]
    names.append("testing.MethodTests")  # needs pytest, and is left out of ``import *``
    for found in pkgutil.iter_modules(spatialdata_segment.__path__):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"{PACKAGE}.{found.name}")
            names += [f"{found.name}.{n}" for n in getattr(module, "__all__", ())]
    return names


def used(source: str) -> set[str]:
    """Return what a block names of the package: imported from a module of it, or taken as its attribute."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            inner = node.module.removeprefix(PACKAGE).lstrip(".")
            found |= {inner, *(f"{inner}.{alias.name}".lstrip(".") for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    return found


USED = set().union(*map(used, SHOWN))
NAMES = public_names()


def test_submodules_are_looked_at():
    assert {"segment", "pl.fates", "formats.poly2mask", "testing.match_scores", "cluster.Jobs"} <= set(NAMES)


def test_what_a_block_uses():
    block = (
        "from spatialdata_segment import pl, segment\nfrom spatialdata_segment.testing import Tissue\nx = pl.fates(y)"
    )
    assert used(block) == {"", "pl", "segment", "testing", "testing.Tissue", "pl.fates"}


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_an_example(name):
    module, _, last = name.rpartition(".")
    text = getattr(importlib.import_module(f"{PACKAGE}.{module}".rstrip(".")), last).__doc__ or ""
    assert name in USED or re.search(r"Examples\n\s*-{8}\n\s*>>>", text)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_in_the_reference(name):
    assert re.search(rf"^   {re.escape(name)}(\.\w+)?$", API, re.MULTILINE)

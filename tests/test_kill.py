"""Killed and run again is the same as never killed: the short form of ``benchmarks/kill.py``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL and the fork server are POSIX's"),
    pytest.mark.skipif(not (BENCHMARKS / "kill.py").exists(), reason="the benchmarks are not here"),
]


@pytest.fixture(scope="module")
def kill():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("kill", BENCHMARKS / "kill.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["kill"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("kill", None)


@pytest.fixture(scope="module")
def references(kill, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    found = kill.references(folder, "synthetic", 60_000, side=700, repeat=1)
    found.append(kill.again_reference(folder, "synthetic", 60_000, side=700, repeat=1))
    return {(r.name, r.replaces): r for r in found}


@pytest.mark.parametrize(
    ("name", "replaces", "moments", "spoil"),
    [
        ("expanded", False, [("shards", 0.6)], True),
        ("callable", False, [("write", 0.5), ("swap", 0.3)], False),
        ("callable", True, [("swap", 0.2)], False),
        ("expanded", True, [("write", 0.7), ("swap", 0.6)], False),
        ("other", False, [("shards", 0.5), ("write", 0.6), ("swap", 0.1)], False),
        ("other", False, [("swap", 0.7)], False),
    ],
    ids=["shards-and-damage", "writing", "replacing", "replacing-twice", "a-region-again", "a-region-again-at-its-end"],
)
def test_killed_and_resumed(kill, references, tmp_path, name, replaces, moments, spoil):
    reference = references[name, replaces]
    assert sum(map(len, reference.shards.values())) >= 8
    result = kill.trial(reference, tmp_path, moments, np.random.default_rng(0), spoil)
    assert result.kills
    assert not result.wrong

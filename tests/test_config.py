import json
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from pydantic import ValidationError

from spatialdata_segment import ExpandNuclei, Function, SizeFilter, ThresholdNuclei, Workflow, register_workflow
from spatialdata_segment.config import as_workflow
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods import registry
from spatialdata_segment.methods.base import Method
from spatialdata_segment.methods.registry import get_workflow

NUCLEI, CELLS = ThresholdNuclei(), ExpandNuclei()


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(registry, "_workflows", dict(registry._workflows))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "needs a nucleus or a cell method"),
        ({"nucleus": CELLS}, "grows from nuclei and cannot make them"),
        ({"cell": CELLS}, "give a nucleus= method"),
        ({"nucleus": NUCLEI, "cell": CELLS, "duplicate_mask": True}, "is for one mask"),
        ({"nucleus": NUCLEI, "filter_masks_size": True}, "without a bound"),
        ({"nucleus": NUCLEI, "nucleus_size": SizeFilter(min_size=3)}, "has no effect"),
        (
            {"nucleus": NUCLEI, "cell_size": SizeFilter(min_size=3), "filter_masks_size": True},
            "the workflow has no cell method",
        ),
        ({"nucleus": {"threshold": 3}}, "method is missing"),
        ({"nucleus": NUCLEI, "filtering_threshold_mask_matching": 1.2}, "less than or equal to 1"),
        ({"nucleus": NUCLEI, "multinucleated": "maybe"}, "'drop' or 'keep'"),
        ({"nucleus": NUCLEI, "nuclues": 3}, "Extra inputs|unknown"),
        ({"nucleus": 3}, "instance of Method|expected names and values"),
    ],
)
def test_workflow_that_cannot_be(parameters, message):
    with pytest.raises(ValidationError, match=message):
        Workflow(**parameters)
    with pytest.raises(InputError, match=message):
        as_workflow(parameters)


def test_unknown_method_and_workflow_name_the_known_ones():
    with pytest.raises(InputError, match=r"unknown method 'threshold-nuclie' \(did you mean 'threshold-nuclei'\?\)"):
        as_workflow({"nucleus": "threshold-nuclie"})
    with pytest.raises(MissingError, match=r"unknown workflow 'nope': expected one of .*dapi"):
        as_workflow("nope")


@pytest.mark.parametrize("parameters", [{"sigma": -1}, {"min_distance": 0}, {"threshold": float("nan")}, {"x": 1}])
def test_parameters_of_methods_are_checked(parameters):
    with pytest.raises(ValidationError):
        ThresholdNuclei(**parameters)


@pytest.mark.parametrize(
    "workflow",
    [
        Workflow(nucleus=NUCLEI),
        Workflow(nucleus=ThresholdNuclei(channels=("DAPI",), threshold=7.5), cell=ExpandNuclei(distance=3, unit="um")),
        Workflow(
            nucleus=NUCLEI, cell=CELLS, match_masks=False, multinucleated="keep", unmatched="keep",
            filter_masks_size=True, cell_size=SizeFilter(min_size=3, max_size=9.5, unit="um2"),
            nucleus_size=SizeFilter(confidence_interval=0.9), filtering_threshold_mask_matching=0.5,
        ),
        Workflow(nucleus=ThresholdNuclei(channels=1), duplicate_mask=True),
    ],
)  # fmt: skip
def test_one_representation_for_python_and_json(workflow):
    assert Workflow(**workflow.model_dump()) == workflow
    assert Workflow(**json.loads(workflow.model_dump_json())) == workflow
    assert as_workflow(workflow.model_dump()) == workflow
    json.dumps(workflow.fingerprint())


def test_what_segment_accepts():
    assert as_workflow("dapi") == Workflow(nucleus=NUCLEI)
    assert as_workflow(NUCLEI) == Workflow(cell=NUCLEI)
    assert as_workflow(Workflow(nucleus=NUCLEI)) == Workflow(nucleus=NUCLEI)
    assert as_workflow({"nucleus": "threshold-nuclei"}) == Workflow(nucleus=NUCLEI)
    assert as_workflow(len).cell == Function(function=len)
    assert Workflow(cell=len).cell == Function(function=len)
    with pytest.raises(InputError, match="workflow is a int"):
        as_workflow(3)


def test_fingerprint_changes_with_every_parameter():
    every = [
        Workflow(nucleus=NUCLEI), Workflow(cell=NUCLEI), Workflow(nucleus=ThresholdNuclei(sigma=2)),
        Workflow(nucleus=NUCLEI, cell=CELLS), Workflow(nucleus=NUCLEI, cell=CELLS, match_masks=False),
        Workflow(cell=Function(function=len)), Workflow(cell=Function(function=len, version="2")),
        Workflow(cell=Function(function=abs)),
    ]  # fmt: skip
    assert len({json.dumps(w.fingerprint(), sort_keys=True) for w in every}) == len(every)


def test_version_of_a_method_is_in_its_fingerprint():
    class Newer(ThresholdNuclei):
        method_version: ClassVar[str] = "2"

    assert Newer().fingerprint() != NUCLEI.fingerprint()


def test_a_function_resumes_only_with_a_version():
    assert not Function(function=len).resumable
    assert Function(function=len, version="1").resumable
    assert NUCLEI.resumable


def test_registered_method_is_known_by_its_name():
    @registry.register_method
    class Mine(Method):
        name: ClassVar[str] = "mine"
        size: int = 3

    assert as_workflow({"cell": {"method": "mine", "size": 4}}).cell == Mine(size=4)
    registry.register_method(Mine)

    class Other(Method):
        name: ClassVar[str] = "mine"

    with pytest.raises(InputError, match=r"method name 'mine' is taken by .*Mine"):
        registry.register_method(Other)


def test_registered_workflow_is_known_by_its_name():
    mine = register_workflow("mine", Workflow(nucleus=ThresholdNuclei(sigma=3)))
    assert as_workflow("mine") is mine
    register_workflow("mine", Workflow(nucleus=ThresholdNuclei(sigma=3)))
    with pytest.raises(InputError, match="workflow name 'mine' is taken"):
        register_workflow("mine", Workflow(nucleus=NUCLEI))


class FromAPackage(Method):
    name: ClassVar[str] = "from-a-package"


def test_methods_of_installed_packages_are_found(monkeypatch):
    here = EntryPoint("from-a-package", f"{__name__}:FromAPackage", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [here] if group == registry.GROUP else [])
    registry._load_entry_points.cache_clear()
    try:
        assert isinstance(as_workflow({"cell": "from-a-package"}).cell, FromAPackage)
    finally:
        registry._load_entry_points.cache_clear()


def test_workflows_with_the_values_of_scportrait():
    dapi, wga = get_workflow("dapi-scportrait"), get_workflow("wga-scportrait")
    for flow in (dapi, wga):
        assert flow.nucleus == ThresholdNuclei.scportrait()
        assert (flow.lower_quantile_normalization, flow.upper_quantile_normalization) == (0.001, 0.999)
        assert flow.median_filter_size == 4
        assert Workflow.model_validate_json(flow.model_dump_json()) == flow
    assert not dapi.filter_masks_size  # the documented file does not switch its sizes on
    assert wga.filter_masks_size
    assert (wga.nucleus_size, wga.cell_size) == (
        SizeFilter(min_size=200, max_size=1000), SizeFilter(min_size=200, max_size=6000),
    )  # fmt: skip

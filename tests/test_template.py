"""Templates: every parameter with a comment, and what they print means what the name does."""

from __future__ import annotations

import re

import pytest
import yaml

from spatialdata_segment import Workflow, read_configuration, register_method
from spatialdata_segment._dialects import options_model
from spatialdata_segment._options import descriptions
from spatialdata_segment._template import named_workflow, overview, template
from spatialdata_segment.cli import main
from spatialdata_segment.errors import InputError, MissingError
from spatialdata_segment.methods.registry import get_workflow, known_methods, known_workflows
from spatialdata_segment.testing.dummies import DummyNetwork

NAMES = sorted({*known_workflows(), *(m for m in known_methods() if m != "function")})


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_means_the_name(name, tmp_path, capsys):
    assert main(["config", name]) == 0
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    found = read_configuration(tmp_path / "c.yaml")
    assert found.workflow == (get_workflow(name) if name in known_workflows() else named_workflow(name))
    assert found.options == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_there_with_a_comment(name):
    """Those of the workflow, of its methods, of nested models, and all options."""
    text = template(name)
    content, flow = yaml.safe_load(text), named_workflow(name)
    assert content.keys() == Workflow.model_fields.keys()
    for mask, method in flow.methods().items():
        given = {n for n, field in type(method).model_fields.items() if field.repr}
        assert content[mask].keys() == {"method", *given}
    for line in re.findall(r"(?:\A|\n)\n([^\n]*)", text):  # what follows a blank line
        assert line.lstrip().startswith("# "), line
    for option in options_model().model_fields:
        assert f"\n#   {option}:\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_options_act_without_their_sign():
    text = template("dapi").replace("# options:", "options:").replace("#   shard_size:", "  shard_size: 5000")
    assert read_configuration(yaml.safe_load(text)).options == {"shard_size": 5000}


def test_a_method_of_ones_own_has_a_template():
    class Undocumented(DummyNetwork):
        """A network."""

        name = "undocumented"
        wanted: float

        example = {"wanted": 0.5}  # noqa: RUF012

    register_method(Undocumented)
    content = yaml.safe_load(template("undocumented"))
    assert content["nucleus"]["wanted"] == 0.5
    assert read_configuration(content).workflow == Workflow(nucleus=Undocumented(wanted=0.5))


def test_names_are_listed(capsys):
    assert main(["config", "--list"]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert f"\n  {name} " in out
    assert "nucleus: cellpose nuclei, cell: cellpose cyto2" in out
    assert "function" not in overview()["methods"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dap"], "unknown workflow 'dap' (did you mean 'dapi'?)"),
        (["function"], "the method 'function' takes what no file holds (function)"),
        ([], "config takes one of NAME, --list and --from STORE"),
        (["dapi", "--list"], "config takes one of"),
        (["dapi", "--table", "t"], "--table t without --from"),
        (["--from", "nowhere.zarr"], "there is no store nowhere.zarr"),
    ],
)
def test_wrong_ones(arguments, message, capsys):
    assert main(["config", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_errors_in_python():
    with pytest.raises(MissingError, match="did you mean 'wga'"):
        template("wgaa")
    with pytest.raises(InputError, match="no file holds"):
        template("function")


def test_the_last_parameter_of_a_docstring_is_found():
    def function(*, a, b):
        """Do it.

        Parameters
        ----------
        a
            First.
        b
            Last."""

    assert descriptions(function) == {"a": "First.", "b": "Last."}

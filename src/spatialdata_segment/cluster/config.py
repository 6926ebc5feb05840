"""What a cluster is asked for, whole and for each phase; read from YAML, checked before anything is submitted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from dask.utils import parse_bytes, parse_timedelta
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from spatialdata_segment._problems import nested, problems_of
from spatialdata_segment._yaml import read_document

if TYPE_CHECKING:
    from pathlib import Path

Phase = Literal["predict", "decode", "driver"]

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def _memory(value: str) -> str:
    if re.fullmatch(r"[\d.]+\s*[kMGTP]i?B?", value) is None or parse_bytes(value) <= 0:
        raise ValueError('expected a number and a unit, as in "32 GiB"')
    return value


def _duration(value: str) -> str:
    try:
        positive = re.search("[a-z]", value) is not None and parse_timedelta(value) > 0
    except (KeyError, ValueError):
        positive = False
    if not positive:
        raise ValueError('expected a number and a unit, as in "30 minutes"')
    return value


def _text(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError(f'{value} is a number, which YAML makes of unquoted times too: quote it, as in "04:00:00"')
    return value


def _walltime(value: str) -> str:
    if not seconds(value):
        raise ValueError('expected "hours:minutes:seconds" or "days-hours:minutes:seconds", as in "04:00:00"')
    return value


def seconds(walltime: str) -> int:
    """Return the seconds of a time in a form that SLURM takes; 0 where it is none."""
    found = _WALLTIME.fullmatch(walltime)
    if found is None:
        return 0
    days, *rest = found.groups()
    parts = [int(p) for p in rest if p is not None]
    if days is None:  # minutes, minutes:seconds, hours:minutes:seconds
        parts = [0, *parts] if len(parts) < 3 else parts
    hours, minutes, secs = (*parts, 0, 0)[:3]
    if (minutes > 59 and hours) or secs > 59:
        return 0
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + secs


class Jobs(BaseModel):
    """Jobs that run workers: how many, and what each takes.

    The comments of `template` say what each field is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Jobs at once, each on one node. Those that end early are replaced. None given: 1."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """In place of `jobs`: jobs at once, each with a whole node of its own."""
    cores: Annotated[int, Field(ge=1)]
    """Cores of a job."""
    memory: Annotated[str, AfterValidator(_memory)]
    """Memory of a job."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Worker processes of a job, which share its cores and its memory. Each runs a shard a core."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a job. One process drives all of them; with one a job they start sooner."""
    walltime: Annotated[str, BeforeValidator(_text), AfterValidator(_walltime)] = "01:00:00"
    """Time limit of a job. Quote it. A run may take longer: jobs that end are replaced."""
    partition: str | None = None
    """Partition (queue)."""
    account: str | None = None
    """Account that pays."""
    extra_directives: tuple[str, ...] = ()
    """Further lines for #SBATCH."""
    job_script_prologue: tuple[str, ...] = ()
    """Shell commands that come before the worker."""
    python: str | None = None
    """Python of the workers; None: the one that submits. It needs the same packages."""
    interface: str | None = None
    """Network interface by which workers and scheduler reach each other."""
    local_directory: str | None = None
    """Folder on a node's own disk for what the workers spill."""
    log_directory: str = "slurm-logs"
    """Folder of the jobs' logs, and of the keys by which they know each other: on a disk that the nodes share."""
    start_timeout: Annotated[str, AfterValidator(_duration)] = "30 minutes"
    """How long to wait in the queue for the first worker."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jobs is not None and self.nodes is not None:
            raise ValueError(f"jobs: {self.jobs} and nodes: {self.nodes} are both given: keep one")
        if self.processes > self.cores:
            raise ValueError(f"processes: {self.processes} are more than cores: {self.cores}")
        if self.gpus and self.processes > 1:
            raise ValueError(
                f"gpus: {self.gpus} with processes: {self.processes}: one process drives the GPUs of a job: set "
                "processes: 1, and more jobs with one GPU each"
            )
        return self

    @property
    def count(self) -> int:
        """Jobs at once."""
        return self.jobs or self.nodes or 1

    @property
    def bytes(self) -> int:
        """Memory of a job."""
        return int(parse_bytes(self.memory))


class ClusterConfig(Jobs):
    """`Jobs`, and what differs for a phase."""

    predict: dict[str, Any] = {}
    """What differs while networks predict (usually gpus). With it or `decode` given, `run` works in two phases."""
    decode: dict[str, Any] = {}
    """What differs while maps are decoded and the result is written."""
    driver: dict[str, Any] = {}
    """What differs for the job of the batch script (--sbatch), which submits the others and waits for them."""

    @field_validator("predict", "decode", "driver")
    @classmethod
    def _phase_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Check what a phase gives by itself."""
        try:
            Jobs(**({"cores": 1, "memory": "1 GiB"} | value))
        except ValidationError as error:
            if found := [p for p in problems_of(error, Jobs, value) if p.path]:
                raise nested(found) from error
        return value

    @model_validator(mode="after")
    def _phases_valid(self) -> Self:
        """Check each phase as a whole."""
        found = []
        for name in _PHASES:
            try:
                self.phase(name)
            except ValidationError as error:
                found += [p.below(name) for p in problems_of(error, Jobs, getattr(self, name))]
        if found:
            raise nested(found)
        return self

    @property
    def two_phases(self) -> bool:
        """Whether the phases have jobs of their own."""
        return bool(self.predict or self.decode)

    def phase(self, name: Phase | None) -> Jobs:
        """Return the jobs of a phase; None: of a run in one."""
        whole = self.model_dump(include=self.model_fields_set - set(_PHASES))
        if name is None:
            return Jobs(**whole)
        other = dict(getattr(self, name))
        if name == "driver":
            other = _DRIVER | other
        if other.keys() & {"jobs", "nodes"}:
            whole = {key: value for key, value in whole.items() if key not in ("jobs", "nodes")}
        return Jobs(**(whole | other))


_PHASES: tuple[Phase, ...] = ("predict", "decode", "driver")
_DRIVER = {"jobs": 1, "cores": 2, "memory": "8 GiB", "processes": 1, "gpus": 0}
"""The batch script's job computes little: it holds the tables of the cells."""


def read_config(path: str | Path) -> ClusterConfig:
    """Read and check a cluster configuration.

    Raises
    ------
    MissingError, InputError
        If the file is not there, or what it holds is not valid; the message lists every problem.
    """
    document = read_document(path, "cluster configuration")
    try:
        return ClusterConfig(**document.content)
    except ValidationError as error:
        found = problems_of(error, ClusterConfig, document.content)
        raise document.error(found, "`spatialdata-segment cluster template` prints one with comments") from error


_SHOWN = {"jobs": "4", "cores": "8", "memory": "32 GiB", "walltime": '"04:00:00"'}
_EXAMPLES = {
    "nodes": "4",
    "partition": "main",
    "account": "my-project",
    "extra_directives": '["--qos=long"]',
    "job_script_prologue": '["module load cuda"]',
    "python": "/path/to/venv/bin/python",
    "interface": "ib0",
    "local_directory": "/tmp",
    "predict": "{jobs: 2, gpus: 1, partition: gpu}",
    "decode": "{jobs: 8, partition: main}",
    "driver": '{walltime: "2-00:00:00"}',
}


def template() -> str:
    """Return a configuration in YAML with a comment on every field."""
    lines = [
        "# What `spatialdata-segment run --cluster slurm --cluster-config FILE` asks SLURM for.",
        "# Lines without # act; the others show an example or the default.",
    ]
    for name, field in ClusterConfig.model_fields.items():
        if name == _PHASES[0]:
            lines += ["", "# Phases: any of the above, as it differs."]
        text = str(field.description).replace("`", "")
        value = _SHOWN.get(name) or f"{_EXAMPLES.get(name) or field.default}"
        lines += ["", f"# {text}", f"{'' if name in _SHOWN else '# '}{name}: {value}"]
    return "\n".join(lines) + "\n"

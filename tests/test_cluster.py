"""Clusters: configurations, workers of this machine and of a real SLURM, and results that do not depend on them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace
from uuid import uuid4

import pytest
import spatialdata as sd
import yaml
from pydantic import ValidationError

from spatialdata_segment.cli import main
from spatialdata_segment.cluster import ClusterConfig, Jobs, batch_script, cluster_client, read_config, slurm, template
from spatialdata_segment.cluster.config import seconds
from spatialdata_segment.engine.events import listen
from spatialdata_segment.errors import ClusterError, InputError, MissingError
from spatialdata_segment.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"cores": 1, "memory": "2 GiB"}


def _no_slurm() -> str | None:
    if shutil.which("sinfo") is None:
        return "no SLURM: sinfo is not there (.ci/slurm sets one up)"
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "no SLURM: sinfo does not answer"
    return None if done.returncode == 0 and done.stdout else f"no SLURM: {done.stderr.strip() or 'no partition'}"


NO_SLURM = _no_slurm()
needs_slurm = pytest.mark.skipif(NO_SLURM is not None, reason=str(NO_SLURM))
needs_jobqueue = pytest.mark.skipif(find_spec("dask_jobqueue") is None, reason="without dask-jobqueue")


# what is asked for


def test_template_is_a_configuration_with_every_field_and_a_comment():
    config = ClusterConfig(**yaml.safe_load(template()))
    assert (config.jobs, config.cores, config.memory, config.walltime) == (4, 8, "32 GiB", "04:00:00")
    lines = template().splitlines()
    for name in ClusterConfig.model_fields:
        (at,) = (i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name}:"))
        assert len(lines[at - 1]) > 10
        assert lines[at - 1].startswith("# ")
    everything = [
        line.removeprefix("# ") for line in lines if line.removeprefix("# ").split(":")[0] in Jobs.model_fields
    ]
    for name, value in yaml.safe_load("\n".join(everything)).items():
        Jobs(**(SMALL | {name: value} if name != "nodes" else SMALL))


def test_phases_differ_from_the_whole():
    config = ClusterConfig(
        **SMALL, nodes=3, account="a", predict={"jobs": 1, "gpus": 2}, driver={"walltime": "1-00:00:00"}
    )
    assert config.two_phases
    assert config.phase(None) == Jobs(**SMALL, nodes=3, account="a")
    assert config.phase("predict") == Jobs(**SMALL, jobs=1, account="a", gpus=2)
    assert config.phase("decode").count == 3
    driver = config.phase("driver")
    assert (driver.cores, driver.memory, driver.count, driver.account, driver.walltime) == (
        2,
        "8 GiB",
        1,
        "a",
        "1-00:00:00",
    )
    assert not ClusterConfig(**SMALL, driver={"cores": 1}).two_phases


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60", 3600), ("90:00", 5400), ("04:00:00", 14400), ("1-0", 86400), ("1-12:30", 131400), ("2-00:00:01", 172801),
     ("99x", 0), ("1:70:00", 0), ("00:00:99", 0), ("", 0), ("4 h", 0)],
)  # fmt: skip
def test_walltimes_are_those_of_slurm(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core: 4\nmemory: 1 GB", r"line 1: core: unknown \(did you mean 'cores'\?\)\n  line 1: cores: missing"),
        ("cores: 4", "memory: missing"),
        ("cores: many\nmemory: 1 GB", "line 1: cores: expected a valid integer, not 'many'"),
        ("cores: 1\nmemory: 1", "line 2: memory: expected a valid string, not 1"),
        ("cores: 1\nmemory: much", 'memory: expected a number and a unit, as in "32 GiB"'),
        ("cores: 1\nmemory: 1 GB\nwalltime: 4:00:00", 'walltime: 14400 is a number.*quote it, as in "04:00:00"'),
        ('cores: 1\nmemory: 1 GB\nwalltime: "4 hours"', 'walltime: expected "hours:minutes:seconds"'),
        ("cores: 1\nmemory: 1 GB\nstart_timeout: soon", 'start_timeout: expected a number and a unit, as in "30 min'),
        ("cores: 1\nmemory: 1 GB\njobs: 2\nnodes: 2", "jobs: 2 and nodes: 2 are both given"),
        ("cores: 1\nmemory: 1 GB\nprocesses: 2", "processes: 2 are more than cores: 1"),
        ("cores: 2\nmemory: 1 GB\nprocesses: 2\ngpus: 1", "one process drives the GPUs of a job"),
        ("cores: 1\nmemory: 1 GB\npredict: {gpu: 1}", r"line 3, column 11: predict.gpu: unknown \(did you mean 'gpus'"),
        (
            "cores: 0\nmemory: 1 GB\npredict:\n  gpu: 1\n  jobs: -1\ndecode: {memory: 3}",
            r"4 problems:\n  line 1: cores: .* not 0\n  line 4: predict.gpu: unknown.*\n  line 5: predict.jobs: .*"
            r"not -1\n  line 6, column 10: decode.memory: expected a valid string, not 3",
        ),
        (
            "cores: 2\nmemory: 1 GB\npredict: {processes: 3}",
            "line 3, column 1: predict: processes: 3 are more than cores: 2",
        ),
        ("cores: 1\nmemory: 1 GB\ndecode:", "line 3: decode: expected names and values, not None"),
        ("- cores", "holds list, expected names and values"),
        ("cores: [", "cannot be read as YAML"),
    ],
)
def test_errors_of_a_configuration_say_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_config(path)
    assert str(path) in str(raised.value)


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(MissingError, match=r"nowhere.yaml is not there"):
        read_config(tmp_path / "nowhere.yaml")


def test_configurations_are_frozen():
    with pytest.raises(ValidationError):
        Jobs(**SMALL).cores = 2


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback interface is Linux's")
@needs_jobqueue
def test_options_of_dask_jobqueue(tmp_path):
    jobs = Jobs(
        cores=4, memory="8 GiB", nodes=2, gpus=2, walltime="01:00:00", partition="gpu", account="me", interface="lo",
        extra_directives=["--qos=long"], job_script_prologue=["module load cuda"], python="/venv/bin/python",
        local_directory="/scratch", log_directory=str(tmp_path / "logs"),
    )  # fmt: skip
    with slurm._cluster_class()(**slurm._options(jobs)) as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p gpu", "#SBATCH -A me", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 01:00:00",
        "#SBATCH --qos=long", "#SBATCH --gres=gpu:2", "#SBATCH --nodes=1", "#SBATCH --exclusive", "module load cuda",
        f"{tmp_path}/logs/spatialdata-segment", "/venv/bin/python -m distributed", "--nthreads 4", "--resources GPU=2",
        "--local-directory /scratch", "--interface lo", "--lifetime 3300s", "--lifetime-stagger 150s", "--protocol tls://",
    ):  # fmt: skip
        assert line in script


def test_batch_scripts(tmp_path):
    config = ClusterConfig(
        **SMALL, jobs=3, gpus=1, partition="p", walltime="02:00:00", driver={"job_script_prologue": ["x y"]}
    )
    script = batch_script(config, "slurm", ["run", "a b.zarr", "--image", "i"], tmp_path)
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for line in (
        "--cpus-per-task=2",
        "--mem=8192M",
        "--partition=p",
        "--time=02:00:00",
        "--requeue",
        f"--chdir={tmp_path}",
    ):
        assert f"#SBATCH {line}" in lines
    assert "x y" in lines
    assert f"{sys.executable} -m spatialdata_segment run 'a b.zarr' --image i &" in lines
    assert "gres" not in script
    alone = batch_script(config, "cuda", ["run"], tmp_path)
    for line in ("--cpus-per-task=3", "--mem=6144M", "--gres=gpu:3"):
        assert f"#SBATCH {line}" in alone
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n"], input=script, text=True, check=True)


# workers


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """A store, and the bytes of the result of a plain run."""
    folder = tmp_path_factory.mktemp("tissue")
    Tissue((300, 360), seed=5, cell_diameter=20).to_spatialdata(chunks=128).write(folder / "image.zarr")
    shutil.copytree(folder / "image.zarr", folder / "plain.zarr")
    assert main([*_run(folder / "plain.zarr"), "--n-jobs", "1"]) == 0
    assert sd.read_zarr(folder / "plain.zarr")["segmentation_table"].n_obs > 50
    return folder / "image.zarr", _bytes(folder / "plain.zarr")


def _run(store, *more):
    return [
        "run",
        str(store),
        "--image",
        "image",
        "--workflow",
        "dapi",
        "--shard-size",
        "3600",
        "--quiet",
        *map(str, more),
    ]


def _bytes(store):
    files = [p for p in store.rglob("*") if p.is_file() and ".spatialdata_segment" not in p.parts]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _config(folder, **settings):
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"log_directory": str(folder / "logs")} | settings))
    return path


def test_local_workers_write_the_same_bytes(tissue, tmp_path):
    image, expected = tissue
    shutil.copytree(image, tmp_path / "a.zarr")
    config = _config(tmp_path, jobs=2)
    assert main(_run(tmp_path / "a.zarr", "--cluster", "local", "--cluster-config", config)) == 0
    assert _bytes(tmp_path / "a.zarr") == expected


def test_local_workers_tell_what_they_have():
    config = ClusterConfig(cores=2, memory="1 GiB", processes=2, decode={"processes": 1, "gpus": 2})
    with cluster_client("local", config) as client:
        found = client.cluster.scheduler_info["workers"].values()
        assert [(w["nthreads"], w["memory_limit"], w["resources"]) for w in found] == [(1, 2**29, {})] * 2
    with cluster_client("local", config, "decode") as client:
        (worker,) = client.cluster.scheduler_info["workers"].values()
        assert (worker["nthreads"], worker["resources"]) == (2, {"GPU": 2})


def test_one_worker_for_each_gpu(monkeypatch):
    """A stand-in for dask-cuda, which needs GPUs: what it is asked for."""
    from distributed import LocalCluster

    asked = []

    class LocalCUDACluster(LocalCluster):
        def __init__(self, **options):
            asked.append(options)
            super().__init__(**(options | {"processes": False, "n_workers": options.get("n_workers", 1)}))

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=LocalCUDACluster))
    with cluster_client("cuda") as client:
        (worker,) = client.cluster.scheduler_info["workers"].values()
        assert worker["resources"] == {"GPU": 1}
    with cluster_client("cuda", ClusterConfig(cores=4, memory="2 GiB", gpus=2)):
        assert (asked[1]["n_workers"], asked[1]["threads_per_worker"], asked[1]["memory_limit"]) == (2, 2, 2**30)
    with (
        pytest.raises(InputError, match="starts one for each GPU"),
        cluster_client("cuda", ClusterConfig(cores=4, memory="2 GiB", processes=2)),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "modules", "extra"), [("slurm", "dask_jobqueue", "cluster"), ("cuda", "dask_cuda", "gpu")]
)
def test_a_missing_package_names_the_extra(kind, modules, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, modules, None)
    with (
        pytest.raises(MissingError, match=rf"pip install 'spatialdata-segment\[{extra}\]'"),
        cluster_client(kind, ClusterConfig(**SMALL)),
    ):
        pass


def test_clusters_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="cluster template"), cluster_client("slurm"):
        pass
    with pytest.raises(InputError, match="expected one of slurm, local, cuda"), cluster_client("pbs"):
        pass
    with (
        pytest.raises(ClusterError, match="'nope' is not a valid network interface"),
        cluster_client("local", ClusterConfig(**SMALL, interface="nope")),
    ):
        pass


@needs_jobqueue
def test_ctrl_c_stays_an_interruption():
    """Import in a process of its own: here it may have happened."""
    code = (
        "import signal; from spatialdata_segment.cluster import slurm; slurm._cluster_class(); "
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_jobqueue
def test_without_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MissingError, match="sbatch is not there"),
        cluster_client("slurm", ClusterConfig(**SMALL, log_directory=str(tmp_path))),
    ):
        pass


# a real SLURM


@pytest.fixture
def jobs_of_this_test(tmp_path, monkeypatch):
    """Tell the jobs of this test from those of others, which run at the same time, and look at the queue often."""
    monkeypatch.setattr(slurm, "JOB_NAME", f"test-{uuid4().hex[:8]}")
    monkeypatch.setattr(slurm, "_POLL_S", 1.0)

    def jobs(states="all"):
        command = ["squeue", "--me", "--noheader", f"--name={slurm.JOB_NAME}", f"--states={states}", "--format=%i"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return jobs


@needs_slurm
def test_jobs_cancelled_and_requeued_change_nothing(tissue, tmp_path, jobs_of_this_test):
    image, expected = tissue
    shutil.copytree(image, tmp_path / "a.zarr")
    done: list[str] = []

    def disturb(event):
        """End a job when a quarter of the shards is done, the other one at the half."""
        if (
            event.stage == "nucleus shards"
            and event.total > event.done >= event.total * (len(done) + 1) / 4
            and not done[1:]
        ):
            command = (["scancel"], ["scontrol", "requeue"])[len(done)]
            subprocess.run([*command, jobs_of_this_test("RUNNING")[0]], check=True)
            done.append(command[0])

    with listen(disturb):
        arguments = _run(tmp_path / "a.zarr", "--cluster", "slurm", "--cluster-config", _config(tmp_path, jobs=2))
        assert main(arguments) == 0
    assert done == ["scancel", "scontrol"]
    assert _bytes(tmp_path / "a.zarr") == expected
    for _ in range(50):  # SLURM takes a moment to end jobs
        if not (left := jobs_of_this_test("PENDING,RUNNING")):
            break
        time.sleep(0.2)
    assert not left


@needs_slurm
def test_phases_run_in_jobs_of_their_own(tissue, tmp_path, jobs_of_this_test):
    image, expected = tissue
    shutil.copytree(image, tmp_path / "a.zarr")
    config = _config(tmp_path, predict={"partition": None, "walltime": "00:10:00"}, decode={"cores": 2})
    assert main(_run(tmp_path / "a.zarr", "--cluster", "slurm", "--cluster-config", config)) == 0
    assert _bytes(tmp_path / "a.zarr") == expected
    assert {p.name for p in (tmp_path / "a.zarr" / ".spatialdata_segment").iterdir()} == {"segmentation.run.json"}
    assert len(list((tmp_path / "logs").glob(f"{slurm.JOB_NAME}-*.err"))) == 2


@needs_slurm
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"partition": "nope"}, InputError, "invalid partition specified: nope"),
        ({"memory": "9000 TiB"}, InputError, "SLURM refuses the jobs"),
        ({"python": "/no/python"}, ClusterError, r"every job ended .*\.err ends: .*/no/python: No such file"),
        (
            {"extra_directives": ["--begin=now+1hour"], "start_timeout": "1 s"},
            ClusterError,
            r"no worker within 1 s: job \d+ is PENDING \(BeginTime\)",
        ),
    ],
)
@pytest.mark.usefixtures("jobs_of_this_test")
def test_slurm_s_reason_is_told(settings, error, message, tmp_path):
    config = ClusterConfig(**(SMALL | {"log_directory": str(tmp_path)} | settings))
    with pytest.raises(error, match=message), cluster_client("slurm", config):
        pass


@needs_slurm
def test_jobs_that_only_end_end_the_run(tmp_path, jobs_of_this_test):
    def wait_in_vain():
        with cluster_client("slurm", ClusterConfig(**SMALL, log_directory=str(tmp_path))) as client:
            client.cluster.new_spec["options"]["python"] = "/no/python"
            subprocess.run(["scancel", *jobs_of_this_test()], check=True)
            client.gather(client.map(time.sleep, [60]))

    with pytest.raises(ClusterError, match="3 jobs ended one after the other"):
        wait_in_vain()

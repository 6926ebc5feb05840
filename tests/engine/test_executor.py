import threading
import time

import pytest

from spatialdata_segment.engine.events import Event, listen, progress_bars
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import InputError


def _slow_square(x):
    time.sleep(0.02 * (5 - x))
    return x * x


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_results_keep_the_order_of_the_items(n_jobs):
    assert Executor(n_jobs).map(_slow_square, range(5), "squares") == [0, 1, 4, 9, 16]


def test_where_it_runs():
    assert Executor(1).where == "serial"
    assert Executor(2).where == "threads"
    assert Executor().n_jobs >= 1
    main = threading.get_ident()
    assert set(Executor(1).map(lambda _: threading.get_ident(), range(3), "ids")) == {main}
    assert main not in Executor(2).map(lambda _: threading.get_ident(), range(3), "ids")


def test_no_more_tasks_in_flight_than_jobs():
    running, most, lock = 0, 0, threading.Lock()

    def task(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    Executor(2).map(task, range(8), "tasks")
    assert most == 2


@pytest.mark.parametrize("n_jobs", [0, -1])
def test_no_jobs(n_jobs):
    with pytest.raises(InputError, match=f"n_jobs={n_jobs}"):
        Executor(n_jobs)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_error_of_a_task_is_raised(n_jobs):
    with pytest.raises(ZeroDivisionError):
        Executor(n_jobs).map(lambda x: 1 // x, [1, 0, 2], "division")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_events_count_to_the_total(n_jobs):
    heard = []
    with listen(heard.append):
        Executor(n_jobs).map(abs, [1, 2, 3], "work", before=2)
        Executor(n_jobs).map(abs, [], "nothing")
    assert heard[:4] == [Event("work", k, 5) for k in (2, 3, 4, 5)]
    assert heard[4:] == [Event("nothing", 0, 0)]
    Executor(n_jobs).map(abs, [1], "unheard")
    assert len(heard) == 5


def test_progress_bars(capsys):
    for shown in (True, False):
        with progress_bars(shown):
            Executor(1).map(abs, [1, 2], "visible work")
        assert ("visible work" in capsys.readouterr().err) is shown


def test_distributed_client_is_used():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        executor, heard = Executor(1), []
        assert executor.where == "distributed"
        with listen(heard.append):
            assert executor.map(_slow_square, range(5), "squares") == [0, 1, 4, 9, 16]
        assert heard[-1] == Event("squares", 5, 5)
        with pytest.raises(ZeroDivisionError):
            executor.map(lambda x: 1 // x, [0, 1], "division")
    assert Executor(1).where == "serial"

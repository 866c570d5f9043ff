"""The tests of ``run_on_ray``, which test_ray_tasks.py runs in a process of their own.

One cluster of two nodes for all tests of this file; the tests that need several minutes start their own.
"""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison import FairnessError, compare
from preconditioned_attention.lab.comparison.scheduling import ray_cluster
from preconditioned_attention.lab.comparison.scheduling.ray_tasks import run_on_ray
from preconditioned_attention.lab.training.errors import Interrupted
from tests.helpers.comparison_results import results_without_times
from tests.helpers.scheduled_runs import PLAN, begin, killed_always, log, logged, unfair

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def start_cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    return cluster


@pytest.fixture(scope="module")
def cluster():
    started = start_cluster()
    yield started
    started.shutdown()


def run_on(cluster, job):
    """Do all runs of ``job``, and return what was told. The first test has asked whether the cluster answers."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "_check_answer", lambda address: None)
        run_on_ray(job, list(job.plan.run_keys()), address=cluster.address, note=lines.append)
    return lines


def test_two_nodes_do_the_runs_and_the_results_are_those_of_one_process(cluster, tmp_path, monkeypatch):
    sights = []
    check = ray_cluster._check_sight
    monkeypatch.setattr(
        ray_cluster, "_check_sight", lambda node, sight, *rest: sights.append(sight) or check(node, sight, *rest)
    )
    options = {"verbose": False, **PLAN}
    compare(logged, output=tmp_path / "here", **options)
    compare(logged, output=tmp_path / "ray", ray_address=cluster.address, **options)
    assert results_without_times(tmp_path / "here") == results_without_times(tmp_path / "ray")
    lines = log(tmp_path / "ray")
    assert len({line["stem"] for line in lines}) == len(lines) == 12
    assert len({line["process"] for line in lines} - {os.getpid()}) == 2
    assert {line["threads"] for line in lines} == {1}
    assert [sight.writes for sight in sights] == [True, True]
    assert not list((tmp_path / "ray").glob(".probe*"))


@pytest.mark.slow
def test_an_error_that_concerns_the_comparison_is_raised(cluster, tmp_path):
    with pytest.raises(FairnessError, match="had different initial weights"):
        run_on(cluster, begin(unfair, tmp_path))
    assert len(log(tmp_path)) < 12


def test_a_folder_that_a_node_does_not_see_is_refused(cluster, tmp_path, monkeypatch):
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: None if ".probe" in path.name else write(path, text))
    with pytest.raises(OSError, match=r"node [\d.]+ does not see .*choose a folder that every node shares"):
        run_on(cluster, begin(logged, tmp_path))
    assert log(tmp_path) == []


@pytest.mark.slow
def test_other_versions_on_a_node_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "versions", lambda: ("0.1", "2.0"))
    with pytest.raises(RuntimeError, match=r"node [\d.]+ has preconditioned-attention .*, and this process 0\.1 "):
        run_on(cluster, begin(logged, tmp_path))


@pytest.mark.slow
def test_a_run_that_kills_its_process_every_time_has_failed_and_the_others_finish(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "1")
    job = begin(killed_always, tmp_path)
    lines = run_on(cluster, job)
    failed = [key for key in job.plan.run_keys() if not job.record(key).finished]
    assert [key.stem for key in failed] == ["row-seed0-lr0.0001"]
    assert job.record(failed[0]).reason.startswith("Ray gave it up: WorkerCrashedError")
    assert len(lines) == 2


@pytest.mark.slow
def test_a_node_that_dies_costs_only_what_it_was_doing(tmp_path):
    cluster = start_cluster()
    try:
        (node,) = cluster.worker_nodes
        killer = threading.Thread(target=_remove_after_two_runs, args=(cluster, node, tmp_path))
        killer.start()
        job = begin(logged, tmp_path, seeds=range(6))
        run_on(cluster, job)
        killer.join(60)
    finally:
        cluster.shutdown()
    assert all(job.record(key).finished for key in job.plan.run_keys())
    assert 36 <= len(log(tmp_path)) <= 37


def _remove_after_two_runs(cluster, node, output):
    deadline = time.monotonic() + 60
    while len({line["process"] for line in log(output)}) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_ctrl_c_cancels_the_tasks(cluster, tmp_path):
    threading.Timer(8.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted, match=r"stopped with \d+ of 120 runs done"):
        compare(logged, output=tmp_path, ray_address=cluster.address, verbose=False, **{**PLAN, "seeds": range(20)})
    begun = len(log(tmp_path))
    time.sleep(2.0)
    assert len(log(tmp_path)) == begun < 120

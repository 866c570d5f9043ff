import dataclasses

from preconditioned_attention.lab.comparison import Plan, RunMetrics
from preconditioned_attention.lab.comparison.machines import list_machines, merge_environments
from tests.helpers.synthetic_runs import ARMS, make_records

PLAN = Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-3,))
METRICS = RunMetrics(validation=0.5, test=0.5)
RECORDS = list(make_records(PLAN, {(key.arm, 0, 1e-3): METRICS for key in PLAN.run_keys()}).values())


def at(second: float, seconds: float, **environment: object):
    return {
        "started": f"2026-01-01T00:00:{second:09.6f}+00:00",
        "seconds": seconds,
        "environment": {"date": f"day {second}", "host": "a", "packages": {"torch": "1"}, **environment},
    }


def records(*changes: dict[str, object]):
    return [dataclasses.replace(record, **change) for record, change in zip(RECORDS, changes, strict=False)]


def test_runs_one_after_the_other_are_one_at_a_time():
    (machine,) = list_machines(records(at(0, 2), at(2, 2), at(4.5, 1)))
    assert (machine.host, machine.runs, machine.at_a_time) == ("a", 3, 1)


def test_runs_that_overlap_are_counted_wherever_they_are_in_the_order():
    (machine,) = list_machines(records(at(3, 2), at(0, 10), at(4, 2)))
    assert machine.at_a_time == 3


def test_machines_differ_in_name_hardware_and_software_and_come_by_name():
    machines = list_machines(records(at(0, 9, host="b"), at(0, 9), at(0, 9, packages={"torch": "2"})))
    assert [machine.host for machine in machines] == ["a", "a", "b"]
    assert {machine.at_a_time for machine in machines} == {1}


def test_runs_of_earlier_versions_name_no_machine():
    assert list_machines(RECORDS) == ()
    assert merge_environments(RECORDS)["packages"]["torch"]


def test_environments_are_one_where_they_agree():
    merged = merge_environments(records(at(5, 1), at(1, 1, host="b", packages={"torch": "2"})))
    assert merged == {"date": "day 5", "host": ["a", "b"], "packages": {"torch": ["1", "2"]}}

import pytest

from preconditioned_attention.lab.comparison import Plan, compare, report_runs
from preconditioned_attention.lab.comparison.scheduling.slice import check_slice, keys_of_slice, parse_slice
from tests.helpers.comparison_results import results_without_times
from tests.helpers.synthetic_runs import ARMS, run

PLAN = Plan(ARMS, seeds=(0, 1, 2), learning_rates=(1e-4, 1e-3, 1e-2))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10, 40])
def test_slices_are_the_plan_in_order_and_keep_arms_together(count):
    slices = [keys_of_slice(PLAN, (number, count)) for number in range(1, count + 1)]
    assert [key for part in slices for key in part] == list(PLAN.run_keys())
    assert {len(part) % len(ARMS) for part in slices} == {0}
    sizes = [len(part) // len(ARMS) for part in slices]
    assert max(sizes) - min(sizes) <= 1


def test_no_slice_is_everything():
    assert keys_of_slice(PLAN, None) == list(PLAN.run_keys())


def test_slices_are_read():
    assert [parse_slice(text) for text in ("1/1", "2/3", "07/10")] == [(1, 1), (2, 3), (7, 10)]


@pytest.mark.parametrize(
    "text",
    ["0/3", "4/3", "a/b", "1/0", "0/0", "-1/3", "1", "1/", "/3", "1/3/5", "1.0/3", " 1/3", "1/3 ", "", "9" * 20 + "/3"],
)
def test_what_is_no_slice_is_told(text):
    with pytest.raises(ValueError, match=r"slice must be .*such as 1/3; got"):
        parse_slice(text)


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0), (1,), (1, 2, 3), "13", 1, (1.0, 3), (True, 3), None])
def test_what_is_no_slice_is_told_in_python(part):
    with pytest.raises(ValueError, match="slice must be a number from 1 to n"):
        check_slice(part)


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "three folders"])
def test_slices_together_are_the_whole(tmp_path, shared, capsys):
    options = {"learning_rates": PLAN.learning_rates, "seeds": PLAN.seeds, "resume": True}
    compare(run, output=tmp_path / "whole", verbose=False, **options)
    folders = [tmp_path / ("shared" if shared else str(number)) for number in (3, 1, 2)]
    for number, folder in zip((3, 1, 2), folders, strict=True):
        part = compare(run, output=folder, part=(number, 3), **options)
        last = shared and number == 2
        assert (folder / "summary.json").exists() == last
        assert len(part.records) == (27 if last else 18 if shared and number == 1 else 9)
        assert ("runs of the comparison are not in" in capsys.readouterr().out) != last
    if not shared:
        report_runs(folders, output=tmp_path / "shared")
    assert results_without_times(tmp_path / "shared") == results_without_times(tmp_path / "whole")


def test_an_empty_slice_has_nothing_to_do(tmp_path):
    options = {"learning_rates": (1e-3,), "seeds": (0,), "verbose": False, "resume": True}
    for number in (1, 2, 3):
        compare(run, output=tmp_path, part=(number, 3), **options)
    assert len(list((tmp_path / "runs").iterdir())) == len(ARMS)
    assert (tmp_path / "report.html").exists()

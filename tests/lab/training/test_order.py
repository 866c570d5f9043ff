import itertools

import pytest

from preconditioned_attention.lab.training.order import BatchOrder


def batches(count: int, **options: int) -> list[list[int]]:
    return list(itertools.islice(BatchOrder(**{"size": 26, "batch_size": 8, "seed": 0, **options}), count))


def test_an_epoch_holds_no_example_twice() -> None:
    first, second = batches(6)[:3], batches(6)[3:]
    for epoch in (first, second):
        indices = list(itertools.chain(*epoch))
        assert len(set(indices)) == 24
        assert set(indices) <= set(range(26))
    assert first != second


def test_seeds_give_other_orders() -> None:
    assert batches(3, seed=1) != batches(3) == batches(3)


@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_starting_later_gives_the_same_batches(first_step: int) -> None:
    assert batches(4, first_step=first_step) == batches(4 + first_step)[first_step:]


@pytest.mark.parametrize(("processes", "accumulation_steps"), [(2, 1), (1, 2), (2, 2), (4, 2), (1, 8)])
def test_the_global_batch_does_not_depend_on_how_it_is_shared(processes: int, accumulation_steps: int) -> None:
    shares = [
        batches(5 * accumulation_steps, processes=processes, process=process, accumulation_steps=accumulation_steps)
        for process in range(processes)
    ]
    for step, whole in enumerate(batches(5)):
        parts = [share[step * accumulation_steps + micro] for share in shares for micro in range(accumulation_steps)]
        assert {len(part) for part in parts} == {8 // (processes * accumulation_steps)}
        assert sorted(itertools.chain(*parts)) == sorted(whole)


def test_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="batch_size must be at most the 26 training examples; got 27"):
        BatchOrder(size=26, batch_size=27, seed=0)


def test_batch_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="processes times accumulation_steps, 2 x 3; got 8"):
        BatchOrder(size=26, batch_size=8, seed=0, processes=2, accumulation_steps=3)


def test_repeats_stand_in_one_batch_and_leave_the_epoch_its_length() -> None:
    epoch = list(itertools.chain(*batches(3, repeats=4)))
    groups = [epoch[start : start + 4] for start in range(0, 24, 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(epoch)) == 6
    assert batches(3, repeats=4) == batches(3, repeats=4)
    assert batches(6, repeats=4)[3:] != batches(3, repeats=4)


def test_the_data_in_its_own_order() -> None:
    epoch = [[*range(8)], [*range(8, 16)], [*range(16, 24)]]
    assert batches(6, shuffle=False) == [*epoch, *epoch]
    assert batches(2, shuffle=False, first_step=2) == [epoch[2], epoch[0]]


def test_a_growing_batch() -> None:
    order = BatchOrder(size=26, batch_size=8, seed=0, ramp_steps=8)
    assert [order.batch_size_at(step) for step in range(10)] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    taken = batches(10, ramp_steps=8)
    assert [len(batch) for batch in taken] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    fixed = list(itertools.chain(*batches(8)))
    assert list(itertools.chain(*taken)) == fixed[:52]  # the same examples in the same order, cut otherwise


@pytest.mark.parametrize("first_step", [1, 5, 6, 7, 12])
def test_starting_later_in_a_ramp_gives_the_same_batches(first_step: int) -> None:
    options = {"ramp_steps": 8, "accumulation_steps": 2}
    whole = batches(2 * (first_step + 3), **options)
    assert batches(6, first_step=first_step, **options) == whole[2 * first_step :]


def test_a_growing_batch_can_always_be_shared() -> None:
    order = BatchOrder(size=26, batch_size=8, seed=0, ramp_steps=5, processes=2, accumulation_steps=2)
    assert [order.batch_size_at(step) for step in range(6)] == [4, 4, 4, 4, 8, 8]

import torch

from preconditioned_attention.lab.data.sequences import Sequences, collate_sequences


def test_bytes_become_ids() -> None:
    data = Sequences([b"abc", b"\xff"], [1, 0], offset=1)
    assert len(data) == 2
    assert (data[0][0].tolist(), data[0][1]) == ([98, 99, 100], 1)
    assert data[1][0].tolist() == [256]


def test_batches_are_padded_to_their_longest() -> None:
    ids, labels = collate_sequences([(torch.tensor([1, 2]), 3), (torch.tensor([4]), 5)])
    assert ids.tolist() == [[1, 2], [4, 0]]
    assert labels.tolist() == [3, 5]


def test_pairs_are_padded_each_for_itself() -> None:
    first, second, labels = collate_sequences(
        [(torch.tensor([1, 2]), torch.tensor([7]), 0), (torch.tensor([4]), torch.tensor([8]), 1)]
    )
    assert (first.shape, second.shape, labels.tolist()) == ((2, 2), (2, 1), [0, 1])

import pytest
import torch

from preconditioned_attention.lab.comparison.threads import one_thread


@pytest.mark.parametrize(("accelerator", "threads"), [(False, 1), (True, 3)])
def test_one_thread_on_a_cpu_until_the_end_of_the_block(monkeypatch, accelerator, threads):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

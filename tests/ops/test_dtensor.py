from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops.dtensor import _strides_like
from tests.helpers import dtensor_worker as worker


def test_two_processes() -> None:
    checks = [worker.merged_heads_need_no_copy, worker.heads_that_do_not_divide, worker.refusals]
    mp.spawn(worker.work, (worker.free_port(), checks), nprocs=2)  # raises what a process raises


@pytest.fixture
def alone() -> Iterator[None]:
    """This process as the only one of its group."""
    worker.connect(0, 1, worker.free_port())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_process_and_meshes_of_two_axes() -> None:
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(1)], [Replicate(), Shard(1)]):
        worker.same_on_every_process(init_device_mesh("cpu", (1, 1)), placements, [Replicate(), Shard(0)])


@pytest.mark.usefixtures("alone")
def test_partial_sums_and_other_meshes_are_refused() -> None:
    mesh, other = init_device_mesh("cpu", (1,)), init_device_mesh("cpu", (1, 1))
    x = torch.randn(1, 2, 3, 4)
    sums = DTensor.from_local(x, mesh, [Partial()])
    worker.refused(ValueError, "must have the same placements, each Replicate() or Shard()", sums, sums, sums)
    part, elsewhere = distribute_tensor(x, mesh, [Shard(1)]), distribute_tensor(x, other, [Shard(1), Replicate()])
    worker.refused(ValueError, "on one device mesh", part, elsewhere, elsewhere)


@pytest.mark.usefixtures("alone")
def test_dropout_and_grouped_batches() -> None:
    """Five axes: two of the batch. Where nothing is replicated, dropout draws from the process's own generator."""
    mesh = init_device_mesh("cpu", (1,))
    x = torch.randn(2, 3, 2, 5, 8)
    part = distribute_tensor(x, mesh, [Shard(2)])
    torch.manual_seed(3)
    out = preconditioned_attention(part, part, part, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(out.full_tensor(), preconditioned_attention(x, x, x, dropout_p=0.5))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 0, 2, 1)])
def test_strides_of_the_whole_follow_those_of_a_part(order: tuple[int, ...]) -> None:
    sizes, back = [2, 3, 4, 5], [order.index(axis) for axis in range(4)]
    part = torch.empty([sizes[axis] for axis in order]).permute(back)
    whole = [2, 6, 4, 5]
    expected = torch.empty([whole[axis] for axis in order]).permute(back)
    assert _strides_like(part, whole) == expected.stride()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_compiles_to_one_graph(gradient: str) -> None:
    mesh = init_device_mesh("cpu", (1,))
    x = distribute_tensor(torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True), mesh, [Shard(1)])
    gain = distribute_tensor(torch.randn(4, dtype=torch.float64, requires_grad=True), mesh, [Replicate()])

    def attend(x: DTensor, gain: DTensor) -> DTensor:
        return preconditioned_attention(x, x, x, gradient=gradient, gain=gain)

    out, expected = torch.compile(attend, fullgraph=True, backend="aot_eager")(x, gain), attend(x, gain)
    assert out.placements == (Shard(1),)
    grads, wanted = (torch.autograd.grad(y.square().cos().sum(), (x, gain)) for y in (out, expected))
    for actual, exact in zip((out, *grads), (expected, *wanted), strict=True):
        assert (actual - exact).full_tensor().abs().max() <= 1e-13

"""The contrastive loss and its gradients in several processes, compared with one: run by torchrun."""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from beit3_vqa.models.names import build_model
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import processes, shard_range
from beit3_vqa.tasks.losses import contrastive_loss
from tests.helpers.upstream import SIZES

CPU = torch.device("cpu")
ROWS = 7


def model():
    torch.manual_seed(0)
    # In float64: fresh features are nearly parallel, so that gradients in float32 would be half rounding.
    return build_model("beit3_base_patch16_64_retrieval", **SIZES).double()


def gradients(of) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in of.named_parameters() if p.grad is not None and p.grad.any()}


def run() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(ROWS, 3, 64, 64, generator=generator, dtype=torch.float64)
    text = torch.randint(4, 100, (ROWS, 9), generator=generator)
    alone = {}
    for rows in (ROWS, 4, 2, 1):  # unequal shares, equal ones, one each, and none for one of the processes
        one = model()
        loss = contrastive_loss(one(image[:rows], text[:rows]))
        loss.backward()
        alone[rows] = loss.detach(), gradients(one)
    with processes(CPU, 60):
        size, rank = distributed.world_size(), distributed.rank()
        for rows, (loss, expected) in alone.items():
            begin, end = shard_range(rows, rank, size)
            mine = slice(begin, end) if end > begin else slice(0, 1)  # as the loader fills an empty share
            ours = DistributedDataParallel(model(), find_unused_parameters=True)
            part = contrastive_loss(ours(image[mine], text[mine]), rows) * ((end - begin) / rows)
            (part * size).backward()  # the mean over processes is taken of a sum
            total = distributed.all_reduce_sum(part.detach().clone())
            assert abs(total - loss) <= 1e-9, (total, loss)
            found = gradients(ours.module)
            # One row alone has nothing to be told from: no gradient at all but rounding.
            largest = max([g.abs().max() for g in expected.values()], default=torch.tensor(1.0)) if rows > 1 else 1.0
            for name in expected.keys() | found.keys():
                one, two = (g.get(name, torch.zeros(())) for g in (expected, found))
                assert (one - two).abs().max() <= 1e-9 * largest, f"{rows} rows: {name}"
            if distributed.is_main():
                print(f"{rows} rows: the same as one process", file=sys.stderr)


if __name__ == "__main__":
    run()

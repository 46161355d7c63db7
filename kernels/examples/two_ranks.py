"""A contrastive training loop in plain PyTorch, on two processes of one CPU:

torchrun --standalone --nproc-per-node 2 two_ranks.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from fastclip_kernels import ClipLoss

BATCH, STEPS = 64, 60  # pairs of one rank


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_tower, self.text_tower = nn.Linear(48, 16), nn.Linear(32, 16)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # its logarithm: exp(2.66) = 14.3

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        image, text = self.image_tower(image), self.text_tower(text)
        return normalize(image, dim=1), normalize(text, dim=1), self.logit_scale.exp()


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights, and the same two views of what is in a picture
    model = DistributedDataParallel(TwoTowers())
    views = torch.randn(8, 48), torch.randn(8, 32)
    torch.manual_seed(1 + rank)  # and other pictures on every rank
    loss_of = ClipLoss(True, gather_with_grad=True, rank=rank, world_size=world_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        content = torch.randn(BATCH, 8)
        loss = loss_of(*model(*(content @ view for view in views)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(shown := loss.detach() / world_size)
        if rank == 0 and step % 10 == 9:
            print(f"step {step + 1}: loss {shown:.4f}", flush=True)
    # Python < 3.14 aborts where a thread of gloo lets go of a tensor while the interpreter ends
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

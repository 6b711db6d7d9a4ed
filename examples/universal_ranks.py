"""One perturbation from several processes, each with its shard of the data:

    torchrun --nproc-per-node=2 examples/universal_ranks.py

Run by python alone, it is one process with all the data. Loaders that accelerate has prepared serve
too; with `even_batches=False` each sample counts once."""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import fastadv as fa

torch.set_num_threads(1)
if "RANK" in os.environ:
    dist.init_process_group("gloo")  # "nccl" with a GPU each
rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

torch.manual_seed(0)  # the same net on every rank
digits = load_digits()
x, y = torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)
net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for index in torch.randperm(1400).repeat(4).split(50):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[index]), y[index]).backward()
    optimizer.step()

data = TensorDataset(x, y)
seen = DataLoader(Subset(data, range(rank, 1400, count)), 200 // count)
unseen = DataLoader(Subset(data, range(1400 + rank, len(data), count)), 200)
uap = fa.universal.gradient(fa.bim(fa.Linf(0.3), 0.03), net, seen, epochs=5)
rates = fa.universal.measure(uap, net, unseen)  # counts of every rank
if rank == 0:
    print(f"{rates}, of {count} processes")
if dist.is_initialized():
    dist.destroy_process_group()

"""A linear classifier trained on frozen features, by CLIP_benchmark's recipe."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

EPOCHS = 10
LEARNING_RATE = 0.1
BATCH_SIZE = 64


def train_probe(
    features: Tensor,  # (N, D), unit norm
    labels: Tensor,  # int64 (N,)
    num_classes: int,
    *,
    seed: int,
) -> nn.Linear:
    """AdamW without weight decay, cosine schedule from 0.1, ten epochs in random order of 64.

    Initialisation and order of samples are those of CLIP_benchmark with the same seed, torch's
    global generator and DataLoader being asked in its order. The features stay where they are; no
    sample is copied to train on it.
    """
    torch.manual_seed(seed)
    probe = nn.Linear(features.shape[1], num_classes).to(features.device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    order: DataLoader[int] = DataLoader(range(len(labels)), BATCH_SIZE, shuffle=True)  # type: ignore[arg-type]
    steps = EPOCHS * len(order)
    labels = labels.to(features.device)
    step = 0
    for _ in tqdm(range(EPOCHS), desc="probe", unit="epoch", disable=None):
        for batch in order:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            rows = batch.to(features.device)
            loss = F.cross_entropy(probe(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return probe

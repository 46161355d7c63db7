import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seed() -> int:
    """A fresh seed for every run; printed, so that a failure can be repeated."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed {value}")
    return value


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine, tiny tensors on many threads spend their time in barriers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.tiny_hub import Reference, make_hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("models") / "hub", seed=3)


@pytest.fixture(scope="session")
def reference(hub: Path) -> Reference:
    return Reference(hub)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return np.random.default_rng(seed)

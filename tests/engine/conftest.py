"""Engine tests: one thread for torch, because tiny models on shared cores only wait for a second one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.engine import models


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("llama"), "llama")

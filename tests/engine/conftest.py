"""Engine tests: one thread for torch, and models that all of them share."""

from pathlib import Path

import pytest

from tests.engine import models


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("llama"), "llama")

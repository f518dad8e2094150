"""Settings that every test shares: torch's threads, a seed that is printed, and no way out to a model hub."""

import os
import random

import pytest

SEED = pytest.StashKey[int]()

# The test machines have two cores; several test processes with a pool of threads each only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trust", action="store_true", help="also run the tests that take longer than an everyday run")
    parser.addoption("--seed", type=int, default=None, help="seed of the tests that draw at random")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {_seed(config)} (again with --seed {_seed(config)})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--trust"):
        return
    skip = pytest.mark.skip(reason="longer than an everyday run; add --trust")
    for item in items:
        if "trust" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; a test that draws at random draws from it."""
    return _seed(request.config)


def _seed(config: pytest.Config) -> int:
    if SEED not in config.stash:
        given = config.getoption("--seed")
        config.stash[SEED] = random.SystemRandom().randrange(1 << 31) if given is None else int(given)
    return config.stash[SEED]

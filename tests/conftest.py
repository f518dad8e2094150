"""Settings that every test shares: torch's threads, a seed that is printed, and no way out to a model hub.

An everyday run draws the same every time, so that what it says of a commit depends on the commit alone. `--trust`
draws anew, and `--seed N` draws what N gives: that is how new failures are looked for, and found again.
"""

import os
import random
from collections.abc import Iterator

import hypothesis
import pytest

EVERYDAY_SEED = 20
SEED = pytest.StashKey[int]()

# The test machines have two cores; several test processes with a pool of threads each only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trust", action="store_true", help="also run the tests that take longer than an everyday run")
    parser.addoption("--pictures", action="store_true", help="tests of the page make the README's pictures anew")
    parser.addoption("--seed", type=int, default=None, help="seed of the tests that draw at random")


def pytest_configure(config: pytest.Config) -> None:
    drawn = config.getoption("--trust") or config.getoption("--seed") is not None
    hypothesis.settings.register_profile("quire", derandomize=not drawn, database=None)
    hypothesis.settings.load_profile("quire")
    if config.getoption("--seed") is not None and not config.getoption("--hypothesis-seed"):
        config.option.hypothesis_seed = str(_seed(config))


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: the tiny models of tests only wait for a second one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _seed(config: pytest.Config) -> int:
    if SEED not in config.stash:
        given = config.getoption("--seed")
        if given is None:
            given = random.SystemRandom().randrange(1 << 31) if config.getoption("--trust") else EVERYDAY_SEED
        config.stash[SEED] = int(given)
    return config.stash[SEED]

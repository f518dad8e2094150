"""A rolling restart of a real cluster under load: every process is another one after it, and no stream notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.watching.logs import read_lines
from tests.cluster.clusters import GREEDY, PROMPTS, SAMPLED, Answers, ask, ask_all, children, up, wait_for_workers

SETTINGS = ClusterSettings(
    workers=2, gateways=2, kv_blocks=512, cpus_per_worker=0.5, port=0, http_port=0, admin_port=0, metrics_port=0
)
PARAMS = (GREEDY, SAMPLED)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with up(SETTINGS, tmp_path_factory.mktemp("quire")) as running:
        yield running


def actors(running: Running) -> dict[int, str]:
    found = children(running.ray_pids)
    return {pid: words for pid, words in found.items() if "ray::" in words and "Actor" in words}


class Load:
    """Streams one after the other in several threads, each compared with what was said before the restart."""

    def __init__(self, running: Running, expected: dict[int, Answers]) -> None:
        self._running, self._expected = running, expected
        self.num_equal, self.problems = 0, []  # type: tuple[int, list[str]]
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(place,)) for place in range(len(PROMPTS))]
        for thread in self._threads:
            thread.start()

    def _run(self, place: int) -> None:
        turn = place
        # A breath between them: at full load the processes that start would have no core to do it on.
        while not self._is_over.wait(0.3):
            which = turn % len(PARAMS)
            turn += 1
            try:
                if ask(self._running, PROMPTS[place], PARAMS[which]) == self._expected[which][place]:
                    self.num_equal += 1
                else:
                    self.problems.append(f"other tokens for {PROMPTS[place]!r}")
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(100)
            assert not thread.is_alive()


@pytest.mark.timeout(400)
def test_every_process_is_another_one_and_every_stream_is_whole(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_workers(running, 2)
    expected = {which: ask_all(running, params) for which, params in enumerate(PARAMS)}
    before = actors(running)
    load = Load(running, expected)
    try:
        assert main(["restart", "--rolling"]) == 0
    finally:
        load.end()
    told = capsys.readouterr().out
    print(told, load.num_equal, "streams")
    assert not load.problems, load.problems[:5]
    assert load.num_equal > len(PROMPTS)
    names = ["gateway-0", "gateway-1", "demo-0", "demo-1", "scheduler"]
    assert [line.split()[2] for line in told.splitlines() if line.endswith("serves again")] == names
    left = {words for pid, words in actors(running).items() if pid in before}
    assert all("HostPool" in words for words in left), left
    assert len(actors(running)) == len(before)
    lines = read_lines(Path(running.settings["log_dir"]), level="error")
    assert not lines, lines
    told = "\n".join(line["message"] for line in read_lines(Path(running.settings["log_dir"])))
    for name in names[:4]:
        assert f"{name} has left" in told and f"{name} is lost" not in told


def test_it_has_to_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart"]) == 2
    assert "give --rolling" in capsys.readouterr().err
    assert main(["restart", "--rolling", "--only", "all"]) == 2
    assert "give gateways, workers, scheduler" in capsys.readouterr().err

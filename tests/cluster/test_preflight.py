"""What `quire up` checks first: each thing that is wrong is one line that says what, where and the figure."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import worker.demo
from cluster.errors import ConfigError
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.preflight import NodeReport, compare, look
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL

DEMO = Path(worker.demo.__file__).parent
SETTINGS = ClusterSettings(device="cpu", workers=2)


def copy_of(folder: Path) -> Path:
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def nodes(*reports: NodeReport) -> dict[str, NodeReport]:
    return {f"node {number}": report for number, report in enumerate(reports)}


def refusal(settings: ClusterSettings, *reports: NodeReport) -> str:
    with pytest.raises(ConfigError) as caught:
        compare(settings, nodes(*reports))
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_two_copies_of_a_model_are_the_same_and_a_changed_one_is_not(tmp_path: Path) -> None:
    one, two = copy_of(tmp_path / "a" / "m"), copy_of(tmp_path / "b" / "m")
    here, there = look([str(one)], []), look([str(two)], [])
    assert here.problem == "" and here.weights_bytes > 1_000_000 and here.free_bytes > 0
    assert list(here.models.values()) == list(there.models.values())
    config = two / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-0', '"rms_norm_eps":  1e-0', 1) + "\n")
    changed = look([str(two)], [])
    named = [replace(report, models={"m": next(iter(report.models.values()))}) for report in (here, there, changed)]
    compare(SETTINGS, nodes(named[0], named[1]))
    line = refusal(SETTINGS, named[0], named[2])
    assert line.startswith("model m is ") and "on node 0" in line and "on node 1" in line


def test_what_a_node_cannot_read_is_named(tmp_path: Path) -> None:
    assert "no model folder" in refusal(SETTINGS, look([str(tmp_path / "nothing")], []))
    broken = copy_of(tmp_path / "m")
    (broken / "config.json").write_text("{")
    assert "config.json" in refusal(SETTINGS, look([str(broken)], []))
    assert "server.key" in refusal(SETTINGS, look(["demo"], [str(tmp_path / "server.key")]))


def test_nodes_must_speak_the_same(tmp_path: Path) -> None:
    good = look(["demo"], [])
    line = refusal(SETTINGS, good, replace(good, version="9.9"))
    assert line.startswith("Quire is ") and "9.9 on node 1" in line
    ours, theirs = (OLDEST_PROTOCOL, NEWEST_PROTOCOL), (NEWEST_PROTOCOL + 1, NEWEST_PROTOCOL + 2)
    line = refusal(SETTINGS, good, replace(good, protocols=theirs))
    assert f"the protocol is {ours} on node 0 and {theirs} on node 1" in line


def test_memory_that_is_not_there_is_named_with_the_figures() -> None:
    good = look(["demo"], [])
    compare(SETTINGS, nodes(good))
    line = refusal(replace(SETTINGS, host_memory="1000TiB"), good)
    assert "1000.0 TiB" in line and "free" in line and "--host-memory" in line

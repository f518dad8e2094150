"""Files that somebody wrote with bad intent, or a broken disk: journals, settings, tokens, batches and model folders.
Each value at its edges, each byte changed: what comes of it is good, or one line by name, soon. `--trust` draws more.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import pytest
from transformers import AutoConfig

from cluster.centre.journal import read as read_journal
from cluster.centre.replay import describe, replay
from cluster.cli.batch_file import Defaults, _read
from cluster.cli.size import read_config
from cluster.errors import QuireError
from cluster.gateway.models import TextModel
from cluster.lifecycle.cluster_settings import gather
from cluster.sampling import SamplingParams
from cluster.serving.auth import load_tokens, make_tokens
from cluster.sizing import kv_shape
from tests.cluster.test_journal import live
from tests.links.drawn import changed
from worker.demo import PATH as DEMO

Plain: TypeAlias = Any
EDGES: list[Plain] = [
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, 2**70, 1.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\x00", "é\ud800", "a" * 300, "../x", "[", [], {}, [[]], [None], ["x"], {"a": 1}, [{}] * 20),
    *({"new": "Submit", "is": []}, {"enum": "Reason", "is": 99}, {"bytes": "!"}, {"array": "i", "is": [1]}),
    *({"array": "d", "is": [1.5]}, {"map": [[1, 2]]}, {"map": [[[], 2]]}, {"map": 7}),
]
MAX_S = 2.0


def places(value: Plain, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a value of JSON something could be put; of long lists and objects a few places."""
    if path:
        yield path
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in (*keys[:40], *keys[-2:]):
        yield from places(value[key], (*path, key))


def mutated(value: Plain, random: Random) -> Plain:
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 2))):
        *way, last = random.choice(list(places(value)))
        part = value
        for key in way:
            part = part[key]
        if random.random() < 0.1 and isinstance(part, dict):
            del part[last]
        else:
            part[last] = deepcopy(random.choice(EDGES))
    return value


# -- kinds of files: how a good one is made, written after a change, and read


class Kind:
    """`good`: the file as a value. `reads`: what all readers of it do; raises QuireError."""

    def __init__(self, good: Plain, write: Callable[[Plain], bytes], reads: Callable[[bytes], object]) -> None:
        self.good = good
        self.write = write
        self.reads = reads


def journal(folder: Path) -> Kind:
    path = folder / "journal"
    live(path)
    lines = [json.loads(line.rpartition(" ")[0]) for line in path.read_text().splitlines()]
    for line in lines:
        if "of" in line:
            # A digest that would prove every change at once is left out.
            line["orders"] = ""

    def write(lines: Plain) -> bytes:
        texts = [json.dumps(line) for line in lines]
        return "".join(f"{text} {zlib.crc32(text.encode()):08x}\n" for text in texts).encode()

    def reads(raw: bytes) -> None:
        path.write_bytes(raw)
        scheduler = replay(read_journal(path))
        scheduler.check()
        describe(scheduler)

    return Kind(lines, write, reads)


def settings(folder: Path) -> Kind:
    path = folder / "settings.toml"
    good = {"model": ["demo", "a=b"], "workers": 2, "host_memory": "1GiB", "silence_s": 2.0, "autoscale": "1:4"}
    good |= {"kv_memory": "64MiB", "port": 50051, "gateways": 2, "cpus_per_worker": 0.5, "tls_key": "", "host": "::1"}

    def write(value: Plain) -> bytes:
        if not isinstance(value, dict):
            return repr(value).encode(errors="replace")
        return "".join(f"{name} = {json.dumps(one)}\n" for name, one in value.items()).encode(errors="replace")

    def reads(raw: bytes) -> None:
        path.write_bytes(raw)
        gather({}, path, {})

    return Kind(good, write, reads)


def tokens(folder: Path) -> Kind:
    path = folder / "tokens.json"
    made = make_tokens(path, [("a", ["inference"]), ("b", ["admin", "inference"])])
    good = json.loads(path.read_text())
    good[0] |= {"expires": "2031-01-01T00:00:00+00:00", "limits": {"pins": 3, "requests_per_s": 1.5}}

    def reads(raw: bytes) -> None:
        path.write_bytes(raw)
        book = load_tokens(path)
        book.caller(f"Bearer {made['b']}")
        book.limits("a")

    return Kind(good, dumped, reads)


def batch(folder: Path) -> Kind:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_tokens": 3, "seed": 1}
    good = [
        {"prompt": "a", "id": 7, "n": 2, "stop": ["x"], "logit_bias": {"3": 1.5}, "timeout_s": 3, "priority": 1},
        {"prompt_token_ids": [1, 2], "bad_words_token_ids": [[1, 2]], "forced_tokens": {"0": 1}, "beam_width": 2},
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
    ]
    path = folder / "in.jsonl"

    def write(value: Plain) -> bytes:
        return b"".join(dumped(line) + b"\n" for line in (value if isinstance(value, list) else [value]))

    def reads(raw: bytes) -> None:
        path.write_bytes(raw)
        with path.open("rb") as lines:
            _read(lines, "in.jsonl", Defaults(SamplingParams(), ""))

    return Kind(good, write, reads)


def model_file(name: str) -> Callable[[Path], Kind]:
    def made(folder: Path) -> Kind:
        # What a reader imports at its first use takes seconds.
        TextModel.load("m", DEMO)
        AutoConfig.from_pretrained(DEMO)
        for one in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
            shutil.copy(DEMO / one, folder / one)

        def reads(raw: bytes) -> None:
            (folder / name).write_bytes(raw)
            if name == "config.json":
                kv_shape(read_config(str(folder))).block_bytes(16)
            model = TextModel.load("m", folder)
            prompt = model.encode("Once upon a time")
            model.decode(prompt, True)
            model.resolve(SamplingParams(), len(prompt), 100, 1)

        return Kind(json.loads((DEMO / name).read_text()), dumped, reads)

    return made


def dumped(value: Plain) -> bytes:
    return json.dumps(value).encode()


KINDS: dict[str, Callable[[Path], Kind]] = {
    "journal": journal,
    "settings": settings,
    "tokens": tokens,
    "batch": batch,
    **{name: model_file(name) for name in ("config.json", "generation_config.json", "tokenizer_config.json")},
    "tokenizer.json": model_file("tokenizer.json"),
}


def fuzz(folder: Path, name: str, seed: int, seconds: float) -> None:
    random, kind, counts = Random(f"files/{name}/{seed}"), KINDS[name](folder), Counter[str]()
    kind.reads(kind.write(kind.good))
    until = time.monotonic() + seconds
    while time.monotonic() < until or sum(counts.values()) < 30:
        raw = kind.write(mutated(kind.good, random) if random.random() < 0.8 else kind.good)
        if random.random() < 0.3:
            raw = changed(raw, random)
        began, said = time.thread_time(), ""
        try:
            kind.reads(raw)
        except QuireError as error:
            said = str(error)
        except BaseException:
            print(f"{name}: {raw[:2_000]!r}")
            raise
        counts["refused" if said else "good"] += 1
        assert len(said) < 3_000 and time.thread_time() - began < MAX_S, raw[:2_000]
    print(f"{name}: {dict(counts)}")
    assert counts["good"] and counts["refused"]


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_file_is_good_or_refused_by_name(tmp_path: Path, seed: int, name: str) -> None:
    fuzz(tmp_path, name, seed, 1.0)


@pytest.mark.trust
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", KINDS)
def test_many_hostile_files(tmp_path: Path, seed: int, name: str) -> None:
    fuzz(tmp_path, name, seed, 60.0)

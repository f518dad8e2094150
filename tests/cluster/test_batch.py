"""Batches from files: nothing that stands in a file is lost, what a line says counts, answers come as they are."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import exits, main
from cluster.cli.batch_lines import read_line
from cluster.errors import InvalidRequest
from cluster.sampling import SamplingParams
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, slow

ROOT = Path(__file__).parents[2]
DEFAULTS = SamplingParams(max_tokens=5, seed=3)


def batch(door: Door, *words: str, given: str | None = None) -> "asyncio.Future[subprocess.CompletedProcess[str]]":
    """A batch as a user runs one, in a process of its own."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(door, *words), cwd=ROOT, input=given, capture_output=True, text=True, timeout=60, check=False
        )

    return asyncio.ensure_future(asyncio.to_thread(run))


def start(words: list[str], stdout: int | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(words, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True)


def command(door: Door, *words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", "generate", "--address", door.address, *words]


def ids(*tokens: int) -> str:
    return json.dumps({"prompt_token_ids": list(tokens), "max_tokens": 5, "seed": 3, "detokenize": False})


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("notes of mine\n", "line 1 of --out OUT is no answer of a batch"),
        ("notes without an end", "line 1 of --out OUT is no answer of a batch"),
        ('{"line": 1, "texts": ["x"]}\n', "line 1 of --out OUT is no answer"),
        ('{"asked": "abc", "line": 1}\n[]\n', "line 2 of --out OUT is no answer"),
        ('{"asked": 3}\n', "line 1 of --out OUT is no answer"),
        ("\x00\xff\n", "line 1 of --out OUT is no answer"),
    ],
)
def test_a_file_that_holds_anything_else_is_kept_and_refused(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text('"Once"\n')
    out.write_text(content, encoding="latin-1")
    before = out.read_bytes()
    assert main(["generate", "--address", "127.0.0.1:1", "--file", str(questions), "--out", str(out)]) == 2
    assert said.replace("OUT", str(out)) in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["in.jsonl", "link.jsonl", "folder", "nowhere/out.jsonl"])
def test_answers_never_go_among_the_questions(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "in.jsonl"
    questions.write_text('"Once"\n')
    (tmp_path / "link.jsonl").symlink_to(questions)
    (tmp_path / "folder").mkdir()
    words = ["--file", str(questions), "--out", str(tmp_path / name)]
    assert main(["generate", "--address", "127.0.0.1:1", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert questions.read_text() == '"Once"\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("3", "is a number"),
        ("null", "is nothing"),
        ("{}", "has no prompt"),
        ('{"prompt": "x", "messages": []}', "has prompt, messages"),
        ('{"prompt": "x", "temprature": 1}', "temprature: is no setting"),
        ('{"prompt": "x", "eos_token_ids": [1]}', "eos_token_ids: is no setting"),
        ('{"prompt": "x", "temperature": "hot"}', "temperature"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens"),
        ('{"prompt": "x", "max_tokens": 1' + "0" * 30 + "}", "max_tokens"),
        ('{"prompt": "x", "logit_bias": {"a": 1}}', "no token ids"),
        ('{"prompt": "x", "model": 3}', "model: is a number"),
        ('{"prompt": "x", "priority": "high"}', "priority"),
        ('{"prompt": "x", "priority": 99999999999}', "priority"),
        ('{"prompt": "\\ud800"}', "no Unicode"),
        ('{"prompt": ["x", "y"]}', "prompt: is a list"),
        ('{"prompt_token_ids": [1, true]}', "prompt_token_ids"),
        ('{"messages": [{"role": "user"}]}', "messages.content"),
        ('{"messages": [{"role": "user", "content": "x", "name": "y"}]}', "messages.name"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "no text"),
        ('{"custom_id": "a"}', "body: is nothing"),
        ('{"custom_id": 3, "body": {}}', "custom_id"),
        ('{"custom_id": "a", "body": {"prompt": "x"}}', "none of /v1/chat/completions"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "url"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", "stream": true}}', "stream"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", "logprobs": 2}}', "logprobs"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", "suffix": "y"}}', "suffix"),
        ('{"custom_id": "a", "method": "GET", "body": {"messages": []}}', "method"),
        ('{"custom_id": "a", "more": 1, "body": {"messages": []}}', "more"),
    ],
)
def test_each_wrong_line_is_one_error_with_the_name_of_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        read_line(line, DEFAULTS, "")
    # Where in the line, not in the text of it.
    assert "line 1 column" not in str(told.value)
    assert said in str(told.value) and "\n" not in str(told.value) and len(str(told.value)) < 1_000


def test_a_wrong_line_is_told_by_its_number_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for content, said in (
        (b'"Once"\n\n{"prompt": 3}\n', "line 3"),
        (b'"Once"\n"\xff"\n', "line 2"),
        (b"\n", "no line"),
    ):
        questions.write_bytes(content)
        words = ["--file", str(questions), "--out", str(out)]
        assert main(["generate", "--address", "127.0.0.1:1", *words]) == exits.WRONG_INPUT
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_what_a_line_says_counts_and_lines_of_openai_work_too(tmp_path: Path) -> None:
    def lines() -> list[str]:
        chat = {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "wdaa"}]}],
            "max_completion_tokens": 4,
        }
        own = {"prompt_token_ids": PROMPT, "id": {"row": 7}, "max_tokens": 9, "seed": 5, "n": 2, "ignore_eos": True}
        own |= {"detokenize": False, "logprobs": 1, "logit_bias": {"0": -1}, "model": "m", "priority": 2}
        return [
            json.dumps(
                {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat | {"model": "m"}}
            ),
            json.dumps(
                {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": PROMPT, "seed": 3, "max_tokens": 6}}
            ),
            json.dumps(own),
            '"wdaa"',
            json.dumps({"custom_id": "c", "body": chat | {"model": "gpt-4o"}}),
        ]

    async def story(door: Door) -> None:
        questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        questions.write_text("\n".join(lines()))
        done = await batch(door, "--file", str(questions), "--out", str(out), "--max-tokens", "7", "--ignore-eos")
        assert done.returncode == 1 and "line 5: no model 'gpt-4o'" in done.stderr, done.stderr
        assert "4 answered, 0 were there before, 1 failed" in done.stderr
        by_name = {answer.get("custom_id", str(answer.get("line"))): answer for answer in read(out)}
        assert set(by_name) == {"a", "b", "3", "4"}
        body = by_name["a"]["response"]["body"]
        assert body["object"] == "chat.completion" and body["choices"][0]["message"]["role"] == "assistant"
        assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        assert body["choices"][0]["finish_reason"] == "length" and by_name["a"]["error"] is None
        assert by_name["b"]["response"]["body"]["usage"]["completion_tokens"] == 6
        # The one that names no model says which one answered.
        assert [by_name[one]["response"]["body"]["model"] for one in "ab"] == ["m", "m"]
        own = by_name["3"]
        assert own["id"] == {"row": 7} and len(own["texts"]) == 2 and len(own["logprobs"][0]) == 9
        assert [len(tokens) for tokens in own["token_ids"]] == [9, 9]
        assert by_name["4"]["finish_reasons"] == ["length"]
        piped = await batch(door, "--file", "-", "-q", given="\n".join(lines()[1:4]))
        assert piped.returncode == 0 and piped.stderr == "" and len(piped.stdout.splitlines()) == 3

    at_the_door(story, timeout_s=60)


def test_a_batch_that_is_run_again_asks_only_what_has_no_answer(tmp_path: Path) -> None:
    """By what is asked, not by where it stands; a line that stands twice is asked twice."""

    async def story(door: Door) -> None:
        questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        questions.write_text("\n".join([ids(1, 2), ids(3, 4), ids(3, 4), ids(5, 6)]) + "\n")
        words = ("--file", str(questions), "--out", str(out))
        assert "4 answered, 0 were there before" in (await batch(door, *words)).stderr
        assert "0 answered, 4 were there before" in (await batch(door, *words)).stderr
        first = out.read_bytes()
        # A killed run leaves half a line; the file is turned round, one question is new and one has other settings.
        lines = first.splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:3]) + lines[3][:20])
        changed = ids(1, 2).replace("5", "6")
        questions.write_text("\n".join([ids(5, 6), ids(3, 4), ids(3, 4), changed, ids(7, 8)]))
        done = await batch(door, *words)
        num_before = sum(b'"line": 1,' not in line for line in lines[:3])
        assert f"{5 - num_before} answered, {num_before} were there before" in done.stderr
        answers = read(out)
        assert out.read_bytes().startswith(b"".join(lines[:3])) and len(answers) == 3 + 5 - num_before
        told = [answer["token_ids"][0] for answer in answers]
        assert expected([7, 8], 3, 5) in told and expected([1, 2], 3, 6) in told

    at_the_door(story, timeout_s=90)


def test_ctrl_c_keeps_what_was_answered_and_ends_what_runs(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        slow_one = json.dumps({"prompt_token_ids": PROMPT, "max_tokens": 1_900, "ignore_eos": True})
        questions.write_text("\n".join([slow_one, *(ids(9, number + 1) for number in range(30))]))
        words = command(door, "--file", str(questions), "--out", str(out))
        process = start(words)
        try:
            await door.until(lambda: out.exists() and out.read_text().count("\n") >= 30, 30.0)
            second = await batch(door, "--file", str(questions), "--out", str(out))
            assert second.returncode == 2 and "another batch writes there" in second.stderr
            os.killpg(process.pid, signal.SIGINT)
            told = (await asyncio.to_thread(process.communicate, timeout=20))[1]
        finally:
            process.kill()
        assert process.returncode == 130 and told.splitlines()[-1] == "error: interrupted", told
        assert "30 answered, 0 were there before, 0 failed, 1 are not answered; run it again" in told
        await door.settled(3.0)
        assert len(read(out)) == 30

    at_the_door(story, shapes=[slow()], timeout_s=60)


def test_a_reader_of_the_answers_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        questions = tmp_path / "in.jsonl"
        questions.write_text("\n".join(ids(9, number + 1) for number in range(200)))
        words = shlex.join(command(door, "--quiet", "--file", str(questions)))
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f"set -o pipefail; {words} | head -n 1"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["token_ids"]
        await door.settled(5.0)

    at_the_door(story, shapes=[slow(0.005)], timeout_s=90)

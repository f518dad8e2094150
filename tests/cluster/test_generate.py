"""`quire generate --local` on the demo model, in this process: what a new user sees first."""

import io
from pathlib import Path

import pytest

from cluster.cli import main

SMALL = ["--kv-blocks", "256", "--device", "cpu"]


def test_several_prompts_and_questions_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["Once upon a time", "Long ago", "--chat", "Where does Mira live?", "--chat", "What is a slot?"]
    assert main(["generate", "--local", *SMALL, *words]) == 0
    shown = capsys.readouterr()
    first, second, third, fourth = shown.out.rstrip("\n").split("\n\n")
    assert first.startswith("[1 Once upon a time]\nOnce upon a time")
    assert second.startswith("[2 Long ago]\nLong ago")
    assert third == "[3 Where does Mira live?]\nMira lives in Alder Bridge."
    assert fourth == "[4 What is a slot?]\nA slot is the place of one token in a block."
    assert "4 requests" in shown.err
    assert "tokens/s" in shown.err
    assert "pool: 256 blocks of 16 tokens" in shown.err


def test_quiet_is_the_text_alone_and_a_seed_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--local", "--quiet", *SMALL, "Once upon a time", "--temperature", "1"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--seed", seed]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        texts.append(shown.out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "nowhere", "Hi"], "nowhere"),
        (["--temperature", "-1", "Hi"], "temperature"),
        (["--top-p", "nan", "Hi"], "top_p"),
        (["--max-tokens", "0", "Hi"], "max_tokens"),
        (["--kv-memory", "lots", "Hi"], "kv_memory"),
        (["--block-size", "0", "Hi"], "block_size"),
        (["--dtype", "int3", "Hi"], "int3"),
        (["--kv-blocks", "2", "Once upon a time " * 40], "more than 32"),
        (["word " * 5000], "more than 2,048"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--local", "--quiet", "--device", "cpu", *words]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1), shown.err
    assert says in shown.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "cpu", "Hi"], "--device says nothing to a cluster"),
        (["--kv-blocks", "9", "Hi"], "--kv-blocks says nothing to a cluster"),
        (["--block-size", "16", "Hi"], "--block-size says nothing to a cluster"),
        (["--local", "--address", "x", "Hi"], "--address is for a cluster"),
        (["--local", "--token-file", "x", "Hi"], "--token-file is for a cluster"),
        (["--out", "x", "Hi"], "--out is for the answers of a batch"),
        (["--file", "x", "--local"], "--file asks a cluster"),
        (["--file", "x", "Hi"], "--file has the prompts"),
        (["-", "-"], "- stands 2 times"),
        (["-", "--chat", "-"], "- stands 2 times"),
        (["-"], "there are none"),
        ([], "--chat QUESTION"),
    ],
)
def test_what_would_do_nothing_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["generate", *words]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1) and says in shown.err, shown.err


def test_prompts_come_through_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for words, given in ((["Once upon a time"], "x"), (["-"], "Once upon a time\n"), ([], "Once upon a time")):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        assert main(["generate", "--local", "--quiet", *SMALL, "--max-tokens", "8", *words]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2] and told[0].startswith("Once upon a time") and told[0].count("\n") == 1


def test_without_a_cluster_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    assert main(["generate", "Hi"]) == 3
    assert "--local" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_template_cannot_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from worker.demo import PATH

    for file in PATH.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (tmp_path / file.name).symlink_to(file)
    assert main(["generate", "--local", "--quiet", *SMALL, "--model", str(tmp_path), "--chat", "Hi"]) == 2
    assert "no chat template" in capsys.readouterr().err

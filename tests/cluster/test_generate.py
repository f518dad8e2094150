"""`quire generate --local` on the demo model, in this process: what a new user sees first."""

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
        ([], "--chat QUESTION"),
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

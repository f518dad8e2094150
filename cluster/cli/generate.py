"""`quire generate`: writes on from prompts, several at once, and streams what comes.

It asks the gateway of a cluster; with --local the model runs in this process through the embedded engine. It decides
nothing: settings go on as they were given, and errors come back as they are. --file runs a batch (`batch_file.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.connecting import GatewayOption, TokenOption, open_async_client, open_client
from cluster.errors import ConfigError, InvalidRequest
from cluster.sizes import counted

if TYPE_CHECKING:
    from cluster.client.request import Prompt
    from cluster.offline.outputs import StreamOutput
    from cluster.sampling import SamplingParams

LOCAL = "With --local"


def register(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to go on from; - or nothing: what comes through a pipe.", show_default=False),
    ] = None,
    chat: Annotated[
        list[str] | None,
        typer.Option(
            help="A question for the model's chat template; repeatable; - is a pipe's. Default: none.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="A batch: a JSON object on every line, with a prompt or messages, and settings; or OpenAI's batch "
            "lines. - is a pipe's. Default: none.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The batch's answers go on there. Default: the output.", show_default=False)
    ] = None,
    address: GatewayOption = None,
    token_file: TokenOption = None,
    local: Annotated[bool, typer.Option("--local", help="Run the model in this process, without a cluster.")] = False,
    model: Annotated[
        str, typer.Option(help="Which model. Default: the cluster's own; with --local demo.", show_default=False)
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="At most so many new tokens for each.")] = 300,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token. Default: the model's.", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Only the likeliest tokens with this probability. Default: the model's.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Only so many of the likeliest tokens. Default: the model's.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same text. Default: a new one.", show_default=False)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; repeatable. Default: none.", show_default=False)
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to --max-tokens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the texts.")] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto", rich_help_panel=LOCAL)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto, float32, bfloat16 or float16.", show_default="auto", rich_help_panel=LOCAL),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Slots in a block, 1 to 256.", show_default="16", rich_help_panel=LOCAL)
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option(help="Blocks in the pool.", show_default="what memory allows", rich_help_panel=LOCAL),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(help='Or its size, such as "2GiB".', show_default="what memory allows", rich_help_panel=LOCAL),
    ] = None,
) -> None:
    """Write on from several prompts at once, streaming."""
    from cluster.sampling import SamplingParams

    engine = {
        "device": device, "dtype": dtype, "block_size": block_size, "kv_blocks": kv_blocks, "kv_memory": kv_memory,
    }  # fmt: skip
    engine = {name: value for name, value in engine.items() if value is not None}
    _check_together(local, file, {"address": address, "token_file": token_file}, engine, out, prompts, chat)
    texts, questions = _from_pipe(prompts or [], chat or [], has_file=file is not None)
    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    if file is not None:
        from cluster.cli.batch_file import Defaults, run_batch

        if run_batch(file, out, partial(open_async_client, address, token_file), Defaults(sampling, model), quiet):
            raise typer.Exit(1)
    elif local:
        _run_here(model, engine, texts, questions, sampling, quiet)
    else:
        from cluster.client.request import Options

        asked: list[Prompt] = [*texts, *([{"role": "user", "content": question}] for question in questions)]
        with open_client(address, token_file) as client:
            show(client.stream_many(asked, sampling, Options(model=model)), texts, questions, quiet)


def _check_together(
    local: bool,
    file: str | None,
    cluster: dict[str, Any],
    engine: dict[str, Any],
    out: str | None,
    prompts: list[str] | None,
    chat: list[str] | None,
) -> None:
    """Refuses what would do nothing."""
    idle = list(engine) if not local else [name for name, value in cluster.items() if value is not None]
    if idle:
        option = f"--{idle[0].replace('_', '-')}"
        raise ConfigError(
            f"{option} says nothing to a cluster; leave it out, or add --local"
            if not local
            else f"{option} is for a cluster; leave it out, or --local"
        )
    if file is None and out is not None:
        raise ConfigError("--out is for the answers of a batch; give --file too, or send the output there with >")
    if file is not None and local:
        raise ConfigError("--file asks a cluster; leave --local out, or use cluster.LLM in a script")
    if file is not None and (prompts or chat):
        raise ConfigError("--file has the prompts; leave the others out")


def _from_pipe(prompts: list[str], chat: list[str], *, has_file: bool) -> tuple[list[str], list[str]]:
    """The prompts and questions, with what a pipe says in the place of -."""
    if has_file:
        return [], []
    if not prompts and not chat and sys.stdin is not None and not sys.stdin.isatty():
        prompts = ["-"]
    num_from_pipe = [*prompts, *chat].count("-")
    if num_from_pipe > 1:
        raise ConfigError(f"- stands {num_from_pipe} times, and there is one input; give it once")
    try:
        text = sys.stdin.read().rstrip("\n") if num_from_pipe else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest("prompts", f"through the pipe are no UTF-8: {error}", "encode them so") from error
    if (num_from_pipe and not text) or not (prompts or chat):
        raise InvalidRequest("prompts", "there are none", 'give some, such as "Once upon a time", or --chat QUESTION')
    return ([text if one == "-" else one for one in asked] for asked in (prompts, chat))  # type: ignore[return-value]


def _run_here(
    model: str, engine: dict[str, Any], prompts: list[str], chat: list[str], sampling: SamplingParams, quiet: bool
) -> None:
    from cluster.offline.engine import LLM

    llm = LLM(model or "demo", quiet=quiet, **engine)
    tokenizer = llm.get_tokenizer()
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise InvalidRequest("chat", "this model has no chat template", "give the text as a prompt instead")
    wanted: list[str | dict[str, list[int]]] = [*prompts]
    for question in chat:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        wanted.append({"prompt_token_ids": list(ids)})
    show(llm.stream(wanted, sampling), prompts, chat, quiet)


def show(stream: Generator[StreamOutput, None, None], prompts: Sequence[str], chat: Sequence[str], quiet: bool) -> None:
    """Several streams under their titles, and what they came to."""
    from cluster.cli.streams import ShownTexts

    titles = [f"{i + 1} {' '.join(question.split())}" for i, question in enumerate([*prompts, *chat])]
    titles = [title if len(title) < 70 else f"{title[:67]}..." for title in titles]
    num_tokens, began, cut = 0, time.monotonic(), dict[str, list[int]]()
    # Left early, what runs is ended before what came is shown: whoever reads that may be slow.
    with ShownTexts(titles, [*prompts, *("" for _ in chat)], quiet=quiet) as streams, closing(stream):
        for news in stream:
            num_tokens += len(news.token_ids)
            streams.add(news.prompt_index, news.text, news.finish_reason)
            if news.detail:
                cut.setdefault(news.detail, []).append(news.prompt_index + 1)
    took = time.monotonic() - began
    if not quiet:
        for detail, numbers in cut.items():
            print(f"{', '.join(map(str, numbers))}: {detail}", file=sys.stderr)
        rate = num_tokens / max(took, 1e-9)
        what = f"{counted(len(titles), 'request')}, {counted(num_tokens, 'token')}"
        print(f"{what} in {took:.2f} s: {rate:,.0f} tokens/s", file=sys.stderr)

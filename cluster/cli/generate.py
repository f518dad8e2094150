"""`quire generate`: writes on from prompts, several at once, and streams what comes.

It asks the gateway of a cluster; with --local the model runs in this process through the embedded engine. It decides
nothing: settings go on as they were given, and errors come back as they are. --file runs a batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from cluster.offline.outputs import StreamOutput


def register(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Texts to go on from.", show_default=False)] = None,
    chat: Annotated[
        list[str] | None, typer.Option(help="A question for the model's chat template; repeatable.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A batch: a JSON object with a prompt on every line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the batch's answers go; what stands there is kept.")] = None,
    address: Annotated[str | None, typer.Option(help="A gateway. Default: that of `quire up`.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Token of the caller. Also: QUIRE_TOKEN.", envvar="QUIRE_TOKEN")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Run the model in this process, without a cluster.")] = False,
    model: Annotated[
        str, typer.Option(help="Folder or hub id of a checkpoint. Default: the one that is served; with --local demo.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    block_size: Annotated[int, typer.Option(help="Slots in a block, 1 to 256.")] = 16,
    kv_blocks: Annotated[int | None, typer.Option(help="Blocks in the pool.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help='Memory of the pool, such as "2GiB".')] = None,
    max_tokens: Annotated[int, typer.Option(help="At most so many new tokens for each.")] = 300,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens with this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only so many of the likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to --max-tokens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing but the texts.")] = False,
) -> None:
    """Write on from several prompts at once, streaming."""
    asked = [*(prompts or []), *(chat or [])]
    if not asked and file is None:
        raise InvalidRequest("prompts", "there are none", 'give some, such as "Once upon a time", or --chat QUESTION')
    from cluster.sampling import SamplingParams

    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    if not local:
        from cluster.cli.gateway import ask, run_batch

        if file is not None:
            run_batch(file, out, address, token, model, sampling)
        else:
            ask(address, token, model, prompts or [], chat or [], sampling, quiet)
        return
    if file is not None:
        raise ConfigError("--file asks a cluster; leave --local out, or use cluster.LLM in a script")
    from cluster.offline.engine import LLM

    sizes: dict[str, Any] = {"block_size": block_size, "kv_blocks": kv_blocks, "kv_memory": kv_memory}
    llm = LLM(model or "demo", device=device, dtype=dtype, quiet=quiet, **sizes)
    tokenizer = llm.get_tokenizer()
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise InvalidRequest("chat", "this model has no chat template", "give the text as a prompt instead")
    wanted: list[str | dict[str, list[int]]] = [*(prompts or [])]
    for question in chat or []:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        wanted.append({"prompt_token_ids": list(ids)})
    show(llm.stream(wanted, sampling), prompts or [], chat or [], quiet)


def show(stream: Iterable[StreamOutput], prompts: Sequence[str], chat: Sequence[str], quiet: bool) -> None:
    """Several streams under their titles, and what they came to."""
    from cluster.cli.streams import Streams

    titles = [f"{i + 1} {question}" for i, question in enumerate([*prompts, *chat])]
    titles = [title if len(title) < 70 else f"{title[:67]}..." for title in titles]
    num_tokens, began = 0, time.monotonic()
    with Streams(titles, [*prompts, *("" for _ in chat)]) as streams:
        for news in stream:
            num_tokens += len(news.token_ids)
            streams.add(news.prompt_index, news.text, news.finish_reason)
    took = time.monotonic() - began
    if not quiet:
        rate = num_tokens / max(took, 1e-9)
        print(f"{len(titles)} requests, {num_tokens:,} tokens in {took:.2f} s: {rate:,.0f} tokens/s", file=sys.stderr)

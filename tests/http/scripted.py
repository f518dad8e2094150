"""A gateway behind which a made-up worker says what a test wants said, token by token, so that real clients read it.

Its tokenizer has a token for each byte and one for each of the form's special tokens; token 0 ends an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import openai
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.gateway.front import LocalLink
from cluster.gateway.gateway import Gateway
from cluster.gateway.http.server import HttpServer
from cluster.gateway.models import TextModel
from cluster.gateway.settings import GatewaySettings
from cluster.messages import Accepted, Adopt, Done, Reason, Started, Submit, Tokens, ids
from cluster.wire.gateways import ServedModel, ServedModels

HERMES = """{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools> use <tool_call>{% endif %}
{%- for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
QWEN = HERMES + "{% if enable_thinking is defined %}<think>\n{% endif %}{# </think> #}"
LLAMA = HERMES.replace("<tool_call>", "<|python_tag|>")
HARMONY = "{{ tools }}{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}<|end|>" + (
    "{% endfor %}{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}<|start|>assistant"
)
SPECIAL = {
    HARMONY: ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"],
    LLAMA: ["<|python_tag|>"],
}
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}" + PLAIN


def text_model(template: str) -> TextModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: at for at, letter in enumerate(alphabet, 1)}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in SPECIAL.get(template, [])]
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", chat_template=template, additional_special_tokens=special
    )
    size = backend.get_vocab_size()
    return TextModel("m", tokenizer, vocab_size=size, max_model_len=8192, defaults={"eos_token_id": 0})


class Stage:
    """Answers request after request with the next of `says`. `asked`: what came."""

    def __init__(self, template: str, step_s: float = 0.0, settings: GatewaySettings | None = None) -> None:
        self.says: list[str] = []
        self.asked: list[Submit] = []
        self.model = text_model(template)
        self._step_s = step_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = LocalLink(self._take, b"k" * 16)
        self._link.push(ServedModels((ServedModel("m", True, num_replicas=1, max_model_len=8192, digest=b"d"),)))
        self.gateway = Gateway(settings or GatewaySettings(port=0), self._link, {"m": self.model})
        self.running = asyncio.get_running_loop().create_task(self.gateway.run())

    async def ready(self) -> None:
        while not self.gateway.is_connected or not self.gateway.catalogue.served:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self.running.cancel()
        await self.gateway.catalogue.work.close()

    def prompt(self, at: int = -1) -> str:
        return self.model.decode(self.asked[at].prompt, False)

    def _take(self, event: Any) -> None:
        if isinstance(event, Submit):
            self.asked.append(event)
            task = asyncio.get_running_loop().create_task(self._answer(event, self.says.pop(0)))
            self._tasks.add(task)
        else:
            assert not isinstance(event, Adopt), event

    async def _answer(self, submit: Submit, text: str) -> None:
        place = submit.gateway, submit.route, submit.request_id
        self._link.push(Accepted(*place, 0, ""))
        self._link.push(Started(*place, 0, "r0"))
        tokens = [*self.model.encode(text), 0]
        for index in range(submit.sampling.n):
            for at, token in enumerate(tokens):
                reason = Reason.STOP if at + 1 == len(tokens) else Reason.NONE
                self.gateway.feed((Tokens(submit.route, index, 1, at, ids([token]), reason),))
                await asyncio.sleep(self._step_s)
        self._link.push(Done(*place, 0, 0, 0.0, 0.0, 0.0))


Story = Callable[[Stage, openai.AsyncOpenAI], Awaitable[None]]


def on_stage(template: str, story: Story, step_s: float = 0.0, settings: GatewaySettings | None = None) -> None:
    async def run() -> None:
        stage = Stage(template, step_s, settings)
        server = HttpServer(stage.gateway, 0, must_be=True)
        await server.start()
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
        try:
            await stage.ready()
            await story(stage, client)
        finally:
            await client.close()
            await server.stop()
            await stage.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def told(chunks: Sequence[Any], index: int = 0) -> dict[str, Any]:
    """The message that a stream's deltas make, as clients put it together."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            found["content"] += choice.delta.content or ""
            found["reasoning"] += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            found["finish"] = choice.finish_reason or found["finish"]
            for call in choice.delta.tool_calls or []:
                if call.index == len(found["calls"]):
                    found["calls"].append([call.id, call.function.name, ""])
                found["calls"][call.index][2] += call.function.arguments or ""
    return found

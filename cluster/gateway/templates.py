"""Chat templates: programs of a model's makers, run in a process of their own that has little memory and little time.

A template can loop for ever, ask for all memory or recurse until the stack is gone, so gateways have `Templates` run it
(see `confined.py`). Whatever goes wrong in it is the error of the client that asked. `render` is what the child does;
the embedded engine, whose caller brought the model, calls it directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway.confined import Confined, Subject, Words, serve

RENDER_S = 5.0
"""A conversation takes milliseconds; behind this its template is ended."""
MEMORY_BYTES = 256 << 20
"""What a template may take beyond the child's own."""


@dataclass(frozen=True, slots=True)
class Template:
    """`words`: what a template may name beside the messages, such as the model's special tokens."""

    source: str
    words: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any) -> Template | None:
        """The one that transformers would take; None: the model has none."""
        try:
            source = tokenizer.get_chat_template()
        except (AttributeError, ValueError):
            return None
        return cls(source, dict(tokenizer.special_tokens_map)) if isinstance(source, str) and source else None


@dataclass(frozen=True, slots=True)
class Conversation:
    """`words`: what the client has to say to the template beside it."""

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    tools: Sequence[Mapping[str, Any]] = ()
    words: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> Words:
        """As JSON has it. `asdict` would copy what the client sent, to its depths."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def render(template: Template, conversation: Conversation) -> str:
    """The conversation as the model's text, as transformers makes it. Raises InvalidRequest."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [list(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=template.source,
            add_generation_prompt=conversation.add_generation_prompt,
            **conversation.words,
            **template.words,
        )
    except Exception as error:
        # Templates refuse roles in a wrong order, and stumble over whatever else they did not think of.
        raise refused(f"{type(error).__name__}: {error}" if not str(error) else str(error)) from error
    return str(text)


def refused(why: str) -> InvalidRequest:
    return InvalidRequest("prompt.chat", f"the model's chat template refuses it: {why[:500]}", "send text or token_ids")


class Templates:
    """Renders one conversation after the other. Belongs to one event loop."""

    def __init__(self, render_s: float = RENDER_S) -> None:
        self._render_s = render_s
        self.child = Confined(__name__, render_s, "conversations")

    async def render(self, tenant: str, template: Template, conversation: Conversation, max_chars: int) -> str:
        """As `render` above. Raises InvalidRequest, or QueueFull."""
        question = {"conversation": conversation.plain(), "max_chars": max_chars}
        try:
            answer = await self.child.ask(tenant, template, lambda: asdict(template), question)
        except TimeoutError:
            raise refused(f"it took more than {self._render_s:g} s") from None
        except EOFError:
            raise refused("it ended the process that runs it, for want of memory or stack") from None
        if "text" not in answer:
            raise refused(answer["error"])
        return str(answer["text"])

    async def close(self) -> None:
        await self.child.close()


def _read(words: Words) -> Subject:
    template = Template(**words)
    return lambda question: _answer(template, question)


def _answer(template: Template, question: Mapping[str, Any]) -> Words:
    try:
        text = render(template, Conversation(**question["conversation"]))
    except InvalidRequest as error:
        cause = error.__cause__
        return {"error": f"{cause}" or type(cause).__name__}
    if len(text) > question["max_chars"]:
        return {"error": f"it makes {len(text):,} characters of it, more than the model could take"}
    return {"text": text}


if __name__ == "__main__":
    from transformers.utils import chat_template_utils

    assert chat_template_utils.render_jinja_template
    serve(_read, MEMORY_BYTES)

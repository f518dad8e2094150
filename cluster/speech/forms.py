"""How a model writes calls and reasoning, as its chat template tells, and the grammar of calls that it must make.

A `Form` belongs to a model. It makes a parser for each sequence, the grammar for a request's tools, and for templates
that know nothing of tools the messages that explain them. Grammars are llguidance's Lark.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import InvalidRequest
from cluster.speech import harmony, hermes, llama, thinking
from cluster.speech.parts import Parser
from cluster.speech.tools import Tool, Tools
from cluster.structure import BLANKS

_EXPLAINED = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\nFor each function call, return a json "
    "object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


@dataclass(frozen=True, slots=True)
class Form:
    """`calls`: "hermes", "llama", "harmony", or "" where the template has a form that is not known here."""

    calls: str
    thinks: bool
    template_knows_tools: bool
    special: frozenset[str] = frozenset()  # markers that are special tokens of the model

    @property
    def shows_special(self) -> bool:
        """Its parsers must see special tokens."""
        return bool(self.special)

    def parser(self, tools: Collection[str], is_open: bool) -> Parser | None:
        """Of one sequence, by the names of its tools; None: all that it says is text. `is_open`: the prompt has begun
        to think."""
        parser: Parser | None = None
        if self.calls == "harmony":
            return harmony.HarmonyParser(may_call=bool(tools))
        if tools:
            parser = llama.LlamaParser(frozenset(tools)) if self.calls == "llama" else hermes.HermesParser()
        return thinking.ThinkingParser(parser, is_open) if self.thinks else parser

    def check(self, tools: Tools) -> None:
        if tools.listed and not self.calls:
            problem = "are given, and this model's template has them in a form that is not read here"
            raise InvalidRequest("prompt.chat.tools", problem, "leave them out")

    def explained(self, messages: Sequence[dict[str, Any]], tools: Tools) -> list[dict[str, Any]]:
        """The conversation for the template: what it knows nothing of is written into the messages."""
        if self.template_knows_tools or not (tools.listed or any(_is_about_calls(one) for one in messages)):
            return list(messages)
        told = [_plain(message) for message in messages]
        if tools.listed:
            words = _EXPLAINED.format(tools="\n".join(json.dumps(tool.whole) for tool in tools.listed))
            if told and told[0]["role"] == "system":
                told[0] = {**told[0], "content": f"{told[0]['content']}\n\n{words}"}
            else:
                told.insert(0, {"role": "system", "content": words})
        return told

    def grammar(self, tools: Tools, is_open: bool) -> str | None:
        """What the answer must be; None: anything."""
        if not tools.are_bound:
            return None
        writer = {"hermes": _hermes, "llama": _llama, "harmony": _harmony}[self.calls]
        rules = writer(self, tools)
        thought, said = "", "TEXT"
        if self.thinks and self.calls != "harmony":
            rules.append(self.up_to("thought", thinking.CLOSE))
            thought = "thought BLANKS "
            if not is_open:
                thought = f"({self.mark(thinking.OPEN)} {thought})? "
                # What a thought says of calls is none of them: no answer begins as a thought does.
                said = rf"/(.|\n)*/ & ~/[ \t\r\n]*{thinking.OPEN}(.|\n)*/"
        terminals = [r"TEXT: /(.|\n)*/", f"SAID: {said}", r"BLANKS: /[ \t\r\n]{0,8}/"]
        return "%llguidance {}\n" + "\n".join([f"start: {thought}answer", *rules, *terminals]) + "\n"

    def up_to(self, rule: str, marker: str, text: str = "TEXT") -> str:
        """A rule of any text and the marker behind it. Text holds no special tokens; other markers end it at once."""
        return f"{rule}{'' if marker in self.special else '[lazy]'}: {text} {self.mark(marker)}"

    def mark(self, marker: str) -> str:
        """A special token is named, other text is quoted."""
        return marker if marker in self.special else json.dumps(marker)


def form_of(source: str, special: Collection[str]) -> Form:
    """By the chat template's source and the model's special tokens."""
    knows = "tools" in source
    form = Form("hermes", thinking.OPEN in source, knows)
    if harmony.CHANNEL in source and harmony.MESSAGE in source:
        form = Form("harmony", True, knows)
    elif llama.TAG in source or '"parameters": dictionary' in source:
        form = replace(form, calls="llama")
    elif knows and (hermes.BEGIN not in source or "<function=" in source):
        form = replace(form, calls="")
    markers = (
        *(hermes.BEGIN, hermes.END, thinking.OPEN, thinking.CLOSE, llama.TAG),
        *(harmony.CHANNEL, harmony.MESSAGE, harmony.START, *harmony.ENDS, "<|constrain|>"),
    )
    return replace(form, special=frozenset(marker for marker in markers if marker in special))


def opens_thinking(end: str) -> bool:
    """Whether a prompt that ends so has begun to think."""
    return end.rstrip().endswith(thinking.OPEN)


def _is_about_calls(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or message["role"] == "tool"


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message in words that every template knows."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [f"{hermes.BEGIN}\n{json.dumps(call['function'])}\n{hermes.END}" for call in message.get("tool_calls", ())]
    said = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join(said + calls)}


# -- grammars


def _schema(tools: Tools, tool: Tool) -> str:
    return "%json " + json.dumps({**tools.schema_of(tool), "x-guidance": {"whitespace_pattern": BLANKS}})


def _object(rule: str, tools: Tools, tool: Tool, key: str) -> list[str]:
    """A call as a JSON object."""
    head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
    return [f'{rule}: {head} {rule}_args "}}"', f"{rule}_args: {_schema(tools, tool)}"]


def _hermes(form: Form, tools: Tools) -> list[str]:
    rules: list[str] = []
    named = []
    for at, tool in enumerate(tools.allowed):
        rules += _object(f"object_{at}", tools, tool, "arguments")
        named.append(f"object_{at}")
    objects = f"object: {' | '.join(named)}"
    close = f'"\\n" {form.mark(hermes.END)}'
    if tools.choice == "auto":
        head = form.up_to("head", hermes.BEGIN, "SAID")
        # Text behind a call could be one more, where the marker is text too.
        answer = "answer: call* SAID" if tools.may_be_parallel else "answer: call | SAID"
        return [answer, f'call: head "\\n" object {close}', head, objects, *rules]
    more = '("\\n" call)*' if tools.may_be_parallel and tools.choice == "required" else ""
    return [f"answer: call {more}", f'call: {form.mark(hermes.BEGIN)} "\\n" object {close}', objects, *rules]


def _llama(form: Form, tools: Tools) -> list[str]:
    rules: list[str] = []
    for at, tool in enumerate(tools.allowed):
        rules += _object(f"call_{at}", tools, tool, "parameters")
    several = tools.may_be_parallel and tools.choice in ("auto", "required")
    calls = 'call ("; " call)*' if several else "call"
    answer = f"answer: {calls}" + (r" | /[^{<](.|\n)*/" if tools.choice == "auto" else "")
    return [answer, "call: " + " | ".join(f"call_{at}" for at in range(len(tools.allowed))), *rules]


def _harmony(form: Form, tools: Tools) -> list[str]:
    channel, message = form.mark(harmony.CHANNEL), form.mark(harmony.MESSAGE)
    # Words before a call come in the call's channel, to nobody.
    begun = f'{channel} ("analysis" | "commentary") {message}'
    rules = [f'thought: {begun} thought_end {form.mark(harmony.START)} "assistant"']
    rules.append(form.up_to("thought_end", "<|end|>"))
    calls = []
    for at, tool in enumerate(tools.allowed):
        calls.append(
            f'{json.dumps(f" to=functions.{tool.name} ")} {form.mark("<|constrain|>")} "json" {message} args_{at}'
        )
        rules.append(f"args_{at}: {_schema(tools, tool)}")
    said = f' | {channel} "final" {message} SAID' if tools.choice == "auto" else ""
    rules.append("call: " + " | ".join(f'{channel} "commentary" {call}' for call in calls) + said)
    return ["answer: thought* call", *rules]

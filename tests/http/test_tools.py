"""Tools and reasoning over HTTP with OpenAI's own client: what is called, how it streams, what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from cluster.gateway.settings import GatewaySettings
from tests.http.scripted import HARMONY, HERMES, LLAMA, MISTRAL, PLAIN, QWEN, Stage, on_stage, told

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOLS: list[Any] = [WEATHER, ADD]
USER: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris, é \U0001f600"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ARGS = '{"city": "Paris, é \U0001f600"}'


async def streamed(client: openai.AsyncOpenAI, **more: Any) -> list[Any]:
    stream = await client.chat.completions.create(model="m", messages=USER, stream=True, **more)
    return [chunk async for chunk in stream]


FORMS = {
    "hermes": (HERMES, f"I look.\n{CALL}\n{SECOND}", "I look.", ""),
    "qwen": (QWEN, f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{SECOND}", "I look.", "Hm."),
    "llama": (
        LLAMA,
        '<|python_tag|>{"name": "weather", "parameters": ' + ARGS + '}; {"name": "add", "parameters": {"a": 1}}',
        "",
        "",
    ),
    "plain": (PLAIN, f"I look.\n{CALL}\n{SECOND}", "I look.", ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_calls_whole_and_streamed(form: str) -> None:
    template, says, content, reasoning = FORMS[form]

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = [says] * 2
        done = await client.chat.completions.create(model="m", messages=USER, tools=TOOLS)
        choice = done.choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content == (content or None)
        assert (choice.message.model_extra or {}).get("reasoning_content", "") == reasoning
        calls: list[Any] = choice.message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", ARGS),
            ("add", '{"a": 1}'),
        ]
        assert "weather" in stage.prompt() and "Of a city" in stage.prompt()
        chunks = await streamed(client, tools=TOOLS, n=2)
        for index in (0, 1):
            found = told(chunks, index)
            assert (found["content"], found["reasoning"], found["finish"]) == (content, reasoning, "tool_calls")
            assert [call[1:] for call in found["calls"]] == [["weather", ARGS], ["add", '{"a": 1}']]
        ids = {call.id for call in calls} | {call[0] for index in (0, 1) for call in told(chunks, index)["calls"]}
        assert len(ids) == 6
        pieces = [
            call.function.arguments
            for chunk in chunks
            for one in chunk.choices
            for call in one.delta.tool_calls or []
            if one.index == 0 and call.index == 0
        ]
        assert len(pieces) > 5, "arguments should come while they are written"

    # Where cores are few, what is made this fast would be merged.
    on_stage(template, story, settings=GatewaySettings(port=0, max_messages_per_s=10_000))


def test_channels_are_reasoning_text_and_calls() -> None:
    says = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{ARGS}<|call|>"
    )

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = [says, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi"]
        found = told(await streamed(client, tools=TOOLS, reasoning_effort="high"))
        assert "high<|start|>assistant" in stage.prompt()
        assert (found["content"], found["reasoning"], found["finish"]) == ("", "Hm.", "tool_calls")
        assert [call[1:] for call in found["calls"]] == [["weather", ARGS]]
        done = await client.chat.completions.create(model="m", messages=USER)
        assert done.choices[0].message.content == "Hi" and done.choices[0].finish_reason == "stop"
        assert (done.choices[0].message.model_extra or {})["reasoning_content"] == "Hm."

    on_stage(HARMONY, story)


def test_a_prompt_that_opens_the_reasoning_begins_inside_of_it() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = ["Hm.\n</think>\n\nHi", "Hi"]
        found = told(await streamed(client, extra_body={"chat_template_kwargs": {"enable_thinking": True}}))
        assert (found["content"], found["reasoning"]) == ("Hi", "Hm.")
        found = told(await streamed(client))
        assert (found["content"], found["reasoning"]) == ("Hi", "")

    on_stage(QWEN, story)


def test_a_conversation_goes_on_with_what_the_tools_said() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = [CALL, "Sunny.", "Sunny."]
        first = await client.chat.completions.create(model="m", messages=USER, tools=TOOLS)
        message: Any = first.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
        done = await client.chat.completions.create(model="m", messages=[*USER, message, result], tools=TOOLS)
        assert done.choices[0].message.content == "Sunny."
        assert '"name": "weather"' in stage.prompt() and "sun" in stage.prompt()
        await client.chat.completions.create(model="m", messages=USER, tools=TOOLS, tool_choice="none")
        assert "weather" not in stage.prompt().lower().replace("weather in paris", "")

    for template in (HERMES, PLAIN):
        on_stage(template, story)


def test_what_must_be_called_is_asked_of_the_grammar() -> None:
    named = {"type": "function", "function": {"name": "add"}}

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        for choice in ("required", named, "auto"):
            stage.says = [CALL]
            await client.chat.completions.create(model="m", messages=USER, tools=TOOLS, tool_choice=choice)  # type: ignore[call-overload]
        grammars = [submit.sampling.structured_outputs for submit in stage.asked]
        assert grammars[0] is not None and "weather" in grammars[0].text and "add" in grammars[0].text
        assert grammars[1] is not None and "weather" not in grammars[1].text and "add" in grammars[1].text
        assert grammars[2] is None

    on_stage(HERMES, story)


def test_a_broken_stream_goes_on_in_the_middle_of_a_call() -> None:
    body = {"model": "m", "messages": USER, "tools": TOOLS, "stream": True, "resume_grace_s": 20}

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        says = f"I look.\n{CALL}\n{SECOND}\nSo."
        stage.says = [says]
        url = str(client.base_url) + "chat/completions"
        lines: list[str] = []
        async with client._client.stream("POST", url, json=body, headers={"X-Request-Id": "r"}) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
        events: list[tuple[str, Any]] = []
        last = ""
        for line in lines:
            if line.startswith("id: "):
                last = line[4:]
            elif line.startswith("data: {"):
                events.append((last, json.loads(line[6:])))
        whole = put_together([event for _, event in events])
        assert [call["function"]["arguments"] for call in whole["tool_calls"]] == [ARGS, '{"a": 1}']
        assert whole["content"] == "I look.\nSo."
        for at in range(1, len(events), 4):
            # The same again at another gateway, from here on: its log is the same, and so are its ids.
            stage.says = [says]
            other = {**body, "request_id": f"r{at}"}
            head = {"X-Request-Id": "r"}
            first = [event for _, event in events[:at]]
            async with client._client.stream("POST", url, json=other, headers=head) as answer:
                await answer.aread()
            head["Last-Event-ID"] = events[at - 1][0]
            async with client._client.stream("POST", url, json=other, headers=head) as answer:
                rest = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: {")]
            assert put_together(first + rest) == whole, at

    on_stage(HERMES, story)


def put_together(events: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"content": "", "tool_calls": []}
    for event in events:
        delta = event["choices"][0]["delta"]
        found["content"] += delta.get("content", "")
        for call in delta.get("tool_calls", []):
            if call["index"] == len(found["tool_calls"]):
                found["tool_calls"].append({**call, "function": dict(call["function"])})
            else:
                assert "id" not in call and "name" not in call["function"]
                found["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return found


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "x"}]}, "prompt.chat.tools[0]"),
    ({"tools": ["x"]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "prompt.chat.tools[0].function.name"),
    ({"tools": [ADD, ADD]}, "prompt.chat.tools"),
    ({"tools": [ADD] * 200}, "prompt.chat.tools"),
    ({"tools": TOOLS, "tool_choice": "other"}, "prompt.chat.tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "x"}}, "tool_choice.type"),
    ({"tool_choice": "required"}, "prompt.chat.tool_choice"),
    ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"reasoning_effort": "high"}, "prompt.chat.template_args.reasoning_effort"),
    ({"chat_template_kwargs": {"messages": []}}, "prompt.chat.template_args.messages"),
    ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
    ({"functions": [ADD]}, "functions"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{"role": "user", "content": "x", "made_up": 1}]}, "messages[0].made_up"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no"}}]}]},
        "prompt.chat.messages[0].tool_calls[0].arguments",
    ),
]


def test_what_is_wrong_is_refused_by_name() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        for more, param in WRONG:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.post("/chat/completions", cast_to=object, body={"model": "m", "messages": USER, **more})
            assert caught.value.param == param, (more, caught.value)
        assert not stage.asked

    on_stage(HERMES, story)

    async def other(stage: Stage, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="a form that is not read here"):
            await client.chat.completions.create(model="m", messages=USER, tools=TOOLS)

    on_stage(MISTRAL, other)


def test_what_no_answer_can_hold_is_shown_as_it_was_written() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        for name in ('"\\ud800"', "[" * 1_500 + "]" * 1_500):
            says = f'<tool_call>\n{{"name": {name}, "arguments": {{}}}}'
            stage.says = [says]
            assert told(await streamed(client, tools=TOOLS))["content"] == says
        stage.says = ['<tool_call>\n{"name": "add", "arguments": "\\ud800"}']
        assert told(await streamed(client, tools=TOOLS))["calls"][0][1:] == ["add", '"\\ud800"']

    on_stage(HERMES, story)


def test_the_name_in_an_answer_is_the_one_to_come_back_by() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        asked: list[tuple[dict[str, Any], dict[str, str]]] = [
            ({"request_id": "mine"}, {}),
            ({}, {"X-Request-Id": "head"}),
            ({"request_id": ""}, {}),
            ({}, {}),
        ]
        for body, headers in asked:
            stage.says = ["hello"]
            done = await client.completions.create(model="m", prompt="x", extra_body=body, extra_headers=headers)
            assert stage.asked[-1].request_id == f"local/{done.id}", (body, headers)

    on_stage(HERMES, story)


def test_half_a_call_ends_a_stream_well() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        for at in range(0, len(CALL), 3):
            stage.says = [CALL[:at]]
            found = told(await streamed(client, tools=TOOLS))
            await asyncio.sleep(0)
            assert found["finish"] == ("tool_calls" if found["calls"] else "stop")
            if found["calls"]:
                assert found["content"] == "" and (not found["calls"][0][2] or ARGS.startswith(found["calls"][0][2]))
            else:
                assert found["content"] == CALL[:at]

    on_stage(HERMES, story)

"""Clients that people have: LiteLLM, LangChain and `llm` talk, stream, call tools and read what goes wrong.

Behind the `trust` marker, and left out where a client is not installed: `pip install litellm langchain-openai llm`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.http.scripted import HERMES, QWEN, Stage, on_stage
from tests.http.test_tools import ARGS, CALL, SECOND, TOOLS, USER

pytestmark = pytest.mark.trust

SAYS = f"I look.\n{CALL}\n{SECOND}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def staged(says: list[str], talk: Callable[[str, Stage], None], template: str = HERMES) -> None:
    """`talk` runs beside the door, as clients that block do."""

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = list(says)
        await asyncio.to_thread(talk, str(client.base_url), stage)
        assert not stage.says, "what was to be said was not asked for"

    on_stage(template, story)


def weather(city: str) -> str:
    """Of a city"""
    return f"sun over {city}"


# -- LiteLLM


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return pytest.importorskip("litellm")


def test_litellm(litellm: Any) -> None:
    def talk(url: str, stage: Stage) -> None:
        def ask(**more: Any) -> Any:
            return litellm.completion(model="hosted_vllm/m", api_base=url, api_key="none", messages=USER, **more)

        done = ask(temperature=0.5, top_k=3)
        assert done.choices[0].message.content == "Hi" and done.choices[0].message.reasoning_content == "Hm."
        assert stage.asked[-1].sampling.top_k == 3
        chunks = list(ask(stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == "Hi"
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm."
        assert chunks[-1].usage.completion_tokens > 2
        whole = litellm.stream_chunk_builder(list(ask(stream=True, tools=TOOLS)), messages=USER)
        for message in (ask(tools=TOOLS).choices[0].message, whole.choices[0].message):
            called = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
            assert called == [("weather", json.loads(ARGS)), ("add", {"a": 1})] and message.content == "I look."
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
        ask(response_format=form)
        structure = stage.asked[-1].sampling.structured_outputs
        assert structure is not None and json.loads(structure.text) == SCHEMA
        with pytest.raises(litellm.BadRequestError, match="temperature"):
            ask(temperature=-3.0)
        with pytest.raises(litellm.NotFoundError, match="no model"):
            litellm.completion(model="hosted_vllm/x", api_base=url, api_key="none", messages=USER)

    thought = "<think>\nHm.\n</think>\n\nHi"
    staged([thought, thought, SAYS, SAYS, '{"city": "Oslo"}'], talk, QWEN)


# -- LangChain


def test_langchain() -> None:
    chat_models = pytest.importorskip("langchain_openai")
    from langchain_core.messages import ToolMessage  # type: ignore[import-not-found, unused-ignore]
    from langchain_core.tools import tool  # type: ignore[import-not-found, unused-ignore]

    def talk(url: str, stage: Stage) -> None:
        model = chat_models.ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0, max_tokens=400)
        assert model.invoke("Hello").content == "Hi"
        pieces = list(model.stream("Hello", stream_usage=True))
        assert "".join(piece.content for piece in pieces) == "Hi" and len(pieces) > 2
        assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 0
        # An agent's round: what is called, what it said, and the answer.
        able = model.bind_tools([tool(weather)], parallel_tool_calls=False)
        said = able.invoke("Weather in Paris?")
        (call,) = said.tool_calls
        assert (call["name"], call["args"]) == ("weather", json.loads(ARGS))
        told = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
        assert able.invoke([("user", "Weather in Paris?"), said, told]).content == "Sunny."
        assert "sun over Paris" in stage.prompt()
        whole = None
        for piece in model.bind_tools(TOOLS, tool_choice="any").stream("Weather in Paris?"):
            whole = piece if whole is None else whole + piece
        assert whole is not None and [one["name"] for one in whole.tool_calls] == ["weather", "add"]
        for method in ("json_schema", "function_calling"):
            place = model.with_structured_output({"title": "place", **SCHEMA}, method=method).invoke("Where?")
            assert place == {"city": "Oslo"}
        assert sorted(one.content for one in model.batch(["Hello", "Hello"])) == ["a", "b"]
        with pytest.raises(openai.BadRequestError, match="top_p"):
            model.invoke("Hello", top_p=7)

    place = '<tool_call>\n{"name": "place", "arguments": {"city": "Oslo"}}\n</tool_call>'
    staged(["Hi", "Hi", CALL, "Sunny.", SAYS, '{"city": "Oslo"}', place, "a", "b"], talk)


# -- llm


def test_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    # Others' plugins may want what is not here: the one that brings SmolLM2 does.
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    llm = pytest.importorskip("llm")

    def talk(url: str, stage: Stage) -> None:
        (tmp_path / "extra-openai-models.yaml").write_text(
            json.dumps([{"model_id": "q", "model_name": "m", "api_base": url, "supports_tools": True}])
        )
        model = llm.get_model("q")
        model.key = "none"
        assert model.prompt("Hello", stream=False).text() == "Hi"
        pieces = list(model.prompt("Hello", system="Be short."))
        assert "".join(pieces) == "Hi" and len(pieces) > 1 and "[system]Be short." in stage.prompt()
        assert model.chain("Weather in Paris?", tools=[weather]).text().endswith("Sunny.")
        assert "sun over Paris" in stage.prompt()
        with pytest.raises(openai.BadRequestError, match="top_p"):
            model.prompt("Hello", top_p=0.0).text()

    staged(["Hi", "Hi", CALL, "Sunny."], talk)

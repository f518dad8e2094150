"""Chat templates in the process that bounds them: what transformers makes of them, and what hostile ones can't do."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cluster.errors import InvalidRequest, Unavailable
from cluster.gateway.templates import Conversation, Template, Templates
from worker.demo import PATH

USER = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": 'a "quoted" é \U0001f600'}]
# What templates in use rely on, in short.
PLAIN = {
    "loop": "{% for m in messages %}{{ loop.index0 }}<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "json": "{{ messages | tojson(indent=2) }}",
    "break": "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "prompt": "{{ bos_token }}x{% if add_generation_prompt %}assistant:{% endif %}",
    "tools": "{% if tools is none %}no tools{% endif %}{{ documents is none }}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0].role) }}",
}
HOSTILE = {
    "for ever": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "all memory": "{{ 'a' * 10000000000 }}",
    "all memory by steps": "{% set ns = namespace(s='aaaaaaaaaa') %}{% for a in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "no function": "{{ nothing() }}",
    "no key": "{{ messages[7].role.upper() }}",
    "division": "{{ 1 // 0 }}",
    "its own word": "{{ raise_exception('roles must alternate') }}",
    "syntax": "{% for %}",
    "way out": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "too long": "{{ 'a' * 5000 }}",
    "half a character": "{{ '\\ud800' }}",
}


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    before = children()
    yield
    assert children() == before, "a child is left"


def children() -> set[str]:
    """Of this process, which run a template."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(") ")[2].split()[1]
                if int(parent) == os.getpid() and b"cluster.gateway.templates" in (entry / "cmdline").read_bytes():
                    found.add(entry.name)
            except OSError:
                continue
    return found


def with_templates(story: Callable[[Templates], Awaitable[None]], render_s: float = 20.0) -> None:
    async def run() -> None:
        templates = Templates(render_s)
        try:
            await story(templates)
        finally:
            await templates.close()

    asyncio.run(asyncio.wait_for(run(), 90))


@pytest.mark.timeout(120)
def test_texts_are_those_of_transformers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PATH)

    async def story(templates: Templates) -> None:
        for source in (tokenizer.chat_template, *PLAIN.values()):
            tokenizer.chat_template = source
            template = Template.of(tokenizer)
            assert template is not None
            for add in (True, False):
                wanted = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=add)
                assert await templates.render("t", template, Conversation(USER, add), 10_000) == wanted
        assert templates.child.num_ended == 0

    with_templates(story)


@pytest.mark.timeout(180)
def test_whatever_goes_wrong_in_a_template_is_the_error_of_who_asked() -> None:
    good = Template("{% for m in messages %}{{ m.content }}{% endfor %}", {})

    async def story(templates: Templates) -> None:
        for name, source in HOSTILE.items():
            if name == "half a character":
                assert await templates.render("t", Template(source, {}), Conversation(USER), 4000) == "\ud800"
                continue
            with pytest.raises(InvalidRequest) as found:
                await templates.render("t", Template(source, {}), Conversation(USER), 4000)
            assert found.value.field == "prompt.chat", name
            assert len(str(found.value)) < 1000
            # The next one is served, by the same child or another.
            assert (
                await templates.render("t", good, Conversation(USER), 4000) == USER[0]["content"] + USER[1]["content"]
            )
        assert templates.child.num_ended >= 1

    with_templates(story, render_s=8.0)


@pytest.mark.timeout(60)
def test_who_stops_waiting_leaves_no_answer_to_the_next() -> None:
    async def story(templates: Templates) -> None:
        slow = asyncio.create_task(templates.render("t", Template(HOSTILE["for ever"], {}), Conversation(USER), 100))
        while templates.child._child is None or not templates.child._known:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        next_one = asyncio.create_task(
            templates.render("t", Template("{{ messages[0].role }}", {}), Conversation(USER), 100)
        )
        await asyncio.sleep(0.05)
        slow.cancel()
        assert await next_one == "user"

    with_templates(story)


@pytest.mark.timeout(60)
def test_where_no_process_can_be_started_it_is_nobodys_mistake() -> None:
    """This process can open nothing more; it is served again once it can."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story(templates: Templates) -> None:
        good = Template("{{ messages[0].role }}", {})
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(Unavailable, match="did not begin"):
                await templates.render("t", good, Conversation(USER), 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert await templates.render("t", good, Conversation(USER), 100) == "user"

    with_templates(story)

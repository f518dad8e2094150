"""Beams through the front door: whole hypotheses at the end, best first, each with its score and its text."""

from dataclasses import replace

import pytest

from cluster.errors import InvalidRequest
from cluster.sampling import SamplingParams
from cluster.sim.beams import best, search
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from tests.cluster.front_door import PROMPT, Door, at_the_door, tokenizer
from tests.cluster.live import SHAPE


def test_hypotheses_come_whole_with_score_and_text():
    async def story(door: Door) -> None:
        params = SamplingParams(beam_width=4, n=3, seed=5, max_tokens=30)
        output = await door.client.generate(PROMPT, params, model="m")
        want = best(search("m", PROMPT, 5, 4, 30, SHAPE.end_one_in), 3)
        assert [tuple(one.token_ids) for one in output.outputs] == [found.tokens for found in want]
        assert [one.score for one in output.outputs] == [found.score for found in want]
        assert [one.finish_reason for one in output.outputs] == [found.reason.name.lower() for found in want]
        for one in output.outputs:
            assert one.text == tokenizer().decode(one.token_ids, skip_special_tokens=True)
            assert one.cumulative_logprob is None
        await door.settled()

    at_the_door(story)


def test_nothing_is_said_before_the_end_and_one_beam_has_no_score():
    async def story(door: Door) -> None:
        message = pb.GenerateRequest(prompt=pb.Prompt(token_ids=common_pb2.TokenIds(ids=PROMPT)))
        message.sampling.beam_width, message.sampling.n, message.sampling.seed = 3, 2, 7
        message.sampling.max_tokens = 20
        kinds = [response.WhichOneof("event") async for response in door.stub.Generate(message)]
        assert kinds[-5:] == ["tokens", "finished", "tokens", "finished", "done"]
        assert set(kinds[:-5]) == {"accepted"}
        message.sampling.beam_width, message.sampling.n = 1, 1
        ends = [r.finished async for r in door.stub.Generate(message) if r.WhichOneof("event") == "finished"]
        assert [end.HasField("score") for end in ends] == [False]
        await door.settled()

    at_the_door(story)


def test_more_beams_than_a_replica_has_places_for_are_refused_with_the_figures():
    async def story(door: Door) -> None:
        params = SamplingParams(beam_width=8, max_tokens=10)
        with pytest.raises(InvalidRequest, match=r"8 beams are more than the 4 .* lower beam_width"):
            await door.client.generate(PROMPT, params, model="m")
        await door.settled()

    at_the_door(story, shapes=[replace(SHAPE, max_batch=4)])

"""The client: its two faces, its forms of prompts, and what it does when a gateway is away, comes late or goes."""

import asyncio
import subprocess
import sys
import threading
import time

import grpc
import pytest

import cluster.errors as errors
from cluster import Client
from cluster.client.asynchronous import AsyncClient
from cluster.client.connection import Connection, Tls
from cluster.client.errors import error_from_status
from cluster.client.request import Options, Reception, generate_message, prompt_message
from cluster.errors import Aborted, ConfigError, InvalidRequest, ProtocolError, Unavailable
from cluster.gateway.errors import status_of
from cluster.gateway.settings import GatewaySettings
from cluster.offline.outputs import RequestOutput
from cluster.sampling import SamplingParams
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, open_server, slow
from tests.links.proxies import PortProxy


def in_a_thread(door: Door, work) -> asyncio.Future:
    """The synchronous client is used where it belongs: in a thread without a loop."""

    def run():
        with Client(door.address) as client:
            return work(client)

    return asyncio.ensure_future(asyncio.to_thread(run))


def test_the_synchronous_face_has_every_method_and_does_the_same():
    async def story(door: Door) -> None:
        def work(client: Client):
            client.wait_ready(5.0)
            one = client.generate(PROMPT, seed=3, max_tokens=12)
            many = client.generate_many([PROMPT, [1, 2]], [SamplingParams(seed=3, max_tokens=12)] * 2)
            parts = list(client.stream(PROMPT, seed=3, max_tokens=12))
            mixed = list(client.stream_many([PROMPT, [1, 2]], seed=3, max_tokens=5))
            tried = client.try_many([PROMPT, [-1]], max_tokens=2)
            assert client.models()[0].name == "m" and client.tokenize("wdaa") == [300]
            assert client.detokenize([300]) == " wdaa" and client.cache_prefix(list(range(1, 20)), 5.0) == 16
            assert not client.cancel("nobody")
            return one, many, parts, mixed, tried

        one, many, parts, mixed, tried = await in_a_thread(door, work)
        said = expected(PROMPT, 3, 12)
        assert one.outputs[0].token_ids == many[0].outputs[0].token_ids == said
        assert [token for part in parts for token in part.token_ids] == said
        assert "".join(part.text for part in parts) == one.outputs[0].text
        assert {part.prompt_index for part in mixed} == {0, 1}
        assert isinstance(tried[0], RequestOutput) and isinstance(tried[1], InvalidRequest)

    public = {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert public == {name for name in dir(Client) if not name.startswith("_")}
    at_the_door(story)


def test_leaving_a_stream_early_ends_the_request():
    async def story(door: Door) -> None:
        def work(client: Client):
            for number, _ in enumerate(client.stream(PROMPT, max_tokens=900, ignore_eos=True, resume_grace_s=0.0)):
                if number == 3:
                    break

        await in_a_thread(door, work)
        await door.settled()
        async for _ in door.client.stream(PROMPT, max_tokens=900, ignore_eos=True, resume_grace_s=0.0):
            break
        await door.settled()

    at_the_door(story, shapes=[slow()])


def test_a_closed_client_says_so():
    client = Client("127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(Unavailable, match="closed"):
        client.models()


def test_a_gateway_that_comes_late_is_waited_for():
    async def story(door: Door) -> None:
        other = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=0))
        port = other.port
        await other.stop(0.1)
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            working = asyncio.create_task(client.generate(PROMPT, seed=1, max_tokens=5))
            await asyncio.sleep(0.5)
            other = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=port, incarnation=2))
            assert (await working).outputs[0].token_ids == expected(PROMPT, 1, 5)
        await other.stop(0.1)

    at_the_door(story)


def test_nobody_there_is_told_in_seconds():
    async def run() -> float:
        began = time.monotonic()
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(Unavailable):
                await client.generate(PROMPT, max_tokens=1)
            with pytest.raises(errors.DeadlineExceeded):
                await client.generate(PROMPT, max_tokens=1, timeout_s=0.3)
        return time.monotonic() - began

    assert asyncio.run(run()) < 12.0


def test_a_name_that_no_machine_has_is_told():
    async def run() -> None:
        async with AsyncClient("no.such.name.invalid:1") as client:
            with pytest.raises(Unavailable, match=r"^no machine is known by the name no\.such\.name\.invalid; "):
                await client.models()

    asyncio.run(run())


def test_several_addresses_are_tried_in_turn():
    async def story(door: Door) -> None:
        async with AsyncClient(["127.0.0.1:1", door.address]) as client:
            assert (await client.generate(PROMPT, seed=1, max_tokens=3)).outputs[0].token_ids == expected(PROMPT, 1, 3)
            outputs = await client.generate_many([PROMPT] * 3, seed=1, max_tokens=3)
            assert len(outputs) == 3

    at_the_door(story)


def test_a_broken_connection_is_resumed_on_the_same_gateway():
    """A proxy between the two is cut again and again; the stream that comes out has no seam."""

    async def story(door: Door) -> None:
        proxy = PortProxy(door.server.port)
        await proxy.start()
        async with AsyncClient(f"127.0.0.1:{proxy.port}") as client:
            prompts = [[4, 5, number + 1] for number in range(6)]
            alone = asyncio.create_task(client.generate(PROMPT, seed=6, max_tokens=80, n=2, ignore_eos=True))
            many = asyncio.create_task(client.generate_many(prompts, seed=6, max_tokens=80, ignore_eos=True))
            for _ in range(4):
                await asyncio.sleep(0.2)
                proxy.cut()
            output = await alone
            for sequence in output.outputs:
                assert sequence.token_ids == expected(PROMPT, 6, 80, sequence.index, ends=False)
            for prompt, output in zip(prompts, await many, strict=True):
                assert output.outputs[0].token_ids == expected(prompt, 6, 80, ends=False)
            assert proxy.num_cut >= 4
        await proxy.stop()

    at_the_door(story, shapes=[slow(0.012)])


def test_requests_have_an_id_and_a_seed_before_they_are_sent():
    first, second = (generate_message(PROMPT, SamplingParams(), Options()) for _ in range(2))
    assert first.request_id and first.request_id != second.request_id
    assert first.sampling.HasField("seed") and first.sampling.seed != second.sampling.seed
    assert generate_message(PROMPT, SamplingParams(seed=5), Options()).sampling.seed == 5


@pytest.mark.parametrize("prompt", ["", [], {}, {"prompt": 3}, [1, "a"], [1.5], [{"role": "user"}], [2**40]])
def test_what_is_no_prompt(prompt):
    if prompt == "":
        assert prompt_message(prompt).WhichOneof("prompt") == "text"
        return
    with pytest.raises(InvalidRequest, match="prompt"):
        prompt_message(prompt)


def test_forms_of_prompts():
    assert prompt_message("hello").text == "hello"
    assert list(prompt_message([1, 2]).token_ids.ids) == [1, 2]
    assert list(prompt_message({"prompt_token_ids": (1, 2)}).token_ids.ids) == [1, 2]
    assert prompt_message({"prompt": "x"}).text == "x"
    assert prompt_message([{"role": "user", "content": "x"}]).chat.messages[0].content == "x"


def test_unknown_settings_are_named():
    client = AsyncClient("127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="temprature"):
        client.stream(PROMPT, temprature=0.5)
    with pytest.raises(InvalidRequest, match=r"sampling\.top_p"):
        client.stream(PROMPT, top_p=3.0)
    with pytest.raises(ConfigError, match="address"):
        AsyncClient([])
    with pytest.raises(ConfigError, match="go together"):
        Tls(certificate="x").credentials()
    assert Connection("gateway", None, None).address == "gateway:50051"


def test_a_gateway_that_skips_tokens_is_found_out():
    reception = Reception(PROMPT, generate_message(PROMPT, SamplingParams(), Options()))
    reception.take(pb.GenerateResponse(tokens=pb.TokenChunk(position=0, ids=[1, 2])))
    assert reception.take(pb.GenerateResponse(tokens=pb.TokenChunk(position=0, ids=[1, 2]))) is None
    with pytest.raises(ProtocolError, match="jump from 2 to 5"):
        reception.take(pb.GenerateResponse(tokens=pb.TokenChunk(position=5, ids=[9])))
    with pytest.raises(ProtocolError, match="sequence 3 of 1"):
        reception.take(pb.GenerateResponse(tokens=pb.TokenChunk(sequence=3, ids=[9])))


ERRORS = [
    errors.InvalidRequest("sampling.top_p", "is 7", "give less"),
    errors.NeverFits("prompt", 5000, 2048, "tokens", "shorten the prompt"),
    errors.Unsupported("regex", "is asked for", "leave it out"),
    errors.AlreadyExists("request_id", "x is under way", "give another"),
    errors.QueueFull("9 requests wait", 2.5),
    errors.Unavailable("nobody is here", 1.5),
    errors.Unavailable("nobody is here"),
    errors.DeadlineExceeded("too late"),
    errors.Aborted("cancelled"),
    errors.NotFound("no such model"),
    errors.AccessDenied("no right"),
    errors.NotAuthenticated("no token"),
    errors.WorkFailed("broken"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_back_as_they_were(error):
    status = common_pb2.Status.FromString(status_of(error).SerializeToString())
    again = error_from_status(status)
    assert type(again) is type(error) and str(again) == str(error) and again.args == error.args
    assert status.code == grpc.StatusCode[error.grpc_status].value[0]


def test_details_that_cannot_be_decoded_leave_the_code_and_the_words():
    status = common_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no such model")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff\xff")
    error = error_from_status(status)
    assert isinstance(error, errors.NotFound) and "no such model" in str(error)


def test_every_error_that_has_a_status_can_be_told():
    def tree(root):
        yield root
        for kind in root.__subclasses__():
            yield from tree(kind)

    reasons = [kind.reason() for kind in tree(errors.QuireError) if kind.__module__ == "cluster.errors"]
    assert len(reasons) == len(set(reasons)) and "NEVER_FITS" in reasons
    assert all(kind.grpc_status in grpc.StatusCode.__members__ for kind in tree(errors.QuireError))


def test_the_client_needs_the_base_install_only():
    heavy = "torch numpy ray transformers tokenizers jinja2 google.rpc"
    command = f"""
import sys
from cluster import AsyncClient, Client, Options, SamplingParams, Tls
Client("127.0.0.1:1").close()
print([name for name in "{heavy}".split() if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_one_client_in_many_threads():
    async def story(door: Door) -> None:
        def work():
            with Client(door.address) as client:
                results = {}

                def ask(number):
                    results[number] = client.generate([8, number + 1], seed=1, max_tokens=8).outputs[0].token_ids

                threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(20)
                return results

        results = await asyncio.to_thread(work)
        assert results == {number: expected([8, number + 1], 1, 8) for number in range(8)}

    at_the_door(story)


def test_what_is_under_way_ends_with_the_client():
    async def story(door: Door) -> None:
        client = AsyncClient(door.address)
        working = asyncio.create_task(client.generate(PROMPT, max_tokens=900, ignore_eos=True, resume_grace_s=0.0))
        await door.until(lambda: door.gateway.num_open == 1)
        working.cancel()
        with pytest.raises((asyncio.CancelledError, Aborted)):
            await working
        await door.settled()
        await client.close()

    at_the_door(story, shapes=[slow()])

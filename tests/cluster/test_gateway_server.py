"""The gateway's server: health, reflection, tokens, TLS, limits, and what comes in that is no message at all."""

import asyncio
import random
import re
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from cluster.cli import main as cli
from cluster.client.asynchronous import AsyncClient
from cluster.client.connection import Tls
from cluster.errors import AccessDenied, ConfigError, NotAuthenticated, Unavailable
from cluster.gateway import health
from cluster.gateway.front import Disconnected
from cluster.gateway.settings import GatewaySettings
from cluster.serving.auth import TokenBook, check_exposure, is_loopback, load_tokens, make_tokens
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import PROMPT, Door, at_the_door, open_server
from tests.cluster.live import LiveCluster
from tests.cluster.test_gateway import collect, request

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
METHODS = pb.DESCRIPTOR.services_by_name["InferenceService"].methods


async def status_of(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collect(call) if hasattr(call, "read") else call)
    return caught.value


def test_health_follows_workers_and_scheduler():
    async def story(door: Door) -> None:
        await door.client.wait_ready(5.0)
        stub = HealthStub(door.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        for name in ("", "quire.v1.InferenceService", "model/m"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        door.cluster.kill_worker("r0")
        # No model is served at all: nothing is ready.
        assert (await watch.read()).status == NOT_SERVING
        door.cluster.add_worker("r0")
        assert (await watch.read()).status == SERVING
        door.gateway.take(Disconnected("killed"))
        assert (await watch.read()).status == NOT_SERVING
        error = await status_of(stub.Check(health_pb2.HealthCheckRequest(service="nobody")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        for name in ("x" * 60_000, "€" * 20_000, "%" * 60_000, "\n" * 60_000):
            # Whatever is said back fits into what peers take of it.
            error = await status_of(stub.Check(health_pb2.HealthCheckRequest(service=name)))
            assert error.code() is grpc.StatusCode.NOT_FOUND, (name[:1], error.details())
        listed = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert set(listed) == {"", "quire.v1.InferenceService", "model/m"}
        watch.cancel()

    at_the_door(story)


def test_watchers_of_health_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "MAX_WATCHERS", 2)

    async def story(door: Door) -> None:
        stub = HealthStub(door.channel)
        watches = []
        for _ in range(2):
            # Each is there before the next one comes.
            watches.append(stub.Watch(health_pb2.HealthCheckRequest()))
            await watches[-1].read()
        # One more is served, and the oldest ends.
        again = stub.Watch(health_pb2.HealthCheckRequest())
        assert await again.read() is not grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watches[0].read()
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "ask with Check" in ended.value.details()
        for watch in (watches[1], again):
            watch.cancel()

    at_the_door(story)


def test_reflection_lists_and_describes_the_services():
    async def story(door: Door) -> None:
        def look() -> set[str]:
            with grpc.insecure_channel(door.address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                pool = DescriptorPool(database)
                found = pool.FindServiceByName("quire.v1.InferenceService")
                assert [method.name for method in found.methods] == [method.name for method in METHODS]
                return set(database.get_services())

        services = await asyncio.to_thread(look)
        assert {"quire.v1.InferenceService", "grpc.health.v1.Health"} <= services

    at_the_door(story)


def test_garbage_is_the_clients_mistake_on_every_method(seed: int):
    """Random bytes, broken messages, wrong UTF-8: never INTERNAL, never UNKNOWN, and the server goes on."""
    rng = random.Random(seed)
    good = request(max_tokens=1).SerializeToString()
    blobs = [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28", good[:-1]]
    blobs += [rng.randbytes(rng.randrange(1, 60)) for _ in range(25)]
    blobs += [good[:at] + rng.randbytes(2) + good[at + 2 :] for at in range(0, len(good), 2)]

    async def story(door: Door) -> None:
        codes: dict[str, set[grpc.StatusCode]] = {}
        for method in METHODS:
            path = f"/quire.v1.InferenceService/{method.name}"
            for blob in blobs:
                if method.client_streaming:
                    call = door.channel.stream_stream(path)(None, timeout=5)
                    await call.write(blob)
                    await call.done_writing()
                elif method.server_streaming:
                    call = door.channel.unary_stream(path)(blob, timeout=5)
                else:
                    call = door.channel.unary_unary(path)(blob, timeout=5)
                try:
                    await (collect(call) if hasattr(call, "read") else call)
                except grpc.aio.AioRpcError as error:
                    codes.setdefault(method.name, set()).add(error.code())
        bad = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert not {name: found & bad for name, found in codes.items() if found & bad}
        assert all(grpc.StatusCode.INVALID_ARGUMENT in found for found in codes.values()) and len(codes) == len(METHODS)
        for service, method in (("grpc.health.v1.Health", "Check"), ("grpc.health.v1.Health", "Watch")):
            make = door.channel.unary_stream if method == "Watch" else door.channel.unary_unary
            error = await status_of(make(f"/{service}/{method}")(b"\xff\xff", timeout=5))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        output = await door.client.generate(PROMPT, max_tokens=2, ignore_eos=True)
        assert len(output.outputs[0].token_ids) == 2

    at_the_door(story, timeout_s=60)


def test_errors_carry_google_rpc_details():
    async def story(door: Door) -> None:
        error = await status_of(door.stub.Generate(request(top_p=7.0)))
        status = rpc_status.from_call(_Finished(error))
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and status.message == error.details()
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert status.details[0].Unpack(info) and status.details[1].Unpack(bad)
        assert (info.reason, info.domain, info.metadata["field"]) == ("INVALID_REQUEST", "quire", "sampling.top_p")
        assert bad.field_violations[0].field == "sampling.top_p"
        door.gateway.is_stopping = True
        error = await status_of(door.stub.Generate(request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        door.gateway.is_stopping = False
        object.__setattr__(door.gateway.door.settings, "max_open", 0)
        error = await status_of(door.stub.Generate(request()))
        status = rpc_status.from_call(_Finished(error))
        kinds = [detail.type_url.rpartition(".")[2] for detail in status.details]
        assert kinds == ["ErrorInfo", "QuotaFailure", "RetryInfo"]
        retry = error_details_pb2.RetryInfo()
        assert status.details[2].Unpack(retry) and retry.retry_delay.ToTimedelta().total_seconds() == 1.0

    at_the_door(story)


class _Finished:
    """grpc-status reads a finished call of the synchronous kind."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def trailing_metadata(self):
        return tuple(self._error.trailing_metadata())

    def code(self):
        return self._error.code()

    def details(self):
        return self._error.details()


def test_a_message_beyond_the_limit_is_refused():
    async def story(door: Door) -> None:
        error = await status_of(door.stub.Generate(request([2000] * 60_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    at_the_door(story, settings=GatewaySettings(port=0, max_message_bytes=1 << 16))


def test_tokens_are_tenants(tmp_path: Path):
    tokens = make_tokens(
        tmp_path / "tokens.json", [("red", ["inference"]), ("blue", ["inference"]), ("boss", ["admin"])]
    )
    assert (tmp_path / "tokens.json").stat().st_mode & 0o077 == 0
    assert not any(token in (tmp_path / "tokens.json").read_text() for token in tokens.values())
    book = load_tokens(tmp_path / "tokens.json")

    async def story(door: Door) -> None:
        for token, kind in ((None, NotAuthenticated), ("wrong", NotAuthenticated), (tokens["boss"], AccessDenied)):
            async with AsyncClient(door.address, token=token) as client:
                with pytest.raises(kind) as caught:
                    await client.generate(PROMPT, max_tokens=2)
                assert type(caught.value) is kind
        async with (
            AsyncClient(door.address, token=tokens["red"]) as red,
            AsyncClient(door.address, token=tokens["blue"]) as blue,
        ):
            prompt = list(range(1, 40))
            # One id under two tenants is two requests, and prefixes are not shared between them.
            for client, cached in ((red, 0), (red, 32), (blue, 0)):
                output = await client.generate(prompt, request_id="same", seed=1, max_tokens=2, ignore_eos=True)
                assert output.metrics.cached_tokens == cached
            working = asyncio.create_task(red.generate(PROMPT, request_id="mine", max_tokens=400, ignore_eos=True))
            await door.until(lambda: door.gateway.num_open == 1)
            assert not await blue.cancel("mine")
            assert await red.cancel("mine")
            assert (await working).outputs[0].finish_reason == "abort"
        # Load balancers ask without a token.
        await HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=""))

    at_the_door(story, settings=GatewaySettings(port=0, tokens=book))


def test_every_token_of_the_book_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Neither the place of the right token nor how much of it is right can be told by the clock."""
    import cluster.serving.auth as auth

    tokens = make_tokens(tmp_path / "tokens.json", [(f"t{number}", ["inference"]) for number in range(5)])
    book = load_tokens(tmp_path / "tokens.json")
    compared = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(1) or real(a, b))
    assert book.caller(f"Bearer {tokens['t0']}").tenant == "t0" and len(compared) == 5
    with pytest.raises(NotAuthenticated):
        book.caller("Bearer nothing")
    assert len(compared) == 10
    for header in (None, "", "Basic abc", "Bearer ", "Bearer " + "x" * 600):
        with pytest.raises(NotAuthenticated):
            book.caller(header)


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"tenant": "a"}]', '[{"tenant": "a/b", "sha256": "00"}]'])
def test_a_broken_token_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_tokens(path)


def test_a_token_file_that_others_can_write_is_refused(tmp_path: Path):
    path = tmp_path / "tokens.json"
    make_tokens(path, [("a", ["inference"])])
    assert path.stat().st_mode & 0o777 == 0o600 and load_tokens(path)
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="can be written by others"):
        load_tokens(path)


def test_tls_and_mutual_tls(tmp_path: Path):
    files = make_certificates(tmp_path / "tls", ["localhost", "127.0.0.1"])
    others = make_certificates(tmp_path / "other", ["localhost"])
    assert files.server_key.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="exist already"):
        make_certificates(tmp_path / "tls", ["localhost"])

    async def refused(client: AsyncClient) -> bool:
        try:
            await client.models(timeout_s=1.0)
        except Exception as error:
            return isinstance(error, Unavailable | ConfigError) or "DEADLINE" in type(error).__name__.upper()
        finally:
            await client.close()
        return False

    def door_with(authority: Path | None) -> GatewaySettings:
        return GatewaySettings(port=0, tls=PortTls(files.server_certificate, files.server_key, authority))

    async def story(door: Door) -> None:
        async with AsyncClient(f"localhost:{door.server.port}", tls=Tls(authority=files.authority)) as client:
            output = await client.generate(PROMPT, max_tokens=3, ignore_eos=True)
            assert len(output.outputs[0].token_ids) == 3
        assert await refused(AsyncClient(door.address, tls=Tls(authority=others.authority)))
        assert await refused(AsyncClient(door.address))

    async def mutual(door: Door) -> None:
        shown = Tls(files.authority, files.client_certificate, files.client_key)
        async with AsyncClient(f"localhost:{door.server.port}", tls=shown) as client:
            assert (await client.models())[0].name == "m"
        assert await refused(AsyncClient(f"localhost:{door.server.port}", tls=Tls(authority=files.authority)))
        strange = Tls(files.authority, others.client_certificate, others.client_key)
        assert await refused(AsyncClient(f"localhost:{door.server.port}", tls=strange))

    at_the_door(story, settings=door_with(None))
    at_the_door(mutual, settings=door_with(files.authority))


def test_beyond_loopback_it_needs_tls_and_tokens(tmp_path: Path):
    files = make_certificates(tmp_path / "tls", ["localhost"])
    make_tokens(tmp_path / "tokens.json", [("a", ["inference"])])
    book, tls = load_tokens(tmp_path / "tokens.json"), PortTls(files.server_certificate, files.server_key)

    async def attempt(settings: GatewaySettings) -> None:
        cluster = LiveCluster()
        try:
            server = await open_server(cluster, settings)
            await server.stop(0.1)
        finally:
            await cluster.close()

    for host in ("0.0.0.0", "[::]"):
        for settings, missing in (
            (GatewaySettings(host=host, port=0), "lets other machines in, without a TLS certificate and a token file"),
            (GatewaySettings(host=host, port=0, tls=tls), "machines in, without a token file;"),
            (GatewaySettings(host=host, port=0, tokens=book), "machines in, without a TLS certificate;"),
        ):
            with pytest.raises(ConfigError, match=missing):
                asyncio.run(attempt(settings))
    asyncio.run(attempt(GatewaySettings(port=0)))
    check_exposure("0.0.0.0", has_tls=True, has_tokens=True)
    assert is_loopback("::1") and is_loopback("127.8.9.1") and not is_loopback("10.0.0.1") and not is_loopback("gpu7")
    assert not TokenBook()


def test_a_port_that_is_taken_is_named():
    async def story(door: Door) -> None:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{door.server.port}.*--port"):
            await open_server(door.cluster, GatewaySettings(name="gateway-1", port=door.server.port))

    at_the_door(story)


def test_a_loop_that_ends_by_a_mistake_ends_the_server():
    """Its process then ends and is started again: who is not there is better than who answers nobody."""

    async def story(door: Door) -> None:
        waiting = asyncio.ensure_future(door.server.wait())
        door.gateway._link.push("no word of a scheduler")
        with pytest.raises(KeyError):
            await asyncio.wait_for(waiting, 5.0)

    at_the_door(story)


def test_a_silent_connection_lives_and_is_pinged():
    """Pings of both ends keep a silent stream up; with keepalive at a tenth of a second many of them pass."""

    async def story(door: Door) -> None:
        options = [
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 1_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        channel = grpc.aio.insecure_channel(door.address, options=options)
        watch = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        await watch.read()
        call = InferenceServiceAsyncStub(channel).GenerateMany()
        await asyncio.sleep(2.0)
        await call.write(pb.GenerateManyRequest(tag=1, generate=request(seed=1, max_tokens=2, ignore_eos=True)))
        got = []
        while not got or not got[-1].HasField("done"):
            got += (await call.read()).responses
        assert await watch.initial_metadata() is not None and not watch.done()
        call.cancel()
        watch.cancel()
        await channel.close(None)

    at_the_door(story, settings=GatewaySettings(port=0, keepalive_s=0.1))


def test_no_pickle_on_any_port():
    """Nothing of ours that listens or connects may unpickle what it is sent."""
    root = Path(__file__).parents[2]
    found = []
    for room in ("cluster", "worker", "protos"):
        for path in sorted((root / room).rglob("*.py")):
            if re.search(r"\b(import|from) (pickle|cloudpickle|dill|marshal|shelve)\b|pickle\.loads", path.read_text()):
                found.append(str(path.relative_to(root)))
    assert not found


def test_one_command_makes_what_an_open_port_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command that the refusal names: with its files the same port opens, and its tokens are let in."""
    folder = tmp_path / "set-up"
    assert cli(["certificates", str(folder), "--host", "localhost", "--tenant", "red"]) == 0
    told = dict(re.findall(r"^token of (\w+): (\S+)$", capsys.readouterr().out, re.MULTILINE))
    assert set(told) == {"red", "operator"}
    book = load_tokens(folder / "tokens.json")
    assert book.caller(f"Bearer {told['red']}").rights == {"inference"}
    assert book.caller(f"Bearer {told['operator']}").rights == {"inference", "admin"}
    assert cli(["certificates", str(folder)]) != 0
    assert "exists already" in capsys.readouterr().err

    async def story(door: Door) -> None:
        tls = Tls(authority=folder / "authority.pem")
        async with AsyncClient(f"localhost:{door.server.port}", token=told["red"], tls=tls) as client:
            assert (await client.models())[0].name == "m"

    at_the_door(
        story, settings=GatewaySettings(port=0, tls=PortTls(folder / "server.pem", folder / "server.key"), tokens=book)
    )

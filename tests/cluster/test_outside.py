"""The doors as somebody outside finds them: reflection, bytes, deadlines, prefixes, with a real worker behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cluster.bench.processes import Processes
from cluster.client.blocking import Client
from cluster.settings import SchedulerSettings, WorkerSettings
from protos.quire.v1 import admin_pb2, common_pb2
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from protos.quire.v1.inference_pb2_grpc import InferenceServiceStub

ENDLESS = common_pb2.Sampling(max_tokens=1_900, ignore_eos=True, seed=1)
TALE = "Once upon a time there was a miller named Tomas, who lived by the river. " * 3


@pytest.fixture(scope="module")
def running() -> Iterator[Processes]:
    with Processes(SchedulerSettings()) as processes:
        settings = WorkerSettings(model="demo", kv_blocks=512, max_batch=64, show_progress=False)
        processes.add_workers({"w0": settings})
        processes.open_gateway(["demo"])
        with Client(processes.gateway) as client:
            client.wait_ready(30.0)
        yield processes


def asked(text: str, sampling: common_pb2.Sampling) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), sampling=sampling)


def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def num_held(running: Processes) -> int:
    with grpc.insecure_channel(running.admin) as channel:
        pools = AdminServiceStub(channel).ListPools(admin_pb2.ListPoolsRequest(), timeout=5).pools
    return sum(pool.num_held + pool.num_moving for pool in pools)


def test_both_doors_say_what_they_speak(running: Processes) -> None:
    for address, service in ((running.gateway, "InferenceService"), (running.admin, "AdminService")):
        with grpc.insecure_channel(address) as channel:
            assert f"quire.v1.{service}" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_bytes_that_are_no_message_are_the_operators_mistake_too(running: Processes) -> None:
    with grpc.insecure_channel(running.admin) as channel:
        for method in admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(f"/quire.v1.AdminService/{method.name}")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(b"\xff\xff", timeout=5))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name


@pytest.mark.parametrize("ending", ["deadline", "cancel", "broken connection"])
def test_whatever_ends_a_call_frees_its_blocks(running: Processes, ending: str) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(running.gateway, options=options) as channel:
        timeout_s = 1.0 if ending == "deadline" else 60.0
        call = InferenceServiceStub(channel).Generate(asked("The river", ENDLESS), timeout=timeout_s)
        next(message for message in call if message.HasField("tokens"))
        assert num_held(running) > 0
        if ending == "deadline":
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        elif ending == "cancel":
            call.cancel()
        else:
            channel.close()
        until(lambda: num_held(running) == 0)


def test_a_prefix_that_was_warmed_is_found(running: Processes) -> None:
    with grpc.insecure_channel(running.gateway) as channel:
        stub = InferenceServiceStub(channel)
        warmed = stub.CachePrefix(pb.CachePrefixRequest(prompt=pb.Prompt(text=TALE), ttl_s=30.0), timeout=20)
        assert 0 < warmed.pinned_tokens <= warmed.prompt_tokens
        few = common_pb2.Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
        *_, done = stub.Generate(asked(TALE + "And then", few), timeout=20)
    assert done.done.cached_tokens >= warmed.pinned_tokens - 16


def test_hundreds_of_requests_on_one_stream(running: Processes) -> None:
    def questions() -> Iterator[pb.GenerateManyRequest]:
        for tag in range(1, 301):
            sampling = common_pb2.Sampling(max_tokens=12, temperature=0.9, seed=tag)
            yield pb.GenerateManyRequest(tag=tag, generate=asked("A cold morning", sampling))

    counted: dict[int, int] = {}
    done: dict[int, int] = {}
    with grpc.insecure_channel(running.gateway) as channel:
        for message in InferenceServiceStub(channel).GenerateMany(questions(), timeout=100):
            for response in message.responses:
                if response.HasField("tokens"):
                    counted[response.tag] = counted.get(response.tag, 0) + len(response.tokens.ids)
                elif response.HasField("done"):
                    done[response.tag] = response.done.completion_tokens
    assert counted == done and len(done) == 300

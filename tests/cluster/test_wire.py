"""Every message goes over the wire and comes back the same; what is broken on the way is refused by name."""

import subprocess
import sys
import time
from array import array
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import messages as m
from cluster.client.request import Options, generate_message
from cluster.errors import InvalidRequest, ProtocolError
from cluster.gateway.intake import read_generate
from cluster.hashing import HASH_BYTES
from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams
from cluster.wire import front as wire_front
from cluster.wire import plans as wire
from cluster.wire import sampling as wire_sampling
from cluster.wire import state as wire_state
from cluster.wire import tokens as wire_tokens
from protos.quire.v1 import common_pb2, control_pb2, front_pb2

EXAMPLES = settings(max_examples=60, deadline=None)

int32s = st.integers(-(2**31), 2**31 - 1)
counts = st.integers(0, 2**31 - 1)
longs = st.integers(0, 2**40)
names = st.text(max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
floats32 = st.floats(allow_nan=False, width=32)
ids = st.lists(int32s, max_size=12).map(lambda values: array("i", values))
blobs = st.binary(max_size=40)
hashes = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
reasons = st.sampled_from(m.Reason)


def tuples(items, **bounds):
    return st.lists(items, max_size=4, **bounds).map(tuple)


token_ids = st.integers(0, 2**31 - 1)
probabilities = st.floats(min_value=0.01, max_value=1.0)
params = st.builds(
    SamplingParams,
    n=st.integers(1, 4),
    temperature=st.none() | st.floats(0, 5),
    top_p=st.none() | probabilities,
    top_k=st.none() | st.integers(-1, 2**40),
    min_p=st.none() | probabilities,
    repetition_penalty=st.none() | st.floats(0.1, 5),
    presence_penalty=st.none() | st.floats(-2, 2),
    frequency_penalty=st.none() | st.floats(-2, 2),
    seed=st.none() | st.integers(0, 2**64 - 1),
    logit_bias=st.dictionaries(token_ids, st.floats(-100, 100), max_size=3),
    allowed_token_ids=st.none() | tuples(token_ids, min_size=1),
    bad_words=tuples(st.text(min_size=1, max_size=5)),
    bad_words_token_ids=tuples(tuples(token_ids, min_size=1)),
    forced_tokens=st.dictionaries(st.integers(-1, 1000), token_ids, max_size=3),
    max_tokens=st.none() | st.integers(2000, 2**40),
    min_tokens=st.none() | st.integers(0, 1000),
    stop=tuples(st.text(min_size=1, max_size=5)),
    stop_token_ids=tuples(token_ids),
    ignore_eos=st.booleans(),
    include_stop_str_in_output=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    detokenize=st.just(True),
    skip_special_tokens=st.booleans(),
    beam_width=st.none() | st.integers(4, 8),
    length_penalty=st.none() | st.floats(-10, 10),
    early_stopping=st.sampled_from([None, True, False, "never"]),
)
resolved = st.builds(lambda chosen, eos: replace(chosen, eos_token_ids=eos), params, tuples(token_ids))

forks = st.builds(m.Fork, seq=longs, index=counts, table=ids, lease_end=counts, outputs=ids)
starts = st.builds(
    m.Start,
    seq=longs,
    request_id=names,
    index=counts,
    attempt=counts,
    gateway=names,
    route=longs,
    tokens=ids,
    num_prompt=counts,
    position=counts,
    table=ids,
    lease_end=counts,
    precedence=st.integers(-(2**50), 2**50),
    sampling=resolved,
    salt=blobs,
    chain=blobs,
    forks=tuples(forks),
    beams=st.none() | st.builds(m.Beams, width=counts, purse=ids),
)


@st.composite
def extends(draw):
    value = m.Extends()
    for _ in range(draw(st.integers(0, 5))):
        value.add(draw(longs), draw(counts), draw(counts), draw(ids))
    return value


@st.composite
def transfers(draw):
    mine = draw(ids)
    theirs = array("i", [draw(int32s) for _ in mine])
    return m.Transfer(draw(longs), draw(st.sampled_from(m.Road)), draw(names), draw(longs), mine, theirs, draw(finite))


plans = st.builds(
    m.Plan,
    replica=names,
    incarnation=longs,
    epoch=longs,
    number=longs,
    ahead=counts,
    result=longs,
    extends=extends(),
    starts=tuples(starts),
    drops=tuples(st.builds(m.Drop, longs)),
    revokes=tuples(st.builds(m.Revoke, longs, counts)),
    reroutes=tuples(st.builds(m.Reroute, longs, names, longs)),
    clears=ids,
    copies=tuples(st.builds(m.Copy, counts, counts, counts)),
    transfers=tuples(transfers()),
    aborts=tuples(longs),
)


@st.composite
def advances(draw):
    value = m.Advances()
    names_of = b""
    for _ in range(draw(st.integers(0, 5))):
        found, filled = draw(ids), draw(tuples(hashes))
        value.seqs.append(draw(longs))
        value.positions.append(draw(counts))
        value.num_ids.append(len(found))
        value.ids.extend(found)
        value.num_hashes.append(len(filled))
        names_of += b"".join(filled)
    return replace(value, hashes=names_of)


results = st.builds(
    m.Result,
    replica=names,
    incarnation=longs,
    epoch=longs,
    number=longs,
    plan=longs,
    step=longs,
    advances=advances(),
    stopped=tuples(st.builds(m.Stopped, longs, reasons, counts, ids, blobs, names)),
    revoked=tuples(st.builds(m.Revoked, longs, counts)),
    groups=tuples(st.builds(m.GroupTables, longs, counts, tuples(ids), ids)),
    transferred=tuples(st.builds(m.Transferred, longs, st.booleans(), names, longs, finite)),
    dry=longs,
    prefill_waiting=longs,
    step_seconds=finite,
    prefill_tokens_per_s=finite,
)
replicas = st.builds(
    m.ReplicaJoined,
    *(names, longs, names, names, counts, counts, longs, names, counts, counts, finite),
    bytes_per_s=finite,
    digest=blobs,
)
states = st.builds(
    m.ReplicaState,
    replicas,
    tuples(st.builds(m.Resident, longs, counts, starts, ids, counts, ids, counts)),
    tuples(st.tuples(counts, blobs)),
    tuples(transfers()),
    tuples(st.builds(m.Departed, longs, counts, starts, reasons)),
)
logprobs = st.builds(m.Logprobs, int32s, floats32, counts, tuples(st.tuples(int32s, floats32)))
tokens = st.builds(
    m.Tokens,
    route=longs,
    index=counts,
    attempt=counts,
    position=counts,
    ids=ids,
    reason=reasons,
    logprobs=tuples(logprobs),
    detail=names,
    prompt_logprobs=tuples(st.none() | logprobs),
    score=finite,
)
submits = st.builds(
    m.Submit,
    request_id=names,
    gateway=names,
    route=longs,
    model=names,
    tenant=names,
    prompt=ids,
    hashes=tuples(hashes),
    sampling=resolved,
    priority=int32s,
    salt=blobs,
    # Halves of a second come back exactly, whatever the clocks of the two ends say.
    deadline=st.none() | st.integers(-1000, 10**6).map(lambda halves: halves / 2),
    trace=names,
    digest=blobs,
    grace_s=finite,
    look=names,
)
events = st.one_of(
    submits,
    st.builds(m.Cancel, names, names, longs),
    st.builds(m.StopAt, names, counts, counts),
    st.builds(m.Sealed, names, names, longs, counts, tuples(ids), tuples(reasons)),
    st.builds(m.Closed, names, names, longs),
    st.builds(m.Adopt, submits),
    st.builds(m.Find, names, names, longs),
    st.builds(m.Claim, names, names, longs),
    st.builds(
        m.Pin, *(names, names, longs, names, names, ids, tuples(hashes), st.integers(0, 10**6).map(float), blobs, blobs)
    ),
    st.builds(
        m.GatewayState, names, tuples(st.builds(m.OpenRequest, submits, counts, tuples(ids), tuples(reasons), longs))
    ),
)
notices = st.one_of(
    st.builds(m.Accepted, names, longs, names, counts, names, longs),
    st.builds(m.Started, names, longs, names, counts, names),
    st.builds(m.Refused, names, longs, names, names, names, finite, names),
    st.builds(m.Seal, names, longs, names, counts),
    st.builds(m.HandOver, names, longs, names),
    st.builds(m.Found, names, longs, submits.map(lambda submit: replace(submit, deadline=None)), finite),
    st.builds(m.Replay, names, tokens),
    st.builds(m.Done, names, longs, names, counts, counts, finite, finite, finite),
)


def over(message, fill, read, value, *clock):
    """Filled, written to bytes, parsed, read."""
    fill(message, value, *clock)
    return read(type(message).FromString(message.SerializeToString()), *clock)


@EXAMPLES
@given(plans)
def test_plan(plan):
    assert wire.decode_plan(wire.encode_plan(plan)) == plan


@EXAMPLES
@given(results)
def test_result(result):
    assert wire.decode_result(wire.encode_result(result)) == result


@EXAMPLES
@given(states)
def test_replica_state(state):
    message = control_pb2.ReplicaState()
    assert over(message, wire_state.fill_replica_state, wire_state.replica_state_from, state) == state


@EXAMPLES
@given(st.builds(m.HostPoolJoined, names, longs, names, counts, longs, names, finite))
def test_host_pool_joined(joined):
    message = control_pb2.HostPoolJoined()
    assert over(message, wire_state.fill_host_pool_joined, wire_state.host_pool_joined_from, joined) == joined


@EXAMPLES
@given(st.builds(m.HostPoolSettled, names, longs, longs))
def test_host_pool_settled(settled):
    message = control_pb2.HostPoolSettled()
    assert over(message, wire_state.fill_host_pool_settled, wire_state.host_pool_settled_from, settled) == settled


@EXAMPLES
@given(st.builds(m.GiveUp, names, longs, longs, tuples(longs)))
def test_give_up(order):
    message = control_pb2.GiveUp()
    assert over(message, wire_state.fill_give_up, wire_state.give_up_from, order) == order


@EXAMPLES
@given(events)
def test_event(event):
    assert over(front_pb2.FrontEvent(), wire_front.fill_event, wire_front.event_from, event, 12.5) == event


@EXAMPLES
@given(submits.filter(lambda submit: submit.deadline is not None))
def test_a_deadline_is_told_in_seconds_that_are_left(submit):
    message = front_pb2.FrontEvent()
    wire_front.fill_event(message, submit, 100.0)
    again = wire_front.event_from(message, 7000.0)
    assert again.deadline == submit.deadline + 6900.0


@EXAMPLES
@given(notices)
def test_notice(notice):
    assert over(front_pb2.Notice(), wire_front.fill_notice, wire_front.notice_from, notice) == notice


@EXAMPLES
@given(st.lists(tokens, max_size=6))
def test_tokens(batch):
    assert over(front_pb2.TokenBatch(), wire_tokens.fill_tokens, wire_tokens.tokens_from, batch) == batch


@EXAMPLES
@given(params)
def test_sampling(chosen):
    assert over(common_pb2.Sampling(), wire_sampling.fill_sampling, wire_sampling.sampling_from, chosen) == chosen


def test_every_sampling_setting_is_on_the_wire():
    on_wire = {field.name for field in common_pb2.Sampling.DESCRIPTOR.fields}
    # Beside the sampling: in a client's request fields of its own, in the cluster's messages a kind and a text.
    apart = {"eos_token_ids", "structured_outputs"}
    assert on_wire == {field.name for field in fields(SamplingParams)} - apart | {"unlimited_tokens"}


@pytest.mark.parametrize(
    "structure", [{"json": {"type": "object"}}, {"regex": "a+"}, {"grammar": "x"}, {"choice": ["a", "b"]}]
)
def test_a_structure_goes_over_whole(structure):
    chosen = SamplingParams(structured_outputs=StructuredOutputsParams(**structure), eos_token_ids=(3,))
    fill, read = wire_sampling.fill_resolved, wire_sampling.resolved_from
    assert over(control_pb2.ResolvedSampling(), fill, read, chosen) == chosen
    message = generate_message("x", chosen, Options(request_id="r"))
    again = read_generate(message, None).params
    assert again.structured_outputs == chosen.structured_outputs


def test_nothing_said_is_the_default():
    assert wire_sampling.sampling_from(common_pb2.Sampling()) == SamplingParams()


def test_a_negative_seed_draws_the_same():
    message = common_pb2.Sampling()
    wire_sampling.fill_sampling(message, SamplingParams(seed=-5))
    assert message.seed == 2**64 - 5


def test_figures_beyond_the_wire_are_the_clients_mistake():
    for wrong in (SamplingParams(top_k=2**70), SamplingParams(stop_token_ids=[2**31])):
        with pytest.raises(InvalidRequest, match=r"sampling\.(top_k|stop_token_ids)"):
            wire_sampling.fill_sampling(common_pb2.Sampling(), wrong)
    with pytest.raises(InvalidRequest, match="unlimited_tokens"):
        wire_sampling.sampling_from(common_pb2.Sampling(max_tokens=4, unlimited_tokens=True))
    with pytest.raises(InvalidRequest, match="early_stopping: is 9"):
        wire_sampling.sampling_from(common_pb2.Sampling(early_stopping=9))


BROKEN = [
    (wire.decode_plan, b"\xff\xff", "no quire.v1.Plan"),
    (wire.decode_result, b"\x0a\x02\xff\xff", "no quire.v1.Result"),
    (wire.plan_from, control_pb2.Plan(drops=b"1234"), "eight-byte"),
    (wire.plan_from, control_pb2.Plan(extends=control_pb2.Extends(seqs=b"12345678")), "other lengths"),
    (wire.plan_from, control_pb2.Plan(transfers=[control_pb2.Transfer(road=7)]), "road 7"),
    (wire.plan_from, control_pb2.Plan(transfers=[control_pb2.Transfer(road=1, mine=b"1234")]), "1 blocks here and 0"),
    (wire.plan_from, control_pb2.Plan(starts=[control_pb2.Start(tokens=b"123")]), "four-byte"),
    (wire.result_from, control_pb2.Result(stopped=[control_pb2.Stopped(reason=9)]), "9 is no reason"),
    (wire.result_from, control_pb2.Result(advances=control_pb2.Advances(hashes=b"1")), "names and brings 1 bytes"),
    (wire.result_from, control_pb2.Result(advances=control_pb2.Advances(ids=b"1234")), "0 tokens and brings 1"),
    (wire_tokens.tokens_from, front_pb2.TokenBatch(routes=b"12345678"), "other lengths"),
    (wire_tokens.tokens_from, front_pb2.TokenBatch(ids=b"1234"), "0 ids and brings 1"),
    (wire_tokens.tokens_from, front_pb2.TokenBatch(extras=[front_pb2.TokenExtra(entry=3)]), "entry 3"),
    (wire_front.notice_from, front_pb2.Notice(), "kind"),
    (lambda message: wire_front.event_from(message, 0.0), front_pb2.FrontEvent(), "kind"),
    (
        lambda message: wire_front.event_from(message, 0.0),
        front_pb2.FrontEvent(submit=front_pb2.Submit(hashes=b"123")),
        "block names",
    ),
]


@pytest.mark.parametrize(("read", "message", "why"), BROKEN)
def test_broken_messages_are_refused(read, message, why):
    with pytest.raises(ProtocolError, match=why):
        read(message)


def typical(num: int) -> tuple[m.Plan, m.Result]:
    grown, told = m.Extends(), m.Advances()
    for at in range(num):
        seq = 3 << m.EPOCH_BITS | at
        grown.add(seq, 160 + at, 9, m.ids([1000 + at]))
        told.seqs.append(seq)
        told.positions.append(144 + at)
        told.num_ids.append(16)
        told.ids.extend(range(16))
        told.num_hashes.append(1)
    told = replace(told, hashes=bytes(HASH_BYTES * num))
    return m.Plan("replica-0", 7, 3, 12, 4, 11, grown), m.Result("replica-0", 7, 3, 12, 12, 400, told)


def median_us(call, number: int = 400) -> float:
    times = []
    for _ in range(9):
        # Processor time of this thread: what else runs on the machine is no fault of the wire.
        start = time.thread_time()
        for _ in range(number):
            call()
        times.append((time.thread_time() - start) / number * 1e6)
    return sorted(times)[4]


def test_plans_and_results_are_cheap():
    """About 6 us each way and message on the machine this was written on; the bound leaves room for slower ones."""
    plan, result = typical(16)

    def round_trip() -> None:
        over(control_pb2.Plan(), wire.fill_plan, wire.plan_from, plan)
        over(control_pb2.Result(), wire.fill_result, wire.result_from, result)

    assert median_us(round_trip) < 200.0


def test_the_wire_needs_no_grpc():
    command = "import cluster.wire.plans, cluster.wire.front, cluster.wire.state, sys; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

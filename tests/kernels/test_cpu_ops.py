"""What stands beside attention on the CPU: cache writes, block copies, the vector functions, threads, refusals."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import reference
from kernels.batch import Scoring
from kernels.cpu import call as cpu_call
from kernels.cpu import math as cpu_math
from kernels.cpu.backend import CpuBackend
from kernels.cpu.call import ArgumentList, KernelCall
from kernels.cpu.ir import BF16, F32, Code
from kernels.cpu.jit import compile_kernel, host
from kernels.cpu.memory import advise_huge_pages, new_pool
from kernels.dispatch import Backend, backend
from kernels.layout import BlockLayout, KeyOrder, LayerShape
from tests.kernels.cases import Geometry, assert_close, make_case

CPU = torch.device("cpu")
NAN = float("nan")
LAYOUTS: list[tuple[torch.dtype, int, KeyOrder]] = [
    (torch.float32, 16, "dim_slot"),
    (torch.float32, 5, "dim_slot"),
    (torch.float16, 16, "dim_slot"),
    (torch.bfloat16, 16, "pairs"),
    (torch.bfloat16, 2, "pairs"),
    (torch.bfloat16, 5, "dim_slot"),
]


@pytest.mark.parametrize(("dtype", "block_size", "keys"), LAYOUTS)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_write(dtype: torch.dtype, block_size: int, keys: KeyOrder, source: torch.dtype, seed: int) -> None:
    """The same bytes as the reference writes, rounding included, and not one byte elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    layout = BlockLayout((LayerShape(1, 48), LayerShape(3, 48, 20)), block_size, dtype, keys)
    pool = torch.full((9, layout.block_bytes), 0x7F, dtype=torch.uint8)
    wanted = pool.clone()
    # Keys and values are slices of a merged projection, as in a model.
    merged = torch.randn((30, 5, 80), generator=generator).to(source)
    k, v = merged[:, 1:4, :48], merged[:, 2:5, 50:70]
    slots = torch.randperm(9 * block_size, generator=generator).repeat(3)[:30]
    slots[9 * block_size :] = -1
    slots[::7] = -1
    reference.write_kv(k, v, layout.views(wanted)[1], slots)
    CpuBackend(CPU, debug=True).write_kv(k, v, layout.views(pool)[1], slots)
    assert torch.equal(pool, wanted)


def test_write_of_nothing() -> None:
    case = make_case(Geometry(keys="dim_slot"), [1], [20], seed=0)
    before = case.pool.clone()
    none = torch.zeros((0, 2, 64))
    CpuBackend(CPU).write_kv(none, none, case.cache, torch.zeros(0, dtype=torch.int64))
    assert torch.equal(case.pool, before)


@pytest.mark.parametrize("block_bytes", [64, 4160, 200_000])
def test_copy_blocks(block_bytes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(0, 256, (40, block_bytes), dtype=torch.uint8, generator=generator)
    wanted = pool.clone()
    ids = torch.randperm(40, generator=generator)
    src, dst = torch.cat([ids[:10], ids[:3]]), ids[10:23]
    reference.copy_blocks(wanted, src, dst)
    kernels = CpuBackend(CPU, debug=True)
    kernels.copy_blocks(pool, src.tolist(), dst.tolist())
    assert torch.equal(pool, wanted)
    kernels.copy_blocks(pool, [], [])
    assert torch.equal(pool, wanted)


def test_exponentials_and_their_kin(seed: int) -> None:
    """Every function against numpy in double precision, over its range and at its ends."""
    print(f"seed {seed}")
    names = ("exp2", "tanh", "sigmoid")
    arguments = ArgumentList("source", "size", *names, "bf16")

    def emit(code: Code) -> None:
        args = arguments.reader(code)
        source = args.pointer("source", F32)
        with code.range(0, args.integer("size"), 16) as at:
            x = source.load(at, 16)
            for name in names:
                args.pointer(name, F32).store(at, getattr(cpu_math, name)(x))
            args.pointer("bf16", BF16).store(at, x)

    x = np.random.default_rng(seed).uniform(-150.0, 126.9, 16_000).astype(np.float32)
    x[:4] = (-np.inf, 0.0, -0.0, 1e-30)
    x[4:2000] = np.linspace(-1.0, 1.0, 1996)
    results = {name: np.full_like(x, np.nan) for name in names}
    bits = np.zeros(x.size, dtype=np.int16)
    call = KernelCall(arguments)
    call.set(source=x.ctypes.data, size=x.size, bf16=bits.ctypes.data)
    call.set(**{name: array.ctypes.data for name, array in results.items()})
    call.run(compile_kernel("functions", emit, host()), 1)
    wide = x.astype(np.float64)
    normal = wide > -126.0
    power = np.exp2(wide)
    assert np.max(np.abs(results["exp2"][normal] / power[normal] - 1.0)) < 1.2e-7
    assert not results["exp2"][wide < -126.0].any()
    assert np.max(np.abs(results["tanh"] - np.tanh(wide))) < 2e-7
    with np.errstate(over="ignore"):
        assert np.max(np.abs(results["sigmoid"] - 1.0 / (1.0 + np.exp(-wide)))) < 2e-7
    assert np.array_equal(bits, torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy())


def test_bf16_that_is_not_a_number_stays_so() -> None:
    case = make_case(Geometry(dtype=torch.bfloat16, keys="pairs"), [1], [20], seed=0)
    k = torch.tensor([NAN, float("inf"), float("-inf"), 3.4e38]).repeat(32).view(1, 2, 64)
    CpuBackend(CPU).write_kv(k, k, case.cache, torch.tensor([3]))
    got, _ = reference.gather_tokens(case.cache, torch.tensor([0]), 4)
    assert torch.equal(got[3].isnan(), k[0].isnan()) and torch.equal(got[3].isinf(), k[0].to(torch.bfloat16).isinf())


def test_threads_of_our_own_where_torch_has_another_openmp(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    case = make_case(Geometry(keys="dim_slot"), (1, 1, 200), (3000, 40, 700), seed=seed)
    wanted = CpuBackend(CPU).attention(case.q, case.cache, case.batch, Scoring(0.2))
    team = cpu_call._PythonTeam()
    monkeypatch.setattr(cpu_call, "_team", lambda: team)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        got = CpuBackend(CPU).attention(case.q, case.cache, case.batch, Scoring(0.2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(got, wanted)


def test_backends_of_several_threads_do_not_disturb_each_other(seed: int) -> None:
    cases = [make_case(Geometry(keys="dim_slot"), (1, 60), (1200, 300 + n), seed=seed + n) for n in range(4)]
    wanted = [CpuBackend(CPU).attention(case.q, case.cache, case.batch, Scoring(0.2)) for case in cases]
    wrong = []

    def work(number: int) -> None:
        own, case = CpuBackend(CPU), cases[number]
        for _ in range(20):
            if not torch.equal(own.attention(case.q, case.cache, case.batch, Scoring(0.2)), wanted[number]):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


def test_warm_up_leaves_nothing_to_compile(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    case = make_case(Geometry(num_heads=10, head_dim=40, keys="dim_slot"), (1, 9), (1200, 30), seed=seed)
    kernels = CpuBackend(CPU)
    kernels.warm_up(BlockLayout((LayerShape(2, 40),), 16, torch.float32, "dim_slot"), 10)
    monkeypatch.setattr("kernels.cpu.backend.compile_kernel", lambda *_: pytest.fail("compiled after the warm-up"))
    kernels.attention(case.q, case.cache, case.batch, Scoring(0.2))
    new = torch.zeros(case.batch.num_tokens, 2, 40)
    kernels.write_kv(new, new, case.cache, case.batch.slots)
    kernels.copy_blocks(case.pool, [0], [1])


@pytest.fixture(params=["cpu", "reference"])
def kernels(request: pytest.FixtureRequest) -> Backend:
    return backend("cpu", request.param, debug=True)


def test_refusals_name_the_argument(kernels: Backend, seed: int) -> None:
    case = make_case(Geometry(keys="dim_slot"), (1, 9), (40, 30), seed=seed)
    q, cache, batch = case.q, case.cache, case.batch

    def refuses(match: str, **changed: object) -> None:
        arguments: dict[str, object] = {"q": q, "cache": cache, "batch": batch, "scoring": Scoring(0.2), **changed}
        with pytest.raises(ValueError, match=match):
            kernels.attention(**arguments)  # type: ignore[arg-type]

    refuses(r"q must have shape \[10, 6, 64\], got \[10, 6, 32\]", q=q[..., :32])
    refuses("q must be torch.float32 or .*, got torch.float64", q=q.double())
    refuses("q must be dense in its last dimension", q=q.transpose(1, 2).contiguous().transpose(1, 2))
    refuses("5 heads cannot be shared out over 2", q=q[:, :5])
    refuses("window must be 0", scoring=Scoring(0.2, window=-1))
    refuses("softcap must be 0", scoring=Scoring(0.2, softcap=-1.0))
    refuses(r"sinks must have shape \[6\]", scoring=Scoring(0.2, sinks=torch.zeros(5)))
    refuses(r"out must have shape \[10, 6, 64\]", out=torch.zeros(10, 6, 63))
    refuses("lse must be torch.float32", lse=torch.zeros(10, 6, dtype=torch.float64))
    refuses("batch.rows must be torch.int32", batch=replace(batch, rows=batch.rows.long()))
    refuses(r"batch.query_start must have shape \[3\]", batch=replace(batch, query_start=batch.query_start[:2]))
    refuses(r"batch.context_len\[0\] is 40, batch.max_context_len 39", batch=replace(batch, max_context_len=39))
    refuses("sequence 1 of the batch has 9 query tokens", batch=replace(batch, num_decodes=2))
    beyond = batch.tables.clone()
    beyond[batch.rows[1], 1] = cache.num_blocks
    refuses("table of sequence 1 names block", batch=replace(batch, tables=beyond))
    refuses("needs row -1", batch=replace(batch, rows=torch.tensor([-1, 0], dtype=torch.int32)))
    refuses("3 blocks of tables 4x2", batch=replace(batch, tables=batch.tables[:, :2]))

    new = torch.zeros(10, 2, 64)
    with pytest.raises(ValueError, match=r"k must have shape \[10, 2, 64\]"):
        kernels.write_kv(new[:, :1], new, cache, batch.slots)
    with pytest.raises(ValueError, match=r"slots must be torch\.int64"):
        kernels.write_kv(new, new, cache, batch.slots.int())
    with pytest.raises(ValueError, match="slots must be -1 to"):
        kernels.write_kv(new, new, cache, batch.slots + cache.num_blocks * 16)
    with pytest.raises(ValueError, match="dst names a block twice"):
        kernels.copy_blocks(case.pool, [0, 1], [2, 2])
    with pytest.raises(ValueError, match="block 1 is both read and written"):
        kernels.copy_blocks(case.pool, [0, 1], [1, 2])
    with pytest.raises(ValueError, match="src must name blocks 0 to"):
        kernels.copy_blocks(case.pool, [-1], [2])
    with pytest.raises(ValueError, match=r"dst must have shape \[1\], got \[2\]"):
        kernels.copy_blocks(case.pool, [0], [1, 2])


def test_a_cache_of_another_order_is_refused(seed: int) -> None:
    case = make_case(Geometry(keys="slot_dim"), [1], [40], seed=seed)
    with pytest.raises(ValueError, match=r"read torch\.float32 keys as dim_slot, the cache has slot_dim"):
        CpuBackend(CPU).attention(case.q, case.cache, case.batch, Scoring(0.2))
    with pytest.raises(ValueError, match="the cache has slot_dim"):
        CpuBackend(CPU).write_kv(case.q[:, :2], case.q[:, :2], case.cache, case.batch.slots)


def test_a_layer_is_bound_to_nothing_that_may_change(seed: int) -> None:
    """The same layer over new steps, tables, sinks, dtypes and lengths, through one backend."""
    kernels = CpuBackend(CPU)
    case = make_case(Geometry(keys="dim_slot"), (1, 1, 150), (1300, 40, 300), seed=seed)
    geometry = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64, "block_size": 16}
    generator = torch.Generator().manual_seed(seed)
    for step in range(6):
        sinks = torch.randn(6, generator=generator) if step % 2 else None
        batch = kernels.prepare(replace(case.batch), **geometry)
        if step > 2:
            # Other rows, another array, the same plan.
            batch.tables = case.batch.tables.clone()
            case.batch.tables.fill_(-(1 << 30))
            case.batch = batch
        if step > 3:
            batch.context_len[0] -= 400
            kernels.prepare(batch, **geometry)
        q = torch.randn(case.q.shape, generator=generator).to(torch.float16 if step == 5 else torch.float32)
        wanted, _ = reference.attention(q, case.cache, batch, Scoring(0.2, sinks=sinks))
        got = kernels.attention(q, case.cache, batch, Scoring(0.2, sinks=sinks))
        assert_close(got, wanted, q.dtype, f"step {step}")
        del sinks
    with pytest.raises(ValueError, match=r"q must have shape \[152, 6, 64\]"):
        kernels.attention(q[:-1], case.cache, batch, Scoring(0.2))


def test_pools_on_large_pages() -> None:
    pool = new_pool(40, 65_536 + 64)
    assert pool.shape == (40, 65_600) and pool.dtype == torch.uint8 and pool.is_contiguous() and not pool.any()
    assert pool.data_ptr() % 4096 == 0
    assert not advise_huge_pages(torch.zeros(64, dtype=torch.uint8)), "too small for a large page"
    assert new_pool(0, 64).shape == (0, 64)


def test_layers_of_another_geometry_than_the_prepared_one(seed: int) -> None:
    """A model may mix layers; what was not prepared is planned at the call."""
    kernels = CpuBackend(CPU)
    case = make_case(Geometry(keys="dim_slot"), (1, 1, 150), (1300, 40, 300), seed=seed)
    kernels.prepare(case.batch, num_heads=8, num_kv_heads=4, head_dim=64, block_size=16)
    wanted, _ = reference.attention(case.q, case.cache, case.batch, Scoring(0.2))
    assert_close(kernels.attention(case.q, case.cache, case.batch, Scoring(0.2)), wanted, torch.float32)

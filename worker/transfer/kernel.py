"""The machine code that copies bytes and computes their CRC32C in the same pass, as LLVM text for x86-64.

`worker/transfer/checksum.py` compiles it for the processor at hand and is its only user. A CRC is the remainder of a
polynomial, so the state after some bytes may be multiplied by a power of x and added to bytes further on: four vectors
are carried over the data that way (carry-less products), and the 32 that remain go through the CRC instruction. Copies
use stores that pass the cache by, because a block that was just moved is not looked at soon. Nothing here runs.
"""

from __future__ import annotations

POLYNOMIAL = 0x11EDC6F41
VECTORS = 4

_PRODUCTS = {8: "llvm.x86.pclmulqdq.512", 4: "llvm.x86.pclmulqdq.256", 2: "llvm.x86.pclmulqdq"}


def _power(exponent: int) -> int:
    """x**exponent modulo the polynomial, bits reversed and shifted by one as the carry-less product wants them."""
    remainder = 1
    for _ in range(exponent):
        remainder <<= 1
        if remainder >> 32:
            remainder ^= POLYNOMIAL
    return int(f"{remainder:032b}"[::-1], 2) << 1


def kernel_text(lanes: int) -> str:
    """The module for vectors of `lanes` 64-bit words (8, 4 or 2).

    `checksum(target, source, length)` is the CRC of `source` and copies nothing, `copy` also copies it to `target`,
    `stream` does so past the cache and needs a target on 64 bytes. `copy_many(targets, sources, lengths, crcs, n)`
    does the best of these for each of n pieces; `targets` may be null.
    """
    product, vector = _PRODUCTS[lanes], f"<{lanes} x i64>"
    return "\n".join(
        [
            f"declare {vector} @{product}({vector}, {vector}, i8)",
            "declare i64 @llvm.x86.sse42.crc32.64.64(i64, i64)",
            "declare i32 @llvm.x86.sse42.crc32.32.8(i32, i8)",
            "declare void @llvm.x86.sse.sfence()",
            _one("checksum", lanes, None),
            _one("copy", lanes, ", align 1"),
            _one("stream", lanes, ", align 64, !nontemporal !0"),
            _MANY,
            "!0 = !{i32 1}",
        ]
    )


def _one(name: str, lanes: int, store: str | None) -> str:
    """One function over one run of bytes. `store` is how a vector is stored, None: not at all."""
    step = VECTORS * lanes * 8
    lines = [
        f"define i32 @{name}(ptr %target, ptr %source, i64 %length) {{",
        "entry:",
        f"  %left = alloca [{VECTORS} x <{lanes} x i64>], align 64",
        f"  %long = icmp uge i64 %length, {step}",
        "  br i1 %long, label %first, label %short",
        "first:",
        *_load(lanes, "l", "0", store),
        # The CRC begins with all ones.
        f"  %begun = xor <{lanes} x i64> %l0, <i64 4294967295{', i64 0' * (lanes - 1)}>",
        "  br label %head",
        *_fold(lanes, step, store),
        *_reduce(lanes),
        *_bytes(store is not None),
        "out:",
        "  call void @llvm.x86.sse.sfence()" if store and "nontemporal" in store else "",
        "  %crc = xor i32 %c, -1",
        "  ret i32 %crc",
        "}",
    ]
    return "\n".join(lines)


def _load(lanes: int, name: str, offset: str, store: str | None) -> list[str]:
    """VECTORS loads from `offset` on into %{name}0.., each stored at once."""
    vector, lines = f"<{lanes} x i64>", []
    for i in range(VECTORS):
        at = f"%{name}at{i}"
        lines.append(f"  {at} = add i64 {offset}, {i * lanes * 8}")
        lines.append(f"  %{name}from{i} = getelementptr i8, ptr %source, i64 {at}")
        lines.append(f"  %{name}{i} = load {vector}, ptr %{name}from{i}, align 1")
        if store is not None:
            lines.append(f"  %{name}to{i} = getelementptr i8, ptr %target, i64 {at}")
            lines.append(f"  store {vector} %{name}{i}, ptr %{name}to{i}{store}")
    return lines


def _fold(lanes: int, step: int, store: str | None) -> list[str]:
    """The loop: what was summed so far is moved `step` bytes on and added to the next vectors."""
    vector, product = f"<{lanes} x i64>", _PRODUCTS[lanes]
    bits = step * 8
    powers = ", ".join([f"i64 {_power(bits + 32)}, i64 {_power(bits - 32)}"] * (lanes // 2))
    lines = ["head:", f"  %offset = phi i64 [{step}, %first], [%next, %body]"]
    for i in range(VECTORS):
        lines.append(f"  %a{i} = phi {vector} [{'%begun' if i == 0 else f'%l{i}'}, %first], [%n{i}, %body]")
    lines += [
        f"  %next = add i64 %offset, {step}",
        "  %more = icmp ule i64 %next, %length",
        "  br i1 %more, label %body, label %done",
        "body:",
        *_load(lanes, "b", "%offset", store),
    ]
    for i in range(VECTORS):
        lines.append(f"  %lo{i} = call {vector} @{product}({vector} %a{i}, {vector} <{powers}>, i8 0)")
        lines.append(f"  %hi{i} = call {vector} @{product}({vector} %a{i}, {vector} <{powers}>, i8 17)")
        lines.append(f"  %moved{i} = xor {vector} %lo{i}, %hi{i}")
        lines.append(f"  %n{i} = xor {vector} %moved{i}, %b{i}")
    return [*lines, "  br label %head"]


def _reduce(lanes: int) -> list[str]:
    """What is left in the vectors has the remainder of all bytes so far: 32 words through the CRC instruction."""
    vector, word = f"<{lanes} x i64>", "0"
    lines = ["done:"]
    for i in range(VECTORS):
        lines.append(f"  %keep{i} = getelementptr i8, ptr %left, i64 {i * lanes * 8}")
        lines.append(f"  store {vector} %a{i}, ptr %keep{i}, align 64")
    for i in range(VECTORS * lanes):
        lines.append(f"  %wordat{i} = getelementptr i8, ptr %left, i64 {i * 8}")
        lines.append(f"  %word{i} = load i64, ptr %wordat{i}, align 8")
        lines.append(f"  %sum{i} = call i64 @llvm.x86.sse42.crc32.64.64(i64 {word}, i64 %word{i})")
        word = f"%sum{i}"
    return [*lines, f"  %summed = trunc i64 {word} to i32", "  br label %short"]


def _bytes(store: bool) -> list[str]:
    """The bytes that fill no step."""
    return [
        "short:",
        "  %begin = phi i64 [0, %entry], [%offset, %done]",
        "  %c0 = phi i32 [-1, %entry], [%summed, %done]",
        "  br label %byte",
        "byte:",
        "  %i = phi i64 [%begin, %short], [%j, %one]",
        "  %c = phi i32 [%c0, %short], [%d, %one]",
        "  %end = icmp uge i64 %i, %length",
        "  br i1 %end, label %out, label %one",
        "one:",
        "  %from = getelementptr i8, ptr %source, i64 %i",
        "  %value = load i8, ptr %from",
        *(["  %to = getelementptr i8, ptr %target, i64 %i", "  store i8 %value, ptr %to"] if store else []),
        "  %d = call i32 @llvm.x86.sse42.crc32.32.8(i32 %c, i8 %value)",
        "  %j = add i64 %i, 1",
        "  br label %byte",
    ]


_MANY = """
define void @copy_many(ptr %targets, ptr %sources, ptr %lengths, ptr %crcs, i64 %n) {
entry:
  %reads = icmp eq ptr %targets, null
  br label %head
head:
  %i = phi i64 [0, %entry], [%j, %tail]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %body, label %out
body:
  %sourceat = getelementptr ptr, ptr %sources, i64 %i
  %source = load ptr, ptr %sourceat
  %lengthat = getelementptr i64, ptr %lengths, i64 %i
  %length = load i64, ptr %lengthat
  br i1 %reads, label %read, label %write
read:
  %c1 = call i32 @checksum(ptr null, ptr %source, i64 %length)
  br label %tail
write:
  %targetat = getelementptr ptr, ptr %targets, i64 %i
  %target = load ptr, ptr %targetat
  %address = ptrtoint ptr %target to i64
  %low = and i64 %address, 63
  %aligned = icmp eq i64 %low, 0
  br i1 %aligned, label %past, label %through
past:
  %c2 = call i32 @stream(ptr %target, ptr %source, i64 %length)
  br label %tail
through:
  %c3 = call i32 @copy(ptr %target, ptr %source, i64 %length)
  br label %tail
tail:
  %c = phi i32 [%c1, %read], [%c2, %past], [%c3, %through]
  %crcat = getelementptr i32, ptr %crcs, i64 %i
  store i32 %c, ptr %crcat
  %j = add i64 %i, 1
  br label %head
out:
  ret void
}"""

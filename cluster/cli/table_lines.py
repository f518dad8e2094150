"""One request's block tables as lines of text, from what the operators' door says: for `quire blocks` and `top`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table_lines(answer: Mapping[str, Any]) -> list[str]:
    """Of a DescribeRequestResponse as plain values: logical block -> physical block, xN where N tables hold it."""
    found = answer["request"]
    cached = answer["cached_tokens"]
    lines = [f"request {found['request_id']}: {found['state']}, attempt {answer['attempt']}, {cached} cached tokens"]
    if found["reason"]:
        lines.append(f"  {found['reason']}")
    for one in answer["sequences"]:
        where = one["pool"] or one["host_pool"] or "no worker"
        told = f"{one['length']} tokens, {one['position']} written, leave to {one['lease_end']}, on {where}"
        lines.append(f"  [{one['index']}] {told}")
        pairs = zip(one["blocks"], one["holders"], strict=True)
        shown = " ".join(f"{block}" + (f"x{holders}" if holders > 1 else "") for block, holders in pairs)
        lines.append("      " + (shown or " ".join(f"host {block}" for block in one["host_blocks"]) or "no blocks"))
    return lines

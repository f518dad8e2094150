"""A running server over the OpenAI door: `/v1/completions` with token ids, streamed, one connection a request.

Only the standard library. Token ids are known where the server sends them (`return_token_ids`); else tokens are counted
as pieces come, and nothing can be said of agreement.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 900


def server(job: dict[str, Any]) -> Any:
    address = urlsplit(job["server"])
    path, ids_word = job.get("door") or ("/v1/completions", "return_token_ids")
    model = job["model"] or _get(address, "/v1/models")["data"][0]["id"]

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        began = time.perf_counter()
        with ThreadPoolExecutor(max(1, len(prompts))) as pool:
            asked = [
                pool.submit(_one, address, path, _body(model, *each, ids_word), began)
                for each in zip(prompts, wanted, strict=True)
            ]
            found = [each.result() for each in asked]
        return [tokens for tokens, _ in found], [times for _, times in found]

    return run


def _connection(address: Any) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    return kind(address.hostname, address.port, timeout=TIMEOUT_S)


def _headers() -> dict[str, str]:
    token = os.environ.get("OPENAI_API_KEY") or os.environ.get("QUIRE_TOKEN") or ""
    return {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}


def _get(address: Any, path: str) -> Any:
    connection = _connection(address)
    connection.request("GET", path, headers=_headers())
    return json.loads(connection.getresponse().read())


def _body(model: str, prompt: list[int], count: int, ids_word: str) -> dict[str, Any]:
    return {
        "model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "seed": 0, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True}, ids_word: True,
    }  # fmt: skip


def _one(address: Any, path: str, body: dict[str, Any], began: float) -> tuple[list[int], list[float]]:
    connection = _connection(address)
    connection.request("POST", path, json.dumps(body), _headers())
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{address.netloc} answers {answer.status}: {answer.read(500).decode(errors='replace')}")
    tokens, times = list[int](), list[float]()
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        news, now = json.loads(line[6:]), time.perf_counter() - began
        for choice in news.get("choices", [news]):
            ids = choice.get("token_ids") or choice.get("tokens") or []
            tokens += ids
            times += [now] * (len(ids) or bool(choice.get("text")))
    return tokens, times


def version(job: dict[str, Any]) -> str:
    return str(job["server"])

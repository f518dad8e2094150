"""The process that `python -m tests.bench flood` floods: a gateway with both doors, a scheduler, one worker.

The worker is the simulator's in real time, so that a step takes what it is told to whatever runs. The process says what
its pauses, its memory and its ledgers are when it is asked, line by line, and ends when its input is closed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.bench.shell_child import spent
from cluster.desk import loops
from cluster.gateway.gateway import Gateway
from cluster.gateway.http.server import HttpServer
from cluster.gateway.models import TextModel
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.settings import SchedulerSettings
from cluster.sim.model import VOCAB_SIZE
from tests.cluster.live import SHAPE, LiveCluster

MODEL = "m"


def text_model() -> TextModel:
    """As many tokens as simulated workers draw from; all of them are words."""
    vocabulary = {"<end>": 0, **{f"Ġw{at}": at for at in range(1, VOCAB_SIZE)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    return TextModel(MODEL, tokenizer, vocab_size=VOCAB_SIZE, max_model_len=4096, defaults={"eos_token_id": 0})


class Pauses:
    """What the collector takes of this process, look by look; what single callbacks of the loop take, if asked."""

    def __init__(self) -> None:
        self.looks_s: list[float] = []
        self._began = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.looks_s.append(time.thread_time() - self._began)

    def take(self) -> dict[str, float]:
        looks, self.looks_s = sorted(self.looks_s), []
        return {"looks": len(looks), "longest look ms": 1e3 * looks[-1] if looks else 0.0}


async def serve(told: dict[str, Any]) -> None:
    cluster = LiveCluster(SchedulerSettings(max_queue=told["queue"]))
    shape = replace(
        SHAPE, num_blocks=told["blocks"], max_batch=told["batch"], max_model_len=4096, token_budget=4096,
        step_base_s=told["step_s"], per_token_s=1e-6, end_one_in=1 << 40,
    )  # fmt: skip
    cluster.add_worker("r0", shape)
    settings = GatewaySettings(port=0)
    gateway = Gateway(settings, cluster.link(settings.name), {MODEL: text_model()})
    cluster.feeds[settings.name] = gateway.feed
    server, http = GatewayServer(gateway), HttpServer(gateway, 0, must_be=True)
    await server.start()
    await http.start()
    if told["freezes"]:
        # What workers load when they start would be looked at with the first step otherwise.
        loops.warm_up()
        gc.collect()
        gc.freeze()
    pauses = Pauses()
    scheduler = cluster.host.scheduler
    print(json.dumps({"grpc": server.port, "http": http.port}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        counts = scheduler.replicas["r0"].ledger.counts()
        if not scheduler.requests:
            scheduler.check()
        found = {
            **spent(),
            "held": counts.held,
            "open": gateway.num_open + len(scheduler.requests),
            **pauses.take(),
        }
        print(json.dumps(found), flush=True)
    await http.stop()
    await server.stop(0.1)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))

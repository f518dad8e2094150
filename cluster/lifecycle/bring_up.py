"""Watches the child in which a cluster comes up (`create.py`), and says in one line what became of it.

Ray ends the process that is connected to it without a word when its own processes die, and the kernel does when memory
runs out; so `launch.py` leaves that to a child. Settings go in and lines come out as JSON.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from cluster.errors import AccessDenied, ConfigError, ModelError, QuireError, Unavailable
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.ray_head import ESSENTIAL, alive, free_mib, how_it_ended, name_of, token_variables

Say = Callable[[str], None]
# Each wait of the child has a deadline of its own; this is above all of them together.
WHOLE_S = 600.0
KINDS: dict[str, type[QuireError]] = {
    kind.__name__: kind for kind in (AccessDenied, ConfigError, ModelError, Unavailable)
}


class BringUp:
    """The child, seen from outside. Use as a context manager: at its end the child is gone."""

    def __init__(self, settings: ClusterSettings, token: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        self._child = subprocess.Popen(
            [sys.executable, "-m", "cluster.lifecycle.create"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **token_variables(token)},
            # A Ctrl-C reaches us, and we end the child.
            start_new_session=True,
        )
        self._tell(asdict(settings))

    def __enter__(self) -> BringUp:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            assert pipe is not None
            # What the child did not read any more is of no interest, and must not hide why it ended.
            with suppress(BrokenPipeError):
                pipe.close()

    def run(self, running: dict[str, Any], say: Say) -> dict[str, Any]:
        """Has the actors created on a Ray that serves; returns the note with what they are reached by.

        Raises what the child raised, or how it died.
        """
        self._tell(running)
        watched = {pid: name for pid in running["ray_pids"] if (name := name_of(pid)) in ESSENTIAL}
        until, rest = time.monotonic() + WHOLE_S, b""
        assert self._child.stdout is not None
        while time.monotonic() < until:
            if not select.select([self._child.stdout], [], [], 0.2)[0]:
                for pid, name in watched.items():
                    if not alive(pid):
                        raise Unavailable(
                            f"{name} of Ray (process {pid}) has died; was it killed, or did memory run out "
                            f"({free_mib():,} MiB are free now)?"
                        )
                continue
            read = os.read(self._child.stdout.fileno(), 1 << 16)
            if not read:
                raise Unavailable(self._how_it_died())
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "say" in told:
                    say(told["say"])
                elif "error" in told:
                    raise KINDS.get(told["error"], Unavailable)(told["detail"])
                else:
                    note: dict[str, Any] = told["running"]
                    return note
        raise Unavailable(f"the cluster did not come up within {WHOLE_S:g} s")

    def _tell(self, value: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(self._how_it_died()) from None

    def _how_it_died(self) -> str:
        code = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1][:300]}" if lines else ""
        return f"the process that starts the cluster ended {how_it_ended(code)}{said}"

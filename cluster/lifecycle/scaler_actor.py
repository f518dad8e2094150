"""The Ray actor that adds and drains workers by pressure, where `quire up --autoscale` wants it."""

from __future__ import annotations

import logging
import threading

from cluster.lifecycle.actor import Observed, node_and_pid
from cluster.lifecycle.autoscale import ScaleBounds
from cluster.lifecycle.cluster_settings import ClusterSettings

log = logging.getLogger(__name__)


class ScalerActor:
    """Adds and drains workers by pressure, where that is wanted."""

    def __init__(self, settings: ClusterSettings, namespace: str, admin: str) -> None:
        from cluster.lifecycle.ray_state import RayState

        self._settings, self._namespace, self._admin = settings, namespace, admin
        self._state = RayState(namespace)
        self._observed = Observed(settings, self._state, "scaler")
        threading.Thread(target=self._run, name="quire-scale", daemon=True).start()

    def _run(self) -> None:
        from cluster.lifecycle.autoscale_loop import ScaleLoop
        from cluster.lifecycle.fleet import WorkerFleet
        from cluster.serving.admin_channel import admin_channel
        from cluster.serving.inside import operators_token

        settings = self._settings
        bounds = ScaleBounds.read(settings.autoscale)
        assert bounds is not None
        token = operators_token(self._state) if settings.tokens else ""
        channel = admin_channel(self._admin, token, settings.tls_authority, tls=bool(settings.tls_certificate))
        with WorkerFleet(channel, self._namespace, settings, log.info) as fleet:
            ScaleLoop(fleet, bounds).run()

    def ready(self, timeout_s: float) -> str:
        return self._settings.autoscale

    def where(self) -> tuple[str, int]:
        return node_and_pid()

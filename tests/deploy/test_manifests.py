"""What deploy/ has for Ray's launcher and for Kubernetes: Ray takes the one, the other fits our settings and image."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.lifecycle.cluster_settings import ClusterSettings, gather

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERAY = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())}
GROUPS = (KUBERAY["RayCluster"]["spec"]["headGroupSpec"], *KUBERAY["RayCluster"]["spec"]["workerGroupSpecs"])
CONTAINERS = [group["template"]["spec"]["containers"][0] for group in GROUPS]


def scripts(value: Any) -> list[str]:
    """All that a shell is given, anywhere in a manifest."""
    if isinstance(value, dict):
        return [line for one in value.values() for line in scripts(one)]
    if isinstance(value, list):
        return [line for one in value for line in scripts(one)]
    return [value] if isinstance(value, str) and re.search(r"[;$]|ray |quire ", value) else []


def test_ray_takes_the_cluster_file() -> None:
    """By the checks of `ray up` itself, which refuse what they do not know."""
    config = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config({**copy.deepcopy(config), "min_worker": 1}))


def test_the_shell_can_read_every_command() -> None:
    config = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    found = scripts([config[name] for name in config if name.endswith("_commands")]) + scripts(CONTAINERS)
    assert len(found) >= 7
    for line in found:
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0 and not done.stderr, f"{line}\n{done.stderr}"


def test_the_settings_in_the_manifest_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "quire.toml"
    file.write_text(KUBERAY["ConfigMap"]["data"]["quire.toml"])
    settings = gather({}, file, {})
    (head, workers), (head_container, container) = GROUPS, CONTAINERS
    assert settings.workers == workers["replicas"] <= workers["maxReplicas"] and head["rayStartParams"] == {
        "num-cpus": "0"
    }
    assert settings.booked_cpus <= float(container["resources"]["limits"]["cpu"])
    # Each file of the doors lies in a mounted secret, and the settings are read where their map is mounted.
    mounts = {mount["mountPath"]: mount["name"] for mount in head_container["volumeMounts"]}
    volumes = {volume["name"] for volume in head["template"]["spec"]["volumes"]}
    assert set(mounts.values()) == volumes
    for path in (settings.tls_certificate, settings.tls_key, settings.tls_authority, settings.tokens):
        assert mounts[str(Path(path).parent)] == "door"
    assert "--config /etc/quire/settings/quire.toml" in head_container["args"][0] and "/etc/quire/settings" in mounts


def test_ports_names_and_versions_agree() -> None:
    named = {port["name"]: port["containerPort"] for port in CONTAINERS[0]["ports"]}
    plain = ClusterSettings()
    assert (named["gateway"], named["metrics"]) == (plain.port, plain.metrics_port)
    for port in KUBERAY["Service"]["spec"]["ports"]:
        assert named[port["targetPort"]] == port["port"]
    name = KUBERAY["RayCluster"]["metadata"]["name"]
    assert KUBERAY["Service"]["spec"]["selector"] == {"ray.io/cluster": name, "ray.io/node-type": "head"}
    assert KUBERAY["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    constraints = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"\nray=={KUBERAY['RayCluster']['spec']['rayVersion']}\n" in constraints
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    assert {one["image"] for one in CONTAINERS} == {f"quire:{version.rpartition('.')[0]}"}

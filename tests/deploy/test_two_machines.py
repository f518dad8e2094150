"""Two machines as deploy/README.md has them: firewall, tokens, certificates, `join.sh`, a client, logs, the end. And
the same two by `ray up`, over ssh, as deploy/cluster.yaml has it.

The commands are those of these pages, typed in two machines that share nothing but a cable.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator

import pytest

from tests.deploy.machines import ROOT, Machine, missing, two_machines

pytestmark = [pytest.mark.trust, pytest.mark.skipif(bool(missing()), reason=missing() or "they can be made")]

README = (ROOT / "deploy" / "README.md").read_text()
CLUSTER = (ROOT / "deploy" / "cluster.yaml").read_text().replace("10.0.0.", "10.77.0.")
NOT_HERE = ", ".join(name for name in ("sshd", "ssh", "ssh-keygen", "rsync") if shutil.which(name) is None)
# 0: connected; 11 (EAGAIN): nobody answered within two seconds.
KNOCK = (
    'import socket; knock = socket.socket(); knock.settimeout(2); knock.bind(("10.77.0.3", 0)); '
    'print(knock.connect_ex(("10.77.0.1", {port})))'
)
TOKEN = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(cat /etc/quire/ray-token)\n"


def typed(begin: str) -> str:
    """A command of the page, from its first words to its end, with the addresses of these machines."""
    found = re.search(rf"^({re.escape(begin)}.*?[^\\])$(?!\nwith )", README, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page has no {begin}"
    return found[1].replace("10.0.0.", "10.77.0.") + "\n"


def firewall(machine: Machine, other: Machine) -> None:
    rules = README[README.index("table inet quire") : README.index("```\n\nRay takes commands")]
    rules = rules.replace("10.0.0.2", other.address).replace("10.0.0.0/24", "10.77.0.0/24")
    machine.run(f"cat >/etc/quire/rules.nft <<'EOF'\n{rules}EOF\nnft -f /etc/quire/rules.nft")


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    with two_machines() as (one, two):
        for machine, other in ((one, two), (two, one)):
            # What the first `deploy/setup.sh` on a machine leaves; the packages are those of this environment.
            machine.run("source deploy/setup.sh; { _fingerprint; echo serve,http; } >$QUIRE_VENV/quire.stamp")
            machine.run("mkdir -p /etc/quire")
            firewall(machine, other)
        yield one, two


@pytest.mark.timeout(900)
def test_what_the_page_says_works(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    one.run(typed("openssl rand"))
    two.run(f"umask 077; echo {one.run('cat /etc/quire/ray-token').strip()} >/etc/quire/ray-token")
    told = one.run(typed("quire certificates"))
    (shop,) = re.findall(r"token of shop: (\S+)", told)
    one.run(TOKEN + typed("ray start --head"))
    two.run(TOKEN + typed("./deploy/join.sh"))
    ready = one.run(TOKEN + typed("./deploy/up.sh").replace("--workers 2", "--workers 4"), timeout_s=300)
    assert "gateway 10.77.0.1:50051" in ready and "4 workers are ready" in ready
    where = {machine.name: [line.split("(")[0] for line in machine.processes("ray::")] for machine in machines}
    assert all(any("WorkerActor" in line for line in lines) for lines in where.values()), where
    assert not any("GatewayActor" in line or "SchedulerActor" in line for line in where["two"]), where

    two.run(f"cat >/tmp/home/authority.pem <<'EOF'\n{one.run('cat /etc/quire/authority.pem')}EOF")
    ask = typed("python -c 'from cluster import Client").replace('token="..."', f'token="{shop}"')
    assert "Alder Bridge" in two.run(f"cd /tmp/home\n{ask}")
    refused = two.start(f"cd /tmp/home\n{ask.replace(shop, 'wrong')}")
    assert "NotAuthenticated" in refused.communicate(timeout=60)[1]
    told = one.run(f"QUIRE_TOKEN={shop} quire generate --quiet --max-tokens 5 'Once upon a time'")
    assert "Once upon a time" in told
    told = one.run(TOKEN + "quire logs")
    assert all(f"demo-{number}" in re.findall(r"info +(\S+) +started", told) for number in range(4)), told
    # Another machine of that network reaches the gateway, and neither the operators' door nor Ray.
    two.run("ip addr add 10.77.0.3/24 dev $(ip -o link show type veth | cut -d: -f2 | cut -d@ -f1)")
    for port, is_open in ((50051, True), (50061, False), (6379, False)):
        told = two.run(f"python -c '{KNOCK.format(port=port)}'")
        assert told.strip() == ("0" if is_open else "11"), (port, told)

    assert "nothing is left" in one.run(TOKEN + "./deploy/down.sh")
    until = time.monotonic() + 20
    while "0.0/4.0 CPU" not in (told := one.run(TOKEN + "ray status")):
        assert time.monotonic() < until, told
        time.sleep(1)
    for machine in machines:
        assert not [line for line in machine.processes("ray::") if "Actor" in line]


def let_in(machine: Machine, key: str) -> None:
    """An ssh server for whoever has the key, with the environment that a login finds."""
    exports = f"export QUIRE_VENV={sys.prefix} PATH={sys.prefix}/bin:$PATH PYTHONPATH=/opt/quire OMP_NUM_THREADS=1"
    machine.run(
        # The home of its one user lies in the machine; so do the server's key and folder.
        "sed -i 's#^root:\\(.*\\):[^:]*:\\([^:]*\\)$#root:\\1:/tmp/home:\\2#' /etc/passwd && mkdir -p -m 700 ~/.ssh && "
        f"echo '{key}' >~/.ssh/authorized_keys && echo '{exports}' | tee ~/.bashrc >~/.bash_profile && "
        "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd && "
        "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/own && "
        "$(command -v sshd) -o HostKey=/etc/ssh/own -o PasswordAuthentication=no -o PermitRootLogin=yes -o UsePAM=no"
    )


@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(NOT_HERE), reason=f"{NOT_HERE} not installed")
def test_ray_up_makes_the_same_of_them(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    for machine in machines:
        machine.run("ray stop; umask 077; printf %064d 7 >/etc/quire/ray-token")
    one.run("mkdir -p -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
    for machine in machines:
        let_in(machine, one.run("cat ~/.ssh/id_ed25519.pub").strip())
    own = CLUSTER.replace("ssh_user: quire", "ssh_user: root").replace("/opt/quire/.venv", sys.prefix)
    one.run(f"cat >/tmp/cluster.yaml <<'EOF'\n{own}\nEOF")
    one.run("printf 'kv_blocks = 256\\nhttp_port = 0\\ncpus_per_worker = 2\\n' >/etc/quire/quire.toml")
    token, up, on_head, down = (
        re.sub(r"\n#\s+", " ", found).replace("deploy/cluster.yaml", "/tmp/cluster.yaml")
        for found in re.findall(r"^#   ((?:export|ray \w+)(?:.*'(?:.|\n)*?'|.*?))(?:  .*)?$", CLUSTER, re.MULTILINE)
    )
    one.run(f"{token}; {up}", timeout_s=400)
    until = time.monotonic() + 300
    while "0.0/4.0 CPU" not in (told := one.run(f"{token}; ray status")):
        assert time.monotonic() < until, told
        time.sleep(1)
    told = one.run(f"{token}; {on_head}", timeout_s=300)
    assert "2 workers are ready" in told
    assert all(len(machine.processes("ray::WorkerActor")) == 1 for machine in machines)
    told = one.run(f"{token}; ray exec /tmp/cluster.yaml 'quire generate --quiet --max-tokens 5 \"Once upon a time\"'")
    assert "Once upon a time, a" in told
    ended = re.sub(r"deploy/up.sh [^']*", "deploy/down.sh", on_head)
    assert "nothing is left" in one.run(f"{token}; {ended}")
    one.run(f"{token}; {down}")
    two.run("ray stop")
    for machine in machines:
        assert not machine.processes("/raylet/raylet"), machine.name

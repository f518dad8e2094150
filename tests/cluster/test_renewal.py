"""Tokens and certificates that change while doors are open: nobody starts anything again, and refusals are logged."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import AsyncClient, Tls
from cluster.cli import certificates, exits, main
from cluster.errors import ConfigError, NotAuthenticated
from cluster.gateway import calls
from cluster.gateway.settings import GatewaySettings
from cluster.private_files import write_private
from cluster.serving.auth import load_tokens, make_token, make_tokens, read_list, write_list
from cluster.serving.auth_certificates import make_certificates, renew_certificates
from cluster.serving.public_port import PortTls, Renewed
from cluster.serving.refused import EVERY_S, RefusedCallers
from tests.cluster.front_door import PROMPT, Door, at_the_door


def told_token(capsys: pytest.CaptureFixture[str]) -> str:
    found = re.search(r"token of \S+: (\S+)", capsys.readouterr().out)
    assert found is not None
    return found[1]


def test_tenants_come_and_go_at_an_open_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.json"
    words = ["--tokens", str(path)]
    assert main(["tenants", "add", "red", *words]) == 0
    red = told_token(capsys)
    book = load_tokens(path)

    async def asks(door: Door, token: str) -> str:
        async with AsyncClient(door.address, token=token) as client:
            try:
                await client.generate(PROMPT, max_tokens=2, ignore_eos=True)
            except NotAuthenticated as error:
                return str(error)
        return "served"

    async def story(door: Door) -> None:
        assert await asks(door, red) == "served"
        assert main(["tenants", "add", "blue", "--days", "1", *words]) == 0
        blue = told_token(capsys)
        assert await asks(door, blue) == await asks(door, red) == "served"
        assert main(["tenants", "revoke", "red", *words]) == 0
        assert "not known here" in await asks(door, red) and await asks(door, blue) == "served"
        # The last one that leaves does not open the door to everybody.
        assert main(["tenants", "revoke", "blue", *words]) == 0
        assert "not known here" in await asks(door, blue)
        path.write_text("{half")
        assert "not known here" in await asks(door, blue)
        token, item = make_token("old", ["inference"], datetime.now(UTC) - timedelta(seconds=1))
        write_list(path, [item])
        assert "has expired" in await asks(door, token)

    at_the_door(story, settings=GatewaySettings(port=0, tokens=book))


def test_what_tenants_says(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.json"
    monkeypatch.setenv("QUIRE_TOKENS", str(path))
    assert main(["tenants", "add", "shop", "--right", "inference", "--right", "admin", "--days", "30"]) == 0
    token = told_token(capsys)
    assert path.stat().st_mode & 0o077 == 0 and token not in path.read_text()
    assert main(["tenants", "list"]) == 0
    told = capsys.readouterr().out
    assert "shop" in told and "admin, inference" in told and token not in told
    heads, rule, _ = told.splitlines()
    assert heads.split() == ["tenant", "rights", "until", "sha256"] and len(rule.split()) == 4
    for words, code, said in (
        (["revoke", "nobody"], exits.WRONG_INPUT, "there is shop"),
        (["add", "a/b"], exits.WRONG_INPUT, "without a slash"),
        (["add", "a", "--right", "all"], exits.WRONG_INPUT, "give inference or admin"),
        (["add", "a", "--days", "-1"], exits.WRONG_INPUT, "more than 0"),
        (["add", "a", "--tokens", f"{path}/x"], exits.WRONG_INPUT, "cannot be written"),
        (["list", "--tokens", f"{path}.not"], exits.WRONG_INPUT, "error: the token file: "),
    ):
        assert main(["tenants", *words]) == code
        assert said in capsys.readouterr().err
    path.chmod(0o666)
    assert main(["tenants", "list"]) == exits.WRONG_INPUT and "written by others" in capsys.readouterr().err
    monkeypatch.delenv("QUIRE_TOKENS")
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    assert main(["tenants", "list"]) == exits.WRONG_INPUT and "--tokens FILE" in capsys.readouterr().err


def test_commands_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    """A tenant that was revoked came back when somebody added another just then."""
    path, num = tmp_path / "tokens.json", 12
    old = [make_token(f"old{at}", ["inference"])[1] for at in range(num)]
    write_list(path, old)
    begin = threading.Barrier(2 * num)

    def change(do: Callable[..., None], tenant: str) -> None:
        begin.wait()
        do(tenant, tokens=path)

    changes = [(certificates.add, f"new{at}") for at in range(num)]
    changes += [(certificates.revoke, f"old{at}") for at in range(num)]
    with ThreadPoolExecutor(2 * num) as threads:
        for done in [threads.submit(change, *one) for one in changes]:
            done.result()
    assert sorted(item["tenant"] for item in read_list(path)) == sorted(f"new{at}" for at in range(num))


def test_renewed_certificates_are_shown_to_whoever_comes_next(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", ["localhost", "127.0.0.1"])
    settings = GatewaySettings(port=0, tls=PortTls(files.server_certificate, files.server_key))

    async def serial(port: int) -> str:
        """Of the certificate that is shown."""
        context = ssl.create_default_context(cafile=str(files.authority))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        number = str(writer.get_extra_info("ssl_object").getpeercert()["serialNumber"])
        writer.close()
        return number

    async def story(door: Door) -> None:
        async with await asyncio.start_server(
            lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=settings.tls.context() if settings.tls else None
        ) as other:
            ports = door.server.port, other.sockets[0].getsockname()[1]
            before = [await serial(port) for port in ports]
            async with AsyncClient(f"localhost:{door.server.port}", tls=Tls(files.authority)) as client:
                working = asyncio.create_task(client.generate(PROMPT, max_tokens=200, ignore_eos=True))
                await door.until(lambda: door.gateway.num_open == 1)
                assert main(["certificates", "renew", str(tmp_path / "tls")]) == 0
                after = [await serial(port) for port in ports]
                assert before[0] == before[1] != after[0] == after[1]
                # Who was there goes on.
                assert len((await working).outputs[0].token_ids) == 200

    at_the_door(story, settings=settings)


def test_half_a_renewal_is_not_shown(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", ["localhost"])
    others = make_certificates(tmp_path / "other", ["localhost"])
    renewed = Renewed(PortTls(files.server_certificate, files.server_key))
    assert not renewed.has_changed()
    os.replace(others.server_key, files.server_key)
    assert not renewed.has_changed()
    os.replace(others.server_certificate, files.server_certificate)
    assert renewed.has_changed() and not renewed.has_changed()


def test_a_renewal_keeps_the_hosts_and_needs_the_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cryptography import x509

    files = make_certificates(tmp_path, ["gpu7.example", "10.0.0.7"])
    renew_certificates(tmp_path, days=3)
    shown = x509.load_pem_x509_certificate(files.server_certificate.read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["gpu7.example", "10.0.0.7"]
    assert shown.not_valid_after_utc - datetime.now(UTC) < timedelta(days=3)
    assert files.authority_key.stat().st_mode & 0o077 == 0
    files.authority_key.unlink()
    with pytest.raises(ConfigError, match="cannot be renewed"):
        renew_certificates(tmp_path)
    assert main(["certificates", "renew"]) == exits.WRONG_INPUT
    assert "quire certificates renew FOLDER" in capsys.readouterr().err


def test_who_is_refused_is_logged_and_fills_no_disk(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refused = RefusedCallers(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(1_000):
            refused.note("a call", "10.0.0.9", "this token is not known here")
        now[0] = EVERY_S
        refused.note("a call", "10.0.0.9", "no token")
        for number in range(5_000):
            refused.note("a call", f"10.1.{number // 256}.{number % 256}", "no token")
    lines = caplog.messages
    assert lines[0] == "a call was refused to 10.0.0.9: this token is not known here"
    assert lines[1].endswith("no token (999 more times since it was last said)") and len(lines) == 5_002


def test_a_refused_call_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "refused", RefusedCallers())
    tokens = make_tokens(tmp_path / "tokens.json", [("boss", ["admin"])])
    book = load_tokens(tmp_path / "tokens.json")

    async def story(door: Door) -> None:
        for token in ("wrong-secret", tokens["boss"]):
            async with AsyncClient(door.address, token=token) as client:
                with pytest.raises(Exception, match=r"not known here|no right"):
                    await client.generate(PROMPT, max_tokens=2)

    with caplog.at_level(logging.WARNING):
        at_the_door(story, settings=GatewaySettings(port=0, tokens=book))
    assert any("a call for inference was refused to ipv4:127.0.0.1" in line for line in caplog.messages)
    assert "wrong-secret" not in caplog.text


def test_a_disk_without_room_is_named_and_nothing_half_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    write_private(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
    try:
        with pytest.raises(ConfigError, match=r"tokens\.json cannot be written: File too large; make room there"):
            write_private(path, b"behind, and longer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["tokens.json"]

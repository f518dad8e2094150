"""Makes a first set of certificates: an authority of the cluster's own, a server certificate, one for a client; and
new ones of that authority before they end.

A person runs this through the command line and replaces the files by those of a real authority when there is one.
It needs the package `cryptography`, which is loaded only here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ConfigError
from cluster.private_files import read_private, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec


AUTHORITY_DAYS = 3_650


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths that settings take. The client's pair is only needed where mutual TLS is asked for."""

    authority: Path
    authority_key: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path

    @staticmethod
    def of(folder: Path) -> CertificateFiles:
        names = ("authority.pem", "authority.key", "server.pem", "server.key", "client.pem", "client.key")
        return CertificateFiles(*(folder / name for name in names))


def make_certificates(folder: Path, hosts: Sequence[str], days: int = 825) -> CertificateFiles:
    """Writes an authority and two certificates that it signs; `hosts` are the names and addresses clients will use.

    Raises `ConfigError` where files stand already.
    """
    _check_package()
    if not hosts:
        raise ConfigError("name at least one host that clients will connect to, such as localhost or 10.0.0.7")
    files = CertificateFiles.of(folder)
    standing = [str(path) for path in (files.authority, files.server_key, files.client_key) if path.exists()]
    if standing:
        raise ConfigError(f"{', '.join(standing)} exist already; remove them or name another folder")
    authority = _Authority(days)
    folder.mkdir(parents=True, exist_ok=True)
    files.authority.write_bytes(authority.pem)
    write_private(files.authority_key, authority.key)
    _sign_both(files, authority, hosts)
    return files


def renew_certificates(folder: Path, hosts: Sequence[str] = (), days: int = 825) -> CertificateFiles:
    """New certificates of the same authority, for the same hosts unless others are named: what clients trust stays.
    Raises `ConfigError` where the authority or its key is not there."""
    _check_package()
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    files = CertificateFiles.of(folder)
    try:
        certificate = x509.load_pem_x509_certificate(files.authority.read_bytes())
        key = load_pem_private_key(read_private(files.authority_key, "the authority's key"), None)
        standing = x509.load_pem_x509_certificate(files.server_certificate.read_bytes())
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        detail = f"{folder} cannot be renewed: {why}; it needs authority.pem, authority.key and server.pem"
        raise ConfigError(f"{detail}, as `quire certificates FOLDER` makes them") from error
    names = standing.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    _sign_both(files, _Authority(days, (certificate, key)), list(hosts) or [str(name.value) for name in names])
    return files


def _check_package() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError("making certificates needs the package cryptography: pip install cryptography") from error


def _sign_both(files: CertificateFiles, authority: _Authority, hosts: Sequence[str]) -> None:
    """Each file is whole at any time; servers take a pair once both belong together."""
    names: list[x509.GeneralName] = [_general_name(host) for host in hosts]
    for certificate, key, name, alternatives in (
        (files.server_certificate, files.server_key, hosts[0], names),
        (files.client_certificate, files.client_key, "quire client", []),
    ):
        signed, private = authority.sign(name, alternatives)
        write_private(key, private)
        write_private(certificate, signed)
        certificate.chmod(0o644)


def make_identity(name: str, days: int = 3650) -> tuple[bytes, bytes, bytes]:
    """An authority, a certificate that it signed for `name`, and the key of that, all PEM: by it one process serves
    others and is their client. The authority's key is thrown away."""
    authority = _Authority(days)
    certificate, key = authority.sign(name, [_general_name(name)], serves_only=False)
    return authority.pem, certificate, key


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class _Authority:
    """A key that signs certificates: a new one, or `known`, its certificate and itself."""

    def __init__(self, days: int, known: tuple[Any, Any] | None = None) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        self._days = days
        self._name = _subject("quire authority")
        if known is not None:
            self._certificate, self._key = known
            self.pem = self._certificate.public_bytes(Encoding.PEM)
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        # It outlives what it signs, so that clients keep it through renewals.
        builder = self._builder(self._name, self._key.public_key(), max(self._days, AUTHORITY_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(Encoding.PEM)

    @property
    def key(self) -> bytes:
        """As PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int = 0) -> x509.CertificateBuilder:
        from cryptography import x509

        now = datetime.now(UTC)
        until = now + timedelta(days=days or self._days)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        # Clocks of other machines may be a little behind.
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(until)

    def sign(self, name: str, alternatives: list[x509.GeneralName], *, serves_only: bool = True) -> tuple[bytes, bytes]:
        """A certificate and its key, both PEM: for a server with alternative names, for a client without. Not
        `serves_only`: for both."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if alternatives else []
        if not alternatives or not serves_only:
            purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        builder = self._builder(_subject(name), key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        signed = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return signed, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )

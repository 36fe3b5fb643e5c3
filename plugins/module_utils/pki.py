# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One CA and one certificate per host, kept in a folder on the controller.

Needs the C(cryptography) package, so it is imported on the controller only.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import tempfile
import typing as t
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from .errors import ResilienceError

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    #: Whether this Python has what the functions below need; hosts needn't, and import this nowhere.
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True

CA_DAYS = 3650
#: Certificates are valid from a little before now, for hosts whose clock is behind.
CLOCK_SKEW = timedelta(minutes=10)


class PkiError(ResilienceError):
    """The folder can't be used as it is; the text says why, and nothing was changed."""


@dataclass
class Authority:
    """The CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass
class Folder:
    """The files of the PKI on the controller."""

    path: str
    ca_cert: str
    ca_key: str

    @classmethod
    def at(cls, path: str, ca_cert: str = "", ca_key: str = "") -> Folder:
        """The folder's own CA, or one that an operator gives."""
        return cls(path, ca_cert or os.path.join(path, "ca.crt"), ca_key or os.path.join(path, "ca.key"))

    def cert(self, host: str) -> str:
        """Path of a host's certificate."""
        return os.path.join(self.path, "hosts", f"{host}.crt")

    def key(self, host: str) -> str:
        """Path of a host's key."""
        return os.path.join(self.path, "hosts", f"{host}.key")


def reason_to_renew(
    folder: Folder, authority: Authority | None, host: str, address: str, renew_before_days: int, now: datetime
) -> str:
    """Why a host needs a new certificate; empty when the one it has will do."""
    if not os.path.exists(folder.cert(host)) or not os.path.exists(folder.key(host)):
        return "it has none"
    try:
        certificate = _load_certificate(folder.cert(host))
        key = _load_key(folder.key(host))
    except PkiError:
        return "it can't be read"
    if _public_bytes(certificate.public_key()) != _public_bytes(key.public_key()):
        return "its key belongs to another certificate"
    if authority is not None and not _is_signed_by(certificate, authority.certificate):
        return "it is from another CA"
    if certificate.not_valid_after_utc - now < timedelta(days=renew_before_days):
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if _names_in(certificate) != {str(name.value) for name in _names(host, address)}:
        return "the host's name or address changed"
    return ""


@contextlib.contextmanager
def locked(folder: Folder) -> t.Iterator[None]:
    """Hold the folder, so that two runs at once end with the same CA."""
    os.makedirs(os.path.join(folder.path, "hosts"), mode=0o700, exist_ok=True)
    os.chmod(folder.path, 0o700)
    with open(os.path.join(folder.path, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_authority(folder: Folder) -> Authority | None:
    """The CA, or None when there is none yet.

    :raises PkiError: half of it is missing or unreadable. A new CA would lock out every host that trusts the old one, so
        none is made while certificates of an old one are there.
    """
    have_cert, have_key = os.path.exists(folder.ca_cert), os.path.exists(folder.ca_key)
    if not have_cert and not have_key:
        hosts = os.path.join(folder.path, "hosts")
        left = [name for name in os.listdir(hosts) if name.endswith(".crt")] if os.path.isdir(hosts) else []
        if left:
            raise PkiError(
                f"{folder.ca_cert} and {folder.ca_key} are missing, but {len(left)} host certificates are there. "
                f"Restore both from a copy; or, to start over with a new CA, move {folder.path} away first."
            )
        return None
    if not have_cert or not have_key:
        missing = folder.ca_key if have_cert else folder.ca_cert
        raise PkiError(f"{missing} is missing. Restore it from a copy: a new CA would lock out every deployed host.")
    authority = Authority(_load_certificate(folder.ca_cert), _load_key(folder.ca_key))
    if _public_bytes(authority.certificate.public_key()) != _public_bytes(authority.key.public_key()):
        raise PkiError(f"{folder.ca_key} is not the key of {folder.ca_cert}. Restore the pair from a copy.")
    return authority


def make_authority(folder: Folder, now: datetime) -> Authority:
    """Make the CA and keep it in the folder."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shannon.resilience CA {now:%Y-%m-%d}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(folder.ca_key, _pem_key(key), 0o600)
    _write(folder.ca_cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return Authority(certificate, key)


def issue(folder: Folder, authority: Authority, host: str, address: str, days: int, now: datetime) -> datetime:
    """Make a key and a certificate for a host; returns when it ends."""
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + timedelta(days=days), authority.certificate.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(_names(host, address)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )
    _write(folder.key(host), _pem_key(key), 0o600)
    _write(folder.cert(host), certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return ends


def end_of(folder: Folder, host: str) -> datetime:
    """When a host's certificate ends."""
    return _load_certificate(folder.cert(host)).not_valid_after_utc


def utc_now() -> datetime:
    """The current time, to the second, as certificates have it."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def _names(host: str, address: str) -> list[x509.GeneralName]:
    # localhost and 127.0.0.1 let a client that comes through its local data proxy verify the server's name.
    return [
        x509.DNSName(host),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address(address)),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]


def _names_in(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _public_bytes(key: t.Any) -> bytes:
    return t.cast(
        bytes,
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_certificate(path: str) -> x509.Certificate:
    try:
        with open(path, "rb") as handle:
            return x509.load_pem_x509_certificate(handle.read())
    except (OSError, ValueError) as exc:
        raise PkiError(f"{path} is no readable certificate: {exc}. Restore it from a copy.") from exc


def _load_key(path: str) -> ec.EllipticCurvePrivateKey:
    try:
        with open(path, "rb") as handle:
            key = serialization.load_pem_private_key(handle.read(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise PkiError(f"{path} is no readable key: {exc}. Restore it from a copy.") from exc
    return t.cast(ec.EllipticCurvePrivateKey, key)


def _write(path: str, content: bytes, mode: int) -> None:
    handle_fd, staged = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".pki-")
    with os.fdopen(handle_fd, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(staged, mode)
    os.rename(staged, path)

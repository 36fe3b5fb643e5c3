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
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
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
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def ends(self) -> datetime:
        """When the CA ends, and with it every certificate that it issued."""
        return self.certificate.not_valid_after_utc


@dataclass
class Folder:
    """The files of the PKI on the controller."""

    path: str
    ca_cert: str
    ca_key: str
    #: Whether the CA is kept here; one that an operator brings is never made nor written.
    own_ca: bool = True

    @classmethod
    def at(cls, path: str, ca_cert: str = "", ca_key: str = "") -> Folder:
        """The folder's own CA, or one that an operator gives."""
        own = not ca_cert and not ca_key
        return cls(path, ca_cert or os.path.join(path, "ca.crt"), ca_key or os.path.join(path, "ca.key"), own)

    def cert(self, host: str) -> str:
        """Path of a host's certificate."""
        return os.path.join(self.path, "hosts", f"{host}.crt")

    def key(self, host: str) -> str:
        """Path of a host's key."""
        return os.path.join(self.path, "hosts", f"{host}.key")


def reason_to_renew(
    folder: Folder, authority: Authority | None, host: str, address: str, renew_before_days: int, now: datetime
) -> str:
    """Why a host needs a new certificate; empty when the one it has will do, or ends with its CA anyway."""
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
    ends = certificate.not_valid_after_utc
    if ends - now < timedelta(days=renew_before_days) and (authority is None or ends < authority.ends):
        return f"it ends on {ends:%Y-%m-%d}"
    if _names_in(certificate) != {str(name.value) for name in _names(host, address)}:
        return "the host's name or address changed"
    return ""


@contextlib.contextmanager
def locked(folder: Folder) -> t.Iterator[None]:
    """Hold the folder, so that two runs at once end with the same CA."""
    hosts = os.path.join(folder.path, "hosts")
    os.makedirs(hosts, mode=0o700, exist_ok=True)
    for path in (folder.path, hosts):
        os.chmod(path, 0o700)
    with open(os.path.join(folder.path, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_authority(folder: Folder, now: datetime) -> Authority | None:
    """The CA, or None when there is none yet.

    :raises PkiError: half of it is missing, unreadable, or no CA that can be used. A new CA would lock out every host
        that trusts the old one, so none is made while certificates of an old one are there.
    """
    have_cert, have_key = os.path.exists(folder.ca_cert), os.path.exists(folder.ca_key)
    left = _hosts_in(folder)
    if folder.own_ca and not have_cert and not left:
        # A key alone is what a first run leaves that was stopped in between: its certificate was never anywhere.
        return None
    if folder.own_ca and not have_cert and not have_key:
        raise PkiError(
            f"{folder.ca_cert} and {folder.ca_key} are missing, but certificates of {', '.join(left)} are there. "
            f"Restore both from a copy; or, to start over with a new CA, move {folder.path} away first."
        )
    missing = [path for path, there in ((folder.ca_cert, have_cert), (folder.ca_key, have_key)) if not there]
    if missing:
        raise PkiError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Restore from a copy, or correct "
            "the path: a new CA would lock out every deployed host, so none is made."
        )
    authority = Authority(_load_certificate(folder.ca_cert), _load_key(folder.ca_key))
    if _public_bytes(authority.certificate.public_key()) != _public_bytes(authority.key.public_key()):
        raise PkiError(f"{folder.ca_key} is not the key of {folder.ca_cert}. Restore the pair from a copy.")
    if not _may_issue(authority.certificate):
        raise PkiError(
            f"{folder.ca_cert} is no certificate of a CA (basicConstraints CA:TRUE, keyUsage keyCertSign). "
            "In a file with several certificates, the issuing one comes first."
        )
    if authority.ends <= now:
        raise PkiError(
            f"{folder.ca_cert} ended on {authority.ends:%Y-%m-%d}. Change to a new CA: roles/pki/README.md says how."
        )
    return authority


def make_authority(folder: Folder, now: datetime) -> Authority:
    """Make the CA and keep it in the folder."""
    # P-256 as for the hosts: each handshake verifies the CA's signature, and for P-384 that takes ten times as long.
    key = ec.generate_private_key(ec.SECP256R1())
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
        .sign(key, hashes.SHA256())
    )
    _write(folder.ca_key, _pem_key(key), 0o600)
    _write(folder.ca_cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return Authority(certificate, key)


def issue(folder: Folder, authority: Authority, host: str, address: str, days: int, now: datetime) -> datetime:
    """Make a key and a certificate for a host; returns when it ends."""
    key = ec.generate_private_key(ec.SECP256R1())
    ends = _end(authority, days, now)
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
        .add_extension(_authority_key_identifier(authority), critical=False)
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


def _end(authority: Authority, days: int, now: datetime) -> datetime:
    return min(now + timedelta(days=days), authority.ends)


def _hosts_in(folder: Folder) -> list[str]:
    hosts = os.path.join(folder.path, "hosts")
    names = os.listdir(hosts) if os.path.isdir(hosts) else []
    return sorted(name.removesuffix(".crt") for name in names if name.endswith(".crt"))


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    try:
        return is_ca and certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return is_ca


def _authority_key_identifier(authority: Authority) -> x509.AuthorityKeyIdentifier:
    # It must be the CA's own identifier, which a CA from elsewhere may have made in another way than the usual hash.
    try:
        own = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


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


def _load_key(path: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        with open(path, "rb") as handle:
            key = serialization.load_pem_private_key(handle.read(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise PkiError(f"{path} is no readable key: {exc}. Restore it from a copy.") from exc
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise PkiError(f"{path} is neither an elliptic curve nor an RSA key.")
    return key


def _write(path: str, content: bytes, mode: int) -> None:
    handle_fd, staged = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".pki-")
    try:
        with os.fdopen(handle_fd, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(staged, mode)
        os.rename(staged, path)
    except OSError:
        os.unlink(staged)
        raise

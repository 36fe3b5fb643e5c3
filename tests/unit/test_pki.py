"""One CA and a certificate per host: renewed when they must be, never replaced when that would lock hosts out."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import ssl
import stat
import typing as t
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ansible_collections.shannon.resilience.plugins.module_utils import pki

NOW = pki.utc_now()
ADDRESS = "192.0.2.11"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pki.Folder:
    found = pki.Folder.at(str(tmp_path / "pki"))
    with pki.locked(found):
        pass
    return found


@pytest.fixture
def authority(folder: pki.Folder) -> pki.Authority:
    return pki.make_authority(folder, NOW)


@pytest.fixture
def issued(folder: pki.Folder, authority: pki.Authority) -> x509.Certificate:
    pki.issue(folder, authority, "a1", ADDRESS, 397, NOW)
    return certificate_of(folder, "a1")


def certificate_of(folder: pki.Folder, host: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pathlib.Path(folder.cert(host)).read_bytes())


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def reason(folder: pki.Folder, authority: pki.Authority | None, **changes: t.Any) -> str:
    given = {"host": "a1", "address": ADDRESS, "renew_before_days": 30, "now": NOW, **changes}
    return pki.reason_to_renew(folder, authority, **given)


def brought_ca(where: pathlib.Path, key: t.Any, ca: bool = True) -> pki.Folder:
    """A CA as an operator's own tool may have made it, without the optional extensions."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Example root")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    (where / "root.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (where / "root.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pki.Folder.at(str(where / "pki"), str(where / "root.crt"), str(where / "root.key"))


# ---- what a certificate says


def test_a_certificate_names_the_host_its_address_and_loopback(issued: x509.Certificate) -> None:
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a1", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(ADDRESS),
        ipaddress.ip_address("127.0.0.1"),
    ]
    assert issued.subject.rfc4514_string() == "CN=a1"


def test_a_certificate_serves_and_identifies_but_signs_nothing(issued: x509.Certificate) -> None:
    usages = set(issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_tls_session_between_two_hosts_verifies_both(folder: pki.Folder, authority: pki.Authority) -> None:
    for host, address in (("a1", ADDRESS), ("b1", "2001:db8::1")):
        pki.issue(folder, authority, host, address, 397, NOW)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder.ca_cert)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(folder.cert("b1"), folder.key("b1"))
    client = ssl.create_default_context(cafile=folder.ca_cert)
    client.load_cert_chain(folder.cert("a1"), folder.key("a1"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="2001:db8::1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _step in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    seen = t.cast("dict[str, t.Any]", ends[1].getpeercert())
    assert seen["subject"] == ((("commonName", "a1"),),)


def test_keys_are_for_their_owner_only(folder: pki.Folder, issued: x509.Certificate) -> None:
    assert mode(folder.ca_key) == mode(folder.key("a1")) == 0o600
    assert mode(folder.path) == mode(os.path.dirname(folder.key("a1"))) == 0o700
    assert [name for name in os.listdir(folder.path) if name.startswith(".pki-")] == []


# ---- when it is renewed


def test_a_certificate_with_time_left_stays(
    folder: pki.Folder, authority: pki.Authority, issued: x509.Certificate
) -> None:
    assert reason(folder, authority) == ""
    assert reason(folder, authority, now=NOW + timedelta(days=366)) == ""


def test_a_certificate_is_renewed_before_it_ends(
    folder: pki.Folder, authority: pki.Authority, issued: x509.Certificate
) -> None:
    assert "it ends on" in reason(folder, authority, now=NOW + timedelta(days=368))
    assert "it ends on" in reason(folder, authority, now=NOW + timedelta(days=500))


def test_a_host_that_moved_gets_a_new_one(
    folder: pki.Folder, authority: pki.Authority, issued: x509.Certificate
) -> None:
    assert "address changed" in reason(folder, authority, address="192.0.2.99")


def test_a_new_host_gets_one(folder: pki.Folder, authority: pki.Authority) -> None:
    assert reason(folder, authority) == "it has none"


def test_another_ca_means_a_new_certificate(
    folder: pki.Folder, issued: x509.Certificate, tmp_path: pathlib.Path
) -> None:
    other = pki.Folder.at(str(tmp_path / "other"))
    with pki.locked(other):
        assert reason(folder, pki.make_authority(other, NOW)) == "it is from another CA"


@pytest.mark.parametrize(("damaged", "why"), [("cert", "can't be read"), ("key", "can't be read")])
def test_a_damaged_file_means_a_new_certificate(
    folder: pki.Folder, authority: pki.Authority, issued: x509.Certificate, damaged: str, why: str
) -> None:
    pathlib.Path(getattr(folder, damaged)("a1")).write_text("-----BEGIN nothing-----\n")
    assert why in reason(folder, authority)


def test_a_key_of_an_interrupted_renewal_does_not_stay(
    folder: pki.Folder, authority: pki.Authority, issued: x509.Certificate
) -> None:
    pki.issue(folder, authority, "a2", "192.0.2.12", 397, NOW)
    os.replace(folder.key("a2"), folder.key("a1"))
    assert "belongs to another" in reason(folder, authority)


def test_no_certificate_outlives_its_ca_nor_is_renewed_in_vain(folder: pki.Folder, authority: pki.Authority) -> None:
    late = authority.ends - timedelta(days=10)
    assert pki.issue(folder, authority, "a1", ADDRESS, 397, late) == authority.ends
    assert reason(folder, authority, now=late) == ""


# ---- the CA is never replaced


def test_without_anything_there_is_no_ca_yet(folder: pki.Folder) -> None:
    assert pki.load_authority(folder, NOW) is None


def test_the_ca_that_was_made_is_loaded_again(folder: pki.Folder, authority: pki.Authority) -> None:
    loaded = pki.load_authority(folder, NOW)
    assert loaded is not None
    assert loaded.certificate == authority.certificate


def test_a_first_run_that_was_stopped_halfway_can_be_run_again(folder: pki.Folder, authority: pki.Authority) -> None:
    os.unlink(folder.ca_cert)
    assert pki.load_authority(folder, NOW) is None


@pytest.mark.parametrize(
    ("lost", "named"),
    [(["ca_key"], "ca.key is missing"), (["ca_cert"], "ca.crt is missing"), (["ca_key", "ca_cert"], "of a1 are there")],
)
def test_a_ca_that_lost_a_part_is_refused(
    folder: pki.Folder, issued: x509.Certificate, lost: list[str], named: str
) -> None:
    for name in lost:
        os.unlink(getattr(folder, name))
    with pytest.raises(pki.PkiError, match=named):
        pki.load_authority(folder, NOW)


@pytest.mark.parametrize("damaged", ["ca_key", "ca_cert"])
def test_a_damaged_ca_is_refused(folder: pki.Folder, issued: x509.Certificate, damaged: str) -> None:
    pathlib.Path(getattr(folder, damaged)).write_text("nothing")
    with pytest.raises(pki.PkiError, match="Restore it from a copy"):
        pki.load_authority(folder, NOW)


def test_a_pair_that_does_not_belong_together_is_refused(folder: pki.Folder, issued: x509.Certificate) -> None:
    os.replace(folder.key("a1"), folder.ca_key)
    with pytest.raises(pki.PkiError, match="is not the key of"):
        pki.load_authority(folder, NOW)


def test_a_ca_that_ended_is_refused(folder: pki.Folder, authority: pki.Authority) -> None:
    with pytest.raises(pki.PkiError, match="ended on"):
        pki.load_authority(folder, authority.ends)


# ---- a CA that the operator brings


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(public_exponent=65537, key_size=2048)],
    ids=["elliptic curve", "RSA"],
)
def test_a_brought_ca_issues(tmp_path: pathlib.Path, key: t.Any) -> None:
    folder = brought_ca(tmp_path, key)
    with pki.locked(folder):
        authority = pki.load_authority(folder, NOW)
        assert authority is not None
        assert pki.issue(folder, authority, "a1", ADDRESS, 397, NOW) == authority.ends
    certificate_of(folder, "a1").verify_directly_issued_by(authority.certificate)
    assert not os.path.exists(os.path.join(folder.path, "ca.key"))


def test_a_brought_ca_that_is_not_there_is_never_made(tmp_path: pathlib.Path) -> None:
    folder = pki.Folder.at(str(tmp_path / "pki"), str(tmp_path / "root.crt"), str(tmp_path / "root.key"))
    with pytest.raises(pki.PkiError, match=r"root\.crt and .*root\.key are missing"):
        pki.load_authority(folder, NOW)


def test_a_certificate_that_is_no_ca_is_refused(tmp_path: pathlib.Path) -> None:
    folder = brought_ca(tmp_path, ec.generate_private_key(ec.SECP256R1()), ca=False)
    with pytest.raises(pki.PkiError, match="no certificate of a CA"):
        pki.load_authority(folder, NOW)


def test_a_key_of_an_unusable_kind_is_refused(tmp_path: pathlib.Path) -> None:
    folder = brought_ca(tmp_path, ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(pki.PkiError, match="neither an elliptic curve nor an RSA key"):
        pki.load_authority(folder, NOW)

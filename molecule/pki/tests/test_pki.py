"""Each host has a certificate of our CA, and nobody who should not can read its key."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ma1", "mw1"]
PKI = "/etc/shannon/pki"


def test_the_certificate_is_from_the_ca(host):
    assert "OK" in host.check_output(f"openssl verify -CAfile {PKI}/ca.crt {PKI}/host.crt")


@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_the_certificate_serves_and_identifies(host, purpose):
    host.check_output(f"openssl verify -purpose {purpose} -CAfile {PKI}/ca.crt {PKI}/host.crt")


def test_the_names_are_the_hosts_and_loopbacks(host):
    name = host.check_output("hostname")
    names = host.check_output(f"openssl x509 -in {PKI}/host.crt -noout -ext subjectAltName")
    assert f"DNS:{name}" in names
    assert "DNS:localhost" in names
    assert "IP Address:198.18.4." in names
    assert "IP Address:127.0.0.1" in names


@pytest.mark.parametrize(
    ("name", "mode"), [("ca.crt", 0o644), ("host.crt", 0o644), ("host.key", 0o640), ("host.pem", 0o640)]
)
def test_only_the_group_reads_the_key(host, name, mode):
    found = host.file(f"{PKI}/{name}")
    assert (found.user, found.group, found.mode) == ("root", "shannon-tls", mode)
    assert host.run(f"su nobody -s /bin/sh -c 'cat {PKI}/host.key'").failed


def test_key_and_certificate_belong_together(host):
    of_cert = host.check_output(f"openssl x509 -in {PKI}/host.crt -noout -pubkey")
    of_key = host.check_output(f"openssl pkey -in {PKI}/host.key -pubout")
    assert of_cert == of_key


def test_the_ca_key_stays_on_the_controller(host):
    assert host.run(f"grep -l 'PRIVATE KEY' {PKI}/ca.crt").failed


def test_reloading_the_unit_reaches_the_units_that_hold_the_certificate(host):
    unit = "/run/systemd/system/probe.service"
    host.run_expect([0], f"printf '[Unit]\\nReloadPropagatedFrom=shannon-tls.service\\n[Service]\\nType=oneshot\\n"
                         f"RemainAfterExit=yes\\nExecStart=/bin/true\\nExecReload=/bin/touch /run/probed\\n' > {unit}"
                         " && systemctl daemon-reload && systemctl start probe")  # fmt: skip
    host.run_expect(
        [0], "systemctl reload shannon-tls.service && timeout 10 sh -c 'until test -e /run/probed; do :; done'"
    )

"""The region's etcd answers who shows a certificate, and nobody else."""

from __future__ import annotations

import base64
import json

import pytest

testinfra_hosts = ["ma1", "mb1"]
PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"


def call(host, path, body):
    out = host.check_output(f"curl -sf -m 5 {TLS} https://127.0.0.1:2379{path} -d '{json.dumps(body)}'")
    return json.loads(out)


def test_a_client_with_a_certificate_writes_and_reads(host):
    key = base64.b64encode(b"molecule").decode()
    call(host, "/v3/kv/put", {"key": key, "value": base64.b64encode(b"yes").decode()})
    assert base64.b64decode(call(host, "/v3/kv/range", {"key": key})["kvs"][0]["value"]) == b"yes"


@pytest.mark.parametrize("port", [2379, 2380])
def test_a_client_without_a_certificate_is_refused(host, port):
    assert host.run(f"curl -s -m 5 --cacert {PKI}/ca.crt https://127.0.0.1:{port}/version").rc != 0


def test_plain_text_is_refused(host):
    assert "etcdserver" not in host.run("curl -s -m 5 http://127.0.0.1:2379/version").stdout


def test_the_distributions_own_instance_cannot_start(host):
    assert host.run("systemctl start etcd.service").failed
    assert host.file("/etc/systemd/system/etcd.service").linked_to == "/dev/null"


def test_the_unit_starts_at_boot_and_is_confined(host):
    assert host.service("etcd@region").is_enabled
    assert host.service("etcd@region").is_running
    found = host.check_output("systemctl show etcd@region -p User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet")
    assert {"User=etcd", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= set(found.split("\n"))


def test_the_data_is_the_services_own(host):
    assert host.file("/var/lib/shannon/etcd/region").mode == 0o700

"""The region's etcd answers who shows a certificate and nobody else; a new certificate is used at once."""

from __future__ import annotations

import base64
import json

import pytest

testinfra_hosts = ["ma1", "mb1"]
PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
ETCDCTL = (
    "ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:2379 --command-timeout 5s "
    f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
)


def call(host, path, body):
    """What the JSON gateway answers."""
    return json.loads(host.check_output(f"curl -sf -m 5 {TLS} https://127.0.0.1:2379{path} -d '{json.dumps(body)}'"))


def address_of(host):
    return host.check_output("hostname -I").split()[0]


def name_of(host):
    return host.backend.get_hostname()


def test_the_cluster_is_the_regions_own_and_healthy(host):
    members = json.loads(host.check_output(f"{ETCDCTL} member list -w json"))["members"]
    assert [member["name"] for member in members] == [name_of(host)]
    health = json.loads(host.check_output(f"{ETCDCTL} endpoint health -w json"))
    assert [member["health"] for member in health] == [True]


def test_a_client_with_a_certificate_writes_and_reads_through_the_gateway(host):
    key = base64.b64encode(b"/molecule").decode()
    call(host, "/v3/kv/put", {"key": key, "value": base64.b64encode(b"yes").decode()})
    assert base64.b64decode(call(host, "/v3/kv/range", {"key": key})["kvs"][0]["value"]) == b"yes"
    assert call(host, "/v3/kv/deleterange", {"key": key})["deleted"] == "1"


@pytest.mark.parametrize("port", [2379, 2380])
def test_a_client_without_a_certificate_is_refused(host, port):
    address = address_of(host)
    said = host.run(f"curl -sS --http1.1 -m 5 {TLS} https://{address}:{port}/version")
    assert "etcdserver" in said.stdout
    said = host.run(f"curl -sS --http1.1 -m 5 --cacert {PKI}/ca.crt https://{address}:{port}/version")
    assert said.rc != 0
    assert "etcdserver" not in said.stdout


@pytest.mark.parametrize("port", [2379, 2380])
def test_plain_text_is_refused(host, port):
    assert "etcdserver" not in host.run(f"curl -s --http1.1 -m 5 http://{address_of(host)}:{port}/version").stdout


@pytest.mark.parametrize(("version", "works"), [("tls1_1", False), ("tls1_2", True), ("tls1_3", True)])
def test_old_tls_is_refused(host, version, works):
    said = host.run(
        f"openssl s_client -connect 127.0.0.1:2379 -{version} -cipher ALL:@SECLEVEL=0 -CAfile {PKI}/ca.crt "
        f"-cert {PKI}/host.crt -key {PKI}/host.key -verify_return_error </dev/null"
    )
    assert (said.rc == 0) is works


def test_metrics_are_on_the_loopback_only(host):
    assert host.socket("tcp://127.0.0.1:2381").is_listening
    assert not host.socket("tcp://0.0.0.0:2381").is_listening
    assert "etcd_server_has_leader 1" in host.check_output("curl -sf -m 5 http://127.0.0.1:2381/metrics")


def test_it_listens_on_the_hosts_address_rather_than_on_all(host):
    assert not host.socket("tcp://0.0.0.0:2379").is_listening
    assert not host.socket("tcp://0.0.0.0:2380").is_listening


def test_the_distributions_own_instance_cannot_start(host):
    assert host.run("systemctl start etcd.service").failed
    assert host.file("/etc/systemd/system/etcd.service").linked_to == "/dev/null"


def test_the_unit_starts_at_boot_and_is_confined(host):
    assert host.service("etcd@region").is_enabled
    assert host.service("etcd@region").is_running
    found = host.check_output("systemctl show etcd@region -p User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet")
    assert {"User=etcd", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= set(
        found.split("\n")
    )
    exposure = host.check_output("systemd-analyze security etcd@region.service --no-pager | tail -1")
    assert float(exposure.split(":")[1].split()[0]) < 3


def test_data_and_configuration_are_the_services_own(host):
    assert host.file("/var/lib/shannon/etcd/region").mode == 0o700
    assert host.file("/var/lib/shannon/etcd/region").user == "etcd"
    assert host.file("/etc/shannon/etcd/region.yml").mode == 0o640


def test_a_new_certificate_is_used_without_a_restart(host):
    served = (
        f"openssl s_client -connect 127.0.0.1:2379 -CAfile {PKI}/ca.crt -cert {PKI}/host.crt -key {PKI}/host.key "
        "</dev/null 2>/dev/null | openssl x509 -noout -serial"
    )
    process = host.check_output("systemctl show etcd@region -p MainPID --value")
    before = host.check_output(served)
    # A certificate of no use to anyone else, since it signs itself: what matters is that it is the one served.
    host.run_expect([0], f"cp -a {PKI} /root/pki-kept")
    try:
        host.run_expect(
            [0],
            f"openssl x509 -in {PKI}/host.crt -signkey {PKI}/host.key -days 1 -set_serial 4711 -out {PKI}/host.crt.new",
        )
        host.run_expect([0], f"cat {PKI}/host.crt.new > {PKI}/host.crt; systemctl reload shannon-tls.service")
        assert host.check_output(served) == "serial=1267"
    finally:
        host.run_expect([0], f"cat /root/pki-kept/host.crt > {PKI}/host.crt; rm -rf {PKI}/host.crt.new /root/pki-kept")
    assert host.check_output(served) == before
    assert host.check_output("systemctl show etcd@region -p MainPID --value") == process

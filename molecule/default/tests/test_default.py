"""The whole data tier, small: what one role gives, another takes."""

from __future__ import annotations

import json

import pytest
import testinfra

testinfra_hosts = ["ma1"]

PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"


def rest(host, url):
    """The JSON that an endpoint gives to a client with the host's certificate."""
    return json.loads(host.check_output(f"curl -sf -m 5 {TLS} {url}"))


def registry(host, key):
    """The registry's text at a key; empty when there is none."""
    return host.check_output(
        f"ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:12379 {TLS} get {key} --print-value-only"
    )


def test_the_registry_knows_the_cell(host):
    record = json.loads(registry(host, "/shannon/cells/main"))
    assert (record["home"], record["epoch"]) == ("a", 1)


def test_sentinel_runs_in_the_home_region_only(host):
    assert host.service("sentinel@main").is_running
    assert not testinfra.get_host("docker://mb1").service("sentinel@main").is_running


@pytest.mark.parametrize("port", [15432, 15433, 16379, 16333])
def test_the_data_proxy_listens_on_loopback_only(host, port):
    assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_the_data_proxy_leads_to_the_postgres_primary(host):
    assert rest(host, "https://ma1:8008/cluster")["scope"] == "main"
    # Without a password the primary still has to say who it is: a server that answers in its own protocol.
    said = host.run(
        f"PGPASSWORD=wrong psql 'host=localhost port=15432 user=shannon dbname=shannon sslmode=verify-full "
        f"sslrootcert={PKI}/ca.crt sslcert={PKI}/host.crt sslkey={PKI}/host.key' -c 'SELECT 1'"
    )
    assert "password authentication failed" in said.stderr


def test_the_data_proxy_leads_to_qdrant(host):
    host.run_expect([0], f"curl -sf -m 5 {TLS} https://localhost:16333/readyz")


def test_the_standby_region_follows(host):
    members = rest(host, "https://mb1:8008/cluster")["members"]
    assert [(member["name"], member["role"]) for member in members] == [("mb1", "standby_leader")]


def test_no_unit_failed(host):
    units = "'etcd@*' 'patroni@*' 'redis@*' 'sentinel@*' 'shannon-*' qdrant.service data-proxy.service"
    assert host.check_output(f"systemctl list-units --failed --no-legend --plain {units}") == ""

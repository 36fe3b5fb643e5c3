"""The data proxy leads to the Redis primary, wherever it is, and says of the rest that nothing is there."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import time

import pytest
import yaml

testinfra_hosts = ["ma1", "ma2", "mb1"]
PKI = "/etc/shannon/pki"
REDIS = f"redis-cli -h localhost -p 16379 --tls --cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"


@pytest.fixture(scope="module")
def monitor_password():
    """Of the Redis user that may only look."""
    path = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "secrets" / "secrets.yml"
    return yaml.safe_load(path.read_text())["redis_monitor"]


def servers(host):
    """(proxy, server) to its status, from the statistics page."""
    page = host.check_output("curl -sf 'http://127.0.0.1:18404/;csv'").removeprefix("# ")
    return {(row["pxname"], row["svname"]): row["status"] for row in csv.DictReader(io.StringIO(page))}


def test_the_configuration_is_valid_and_hides_its_password(host):
    host.run_expect([0], "haproxy -c -q -f /etc/shannon/data_proxy/haproxy.cfg")
    assert host.file("/etc/shannon/data_proxy/haproxy.cfg").mode == 0o640


def test_the_distributions_own_instance_is_not_running(host):
    assert not host.service("haproxy").is_running


def test_only_the_primary_of_redis_takes_clients(host):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        found = {name: state for (proxy, name), state in servers(host).items() if proxy == "main_redis_primary"}
        up = sorted(name for name, state in found.items() if state.startswith("UP") and name.startswith("m"))
        if up == ["ma1"]:
            return
    raise AssertionError(f"expected ma1 alone to be up, got {found}")


@pytest.mark.parametrize("proxy", ["main_postgres_primary", "main_postgres_replicas", "qdrant_http"])
def test_what_is_not_there_is_down(host, proxy):
    found = {name: state for (of, name), state in servers(host).items() if of == proxy and name.startswith("m")}
    assert found
    # Those of Qdrant that are tried when all others are down have no check that could say so.
    unchecked = {name for name, state in found.items() if state.startswith("no check")}
    assert unchecked == {name for name in found if name.endswith("-unchecked")}
    assert {state.split()[0] for name, state in found.items() if name not in unchecked} == {"DOWN"}


def test_a_client_reaches_the_primary_from_every_host(host, monitor_password):
    said = host.check_output(
        f"REDISCLI_AUTH={monitor_password} {REDIS} --no-auth-warning --user monitor INFO replication"
    )
    assert "role:master" in said


def test_the_password_is_not_in_the_configuration_as_it_is_written(host, monitor_password):
    assert monitor_password not in host.file("/etc/shannon/data_proxy/haproxy.cfg").content_string


def test_a_client_comes_through_and_verifies_the_name(host):
    assert "NOAUTH" in host.check_output(f"{REDIS} GET x 2>&1")


def test_a_client_without_a_certificate_does_not(host):
    said = host.run(f"redis-cli -h localhost -p 16379 --tls --cacert {PKI}/ca.crt PING 2>&1").stdout
    assert "PONG" not in said


def test_the_ports_are_on_loopback_only(host):
    for port in (15432, 15433, 16379, 16333, 18404):
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_a_reload_keeps_the_ports_open(host):
    host.run_expect([0], "systemctl reload data-proxy")
    assert host.service("data-proxy").is_running
    assert host.socket("tcp://127.0.0.1:16379").is_listening

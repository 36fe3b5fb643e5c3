"""The firewall opens the topology's ports to the topology's hosts, and nothing else."""

from __future__ import annotations

import time

import pytest
import testinfra

testinfra_hosts = ["ma1"]


@pytest.fixture
def listener(host):
    """A server on a port of ma1; gives a function that says what mw1 gets from it."""
    units = []

    def listen(port):
        unit = f"listener-{port}"
        host.run_expect([0], f"systemd-run --quiet --unit={unit} python3 -m http.server {port}")
        units.append(unit)
        deadline = time.monotonic() + 10
        while not host.socket(f"tcp://0.0.0.0:{port}").is_listening and time.monotonic() < deadline:
            pass

    yield listen
    for unit in units:
        host.run(f"systemctl stop {unit}")


def asked_by_the_witness(port):
    """The HTTP status that mw1 gets from a port of ma1; 000 when it gets no answer."""
    witness = testinfra.get_host("docker://mw1")
    return witness.run(f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://198.18.4.11:{port}/").stdout.strip()


def test_a_port_of_the_topology_is_open_to_its_hosts(host, listener):
    listener(6379)
    assert asked_by_the_witness(6379) == "200"


def test_ssh_is_open(host, listener):
    if not host.socket("tcp://0.0.0.0:22").is_listening:
        listener(22)
    witness = testinfra.get_host("docker://mw1")
    witness.run_expect([0], "timeout 3 bash -c '</dev/tcp/198.18.4.11/22'")


def test_any_other_port_is_closed(host, listener):
    listener(9999)
    assert asked_by_the_witness(9999) == "000"


def test_the_table_is_loaded_with_the_topologys_hosts(host):
    table = host.check_output("nft list table inet shannon")
    assert "policy drop" in table
    for address in ("198.18.4.11", "198.18.4.12", "198.18.4.21", "198.18.4.31"):
        assert address in table
    assert "5432" in table and "9999" not in table


def test_other_tables_are_left_alone(host):
    host.run_expect([0], "nft add table inet stranger")
    host.run_expect([0], "systemctl reload shannon-firewall")
    assert "stranger" in host.check_output("nft list tables")
    host.run_expect([0], "nft delete table inet stranger")


def test_loading_twice_does_not_double_the_rules(host):
    before = host.check_output("nft list table inet shannon")
    host.run_expect([0], "systemctl reload shannon-firewall")
    assert host.check_output("nft list table inet shannon") == before


def test_loopback_and_established_connections_work(host, listener):
    listener(9999)
    assert host.check_output("curl -s -m 3 -o /dev/null -w '%{http_code}' http://127.0.0.1:9999/") == "200"


def test_the_topologys_names_resolve(host):
    for name, address in (("ma2", "198.18.4.12"), ("mb1", "198.18.4.21"), ("mw1", "198.18.4.31")):
        assert host.addr(name).ipv4_addresses == [address]


def test_the_firewall_starts_at_boot(host):
    assert host.service("shannon-firewall").is_enabled
    assert host.service("shannon-firewall").is_running

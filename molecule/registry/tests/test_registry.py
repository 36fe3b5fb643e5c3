"""Three members at three sites know each cell, survive the loss of one, and keep snapshots."""

from __future__ import annotations

import json

import pytest
import testinfra

testinfra_hosts = ["ma1"]
MEMBERS = ["ma1", "mb1", "mw1"]
PKI = "/etc/shannon/pki"
SNAPSHOTS = "/var/lib/shannon/registry-snapshots"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
ETCDCTL = f"ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:12379 --command-timeout 5s {TLS}"


def member(name):
    return testinfra.get_host(f"docker://{name}")


def test_three_members_agree(host):
    members = json.loads(host.check_output(f"{ETCDCTL} member list -w json"))["members"]
    assert sorted(found["name"] for found in members) == MEMBERS
    health = json.loads(host.check_output(f"{ETCDCTL} endpoint health --cluster -w json"))
    assert [found["health"] for found in health] == [True, True, True]


def test_the_cell_has_its_record_and_its_history(host):
    record = json.loads(host.check_output(f"{ETCDCTL} get /shannon/cells/main --print-value-only"))
    assert record == {"home": "a", "epoch": 1, "state": "active"}
    entries = host.check_output(f"{ETCDCTL} get --prefix /shannon/history/main/ --print-value-only").splitlines()
    (entry,) = [json.loads(line) for line in entries]
    assert (entry["home"], entry["previous_home"], entry["operator"]) == ("a", None, "site.yml")


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("port", [12379, 12380])
def test_a_client_without_a_certificate_is_refused(name, port):
    address = member(name).check_output("hostname -I").split()[0]
    known = member(name).run(f"curl -sS --http1.1 -m 5 {TLS} https://{address}:{port}/version")
    assert "etcdserver" in known.stdout
    said = member(name).run(f"curl -sS --http1.1 -m 5 --cacert {PKI}/ca.crt https://{address}:{port}/version")
    assert said.rc != 0
    assert "etcdserver" not in said.stdout


@pytest.mark.parametrize("name", MEMBERS)
def test_it_waits_longer_for_a_leader_than_a_regions_own(name):
    config = member(name).file("/etc/shannon/etcd/registry.yml").content_string
    assert "heartbeat-interval: 300\nelection-timeout: 3000\n" in config


@pytest.mark.parametrize("name", MEMBERS)
def test_the_timer_of_the_snapshots_runs(name):
    assert member(name).service("etcd-snapshot@registry.timer").is_running
    assert member(name).service("etcd-snapshot@registry.timer").is_enabled


def test_a_snapshot_is_taken_verified_and_readable_by_its_owner_only(host):
    host.run_expect([0], "systemctl start etcd-snapshot@registry.service")
    newest = host.check_output(f"ls -1 {SNAPSHOTS}/registry-*.db | tail -1")
    assert (host.file(newest).user, host.file(newest).mode) == ("etcd", 0o600)
    assert json.loads(host.check_output(f"ETCDCTL_API=3 etcdctl snapshot status {newest} -w json"))["totalKey"] > 0
    assert host.check_output(f"ls -A {SNAPSHOTS} | grep -c partial || true") == "0"


def test_a_snapshot_gives_the_records_back(host):
    host.run_expect([0], "systemctl start etcd-snapshot@registry.service")
    newest = host.check_output(f"ls -1 {SNAPSHOTS}/registry-*.db | tail -1")
    host.run_expect(
        [0], f"rm -rf /tmp/restored; ETCDCTL_API=3 etcdctl snapshot restore {newest} --data-dir /tmp/restored"
    )
    try:
        assert "/shannon/cells/main" in host.check_output("grep -ao /shannon/cells/main /tmp/restored/member/snap/db")
    finally:
        host.run_expect([0], "rm -rf /tmp/restored")


def test_the_oldest_snapshots_are_dropped(host):
    host.run_expect([0], f"for n in $(seq 10 70); do : > {SNAPSHOTS}/registry-200001$n.db; done")
    host.run_expect([0], "systemctl start etcd-snapshot@registry.service")
    kept = host.check_output(f"ls -1 {SNAPSHOTS}").splitlines()
    assert len(kept) == 48
    assert not kept[-1].startswith("registry-2000")
    host.run_expect([0], f"rm {SNAPSHOTS}/registry-200001*.db")


def test_one_member_may_be_lost(host):
    lost = member("mw1")
    lost.run_expect([0], "systemctl stop etcd@registry")
    try:
        assert "home" in host.check_output(f"{ETCDCTL} get /shannon/cells/main --print-value-only")
        # Without its member there is nothing to take a snapshot of.
        assert lost.run("systemctl start etcd-snapshot@registry.service").failed
    finally:
        lost.run_expect([0], "systemctl start etcd@registry; systemctl reset-failed 'etcd-snapshot@*' || true")

"""Three members at three sites know each cell, survive the loss of one, and keep snapshots."""

from __future__ import annotations

import json

import pytest
import testinfra

testinfra_hosts = ["ma1"]
PKI = "/etc/shannon/pki"
ETCDCTL = (
    "ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:12379 --command-timeout 5s "
    f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
)


def test_three_members_agree(host):
    members = json.loads(host.check_output(f"{ETCDCTL} member list -w json"))["members"]
    assert sorted(member["name"] for member in members) == ["ma1", "mb1", "mw1"]
    health = json.loads(host.check_output(f"{ETCDCTL} endpoint health --cluster -w json"))
    assert all(member["health"] for member in health)


def test_the_cell_has_its_record_and_its_history(host):
    record = json.loads(host.check_output(f"{ETCDCTL} get /shannon/cells/main --print-value-only"))
    assert record == {"home": "a", "epoch": 1, "state": "active"}
    entries = host.check_output(f"{ETCDCTL} get --prefix /shannon/history/main/ --print-value-only").splitlines()
    assert [json.loads(entry)["home"] for entry in entries] == ["a"]


@pytest.mark.parametrize("name", ["ma1", "mb1", "mw1"])
def test_a_client_without_a_certificate_is_refused(name):
    other = testinfra.get_host(f"docker://{name}")
    assert other.run(f"curl -s -m 5 --cacert {PKI}/ca.crt https://127.0.0.1:12379/version").rc != 0


def test_a_snapshot_is_taken_and_can_be_read(host):
    host.run_expect([0], "systemctl start registry-snapshot.service")
    newest = host.check_output("ls -1t /var/lib/shannon/registry-snapshots/registry-*.db | head -1")
    assert host.file(newest).mode == 0o600
    status = json.loads(host.check_output(f"ETCDCTL_API=3 etcdctl snapshot status {newest} -w json"))
    assert status["totalKey"] > 0
    assert host.service("registry-snapshot.timer").is_running


def test_one_member_may_be_lost(host):
    lost = testinfra.get_host("docker://mw1")
    lost.run_expect([0], "systemctl stop etcd@registry")
    try:
        assert "home" in host.check_output(f"{ETCDCTL} get /shannon/cells/main --print-value-only")
    finally:
        lost.run_expect([0], "systemctl start etcd@registry")

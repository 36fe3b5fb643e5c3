"""A primary with a replica in region a, and region b following with priority 0; nobody gets in without both keys."""

from __future__ import annotations

import json

import pytest
import testinfra

testinfra_hosts = ["ma1"]
PKI = "/etc/shannon/pki"
GATE = "/opt/shannon/redis/gate.py"
MEMBERS = {"ma1": "198.18.4.11", "ma2": "198.18.4.12", "mb1": "198.18.4.21"}
CLI = f"redis-cli --tls --cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"


@pytest.fixture(scope="module")
def passwords():
    ma1 = testinfra.get_host("docker://ma1")
    settings = json.loads(ma1.file("/etc/shannon/redis/main.json").content_string)
    administrator = json.loads(ma1.file("/etc/shannon/redis/main.admin.json").content_string)
    return {
        "admin": administrator["password"],
        "sentinel": settings["sentinel_password"],
        "monitor": settings["monitor_password"],
    }


def admin(host, passwords, words, address="127.0.0.1", port=6379):
    return host.check_output(f"REDISCLI_AUTH={passwords['admin']} {CLI} -h {address} -p {port} --user admin {words}")


def replication(host, passwords, address):
    text = admin(host, passwords, "INFO replication", address)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def sentinel(host, passwords, words, user="sentinel"):
    return host.check_output(f"REDISCLI_AUTH={passwords[user]} {CLI} -p 26379 --user {user} {words}")


def test_one_primary_and_all_others_follow_it(host, passwords):
    found = {name: replication(host, passwords, address) for name, address in MEMBERS.items()}
    assert found["ma1"]["role"] == "master"
    assert found["ma1"]["connected_slaves"] == "2"
    for name in ("ma2", "mb1"):
        assert found[name]["master_host"] == MEMBERS["ma1"]
        assert found[name]["master_link_status"] == "up"


def test_only_the_home_regions_replicas_may_be_promoted(host, passwords):
    assert replication(host, passwords, MEMBERS["ma2"])["slave_priority"] == "100"
    assert replication(host, passwords, MEMBERS["mb1"])["slave_priority"] == "0"


def test_a_write_reaches_the_standby_region(host, passwords):
    admin(host, passwords, "SET molecule yes")
    assert admin(host, passwords, "WAIT 2 2000") == "2"
    assert admin(host, passwords, "GET molecule", MEMBERS["mb1"]) == "yes"


def test_the_aof_is_on(host, passwords):
    assert "yes" in admin(host, passwords, "CONFIG GET appendonly")
    assert "everysec" in admin(host, passwords, "CONFIG GET appendfsync")


def test_a_primary_that_is_alone_takes_no_writes(host, passwords):
    assert admin(host, passwords, "CONFIG GET min-replicas-to-write").split()[-1] == "1"


def test_without_a_password_nothing_is_read(host):
    assert "NOAUTH" in host.run(f"{CLI} -p 6379 GET molecule 2>&1").stdout
    assert "NOAUTH" in host.run(f"{CLI} -p 26379 SENTINEL masters 2>&1").stdout


@pytest.mark.parametrize("port", [6379, 26379])
def test_without_a_certificate_or_tls_nothing_answers(host, port):
    assert "PONG" not in host.run(f"redis-cli --tls --cacert {PKI}/ca.crt -p {port} PING 2>&1").stdout
    assert "PONG" not in host.run(f"timeout 5 redis-cli -p {port} PING 2>&1").stdout


def test_the_monitoring_user_sees_roles_and_nothing_else(host, passwords):
    listed = admin(host, passwords, "ACL GETUSER monitor")
    assert "+info" in listed and "+@all" not in listed
    assert "off" in admin(host, passwords, "ACL GETUSER default")


def test_sentinel_watches_in_the_home_region_only(host, passwords):
    for name, running in (("ma1", True), ("ma2", True), ("mb1", False)):
        other = testinfra.get_host(f"docker://{name}")
        assert other.service("sentinel@main").is_running is running
        assert other.service("sentinel@main").is_enabled is running
    out = sentinel(host, passwords, "SENTINEL MASTER main")
    words = out.split("\n")
    found = dict(zip(words[::2], words[1::2], strict=False))
    assert (found["ip"], found["quorum"], found["num-other-sentinels"]) == (MEMBERS["ma1"], "2", "1")


def test_a_former_primary_comes_back_as_a_replica(host, passwords):
    """The gate asks the other Sentinels: whatever the old file says, who was promoted meanwhile counts."""
    state = "/var/lib/shannon/redis/main/redis.conf"
    replica = testinfra.get_host("docker://ma2")
    saved = replica.check_output(f"cat {state}")
    try:
        replica.run_expect([0], f"sed -i '/replicaof/d' {state}")
        replica.run_expect([0], f"systemd-run --wait --quiet -p User=redis -p SupplementaryGroups=shannon-tls "
                                f"python3 {GATE} redis main")  # fmt: skip
        assert f"replicaof {MEMBERS['ma1']} 6379" in replica.check_output(f"cat {state}")
    finally:
        replica.run_expect([0], f"printf '%s\\n' '{saved}' > {state}")


def test_sentinels_users_may_look_and_nothing_else(host, passwords):
    assert sentinel(host, passwords, "SENTINEL CKQUORUM main", "monitor").startswith("OK 2 usable Sentinels")
    for user in ("monitor", "sentinel"):
        assert "NOPERM" in sentinel(host, passwords, "SENTINEL FAILOVER main 2>&1", user)
        assert "NOPERM" in sentinel(host, passwords, "SENTINEL SET main quorum 1 2>&1", user)


def test_the_services_user_administers_nothing(host, passwords):
    for words in ("CONFIG GET maxmemory", "ACL LIST", "FLUSHALL", "SHUTDOWN", "REPLICAOF NO ONE", "KEYS '*'"):
        assert "no permissions" in admin(host, passwords, f"ACL DRYRUN app {words}")
    assert admin(host, passwords, "ACL DRYRUN app SET k v") == "OK"


def test_a_primary_whose_data_is_gone_does_not_wipe_its_replicas(host, passwords):
    admin(host, passwords, "SET precious yes")
    assert admin(host, passwords, "WAIT 2 2000") == "2"
    directory = "/var/lib/shannon/redis/main/appendonlydir"
    host.run_expect([0], f"mv {directory} {directory}.away")
    try:
        out = host.run(f"systemd-run --wait --quiet --pipe -p User=redis -p SupplementaryGroups=shannon-tls "
                       f"python3 {GATE} redis main")  # fmt: skip
        assert out.failed
        assert "has data: as a primary this instance would wipe it" in out.stderr
    finally:
        host.run_expect([0], f"mv {directory}.away {directory}")


def test_the_password_files_are_the_services_alone(host):
    for name in ("main.conf", "main.acl", "main.sentinel.conf", "main.json"):
        found = host.file(f"/etc/shannon/redis/{name}")
        assert (found.user, found.group, found.mode) == ("root", "redis", 0o640)
    found = host.file("/etc/shannon/redis/main.admin.json")
    assert (found.user, found.group, found.mode) == ("root", "root", 0o600)
    state = host.file("/var/lib/shannon/redis/main")
    assert (state.user, state.group, state.mode) == ("redis", "redis", 0o750)


def test_the_certificate_is_reread_without_a_restart(host):
    before = host.check_output("systemctl show redis@main -p MainPID")
    host.run_expect([0], "systemctl reload shannon-tls.service && systemctl is-active redis@main sentinel@main")
    assert host.check_output("systemctl show redis@main -p MainPID") == before


def test_the_distributions_own_instances_cannot_start(host):
    for unit in ("redis-server.service", "redis-sentinel.service"):
        assert host.file(f"/etc/systemd/system/{unit}").linked_to == "/dev/null"

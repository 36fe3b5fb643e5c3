"""Every service starts without its databases, says what it lacks, and runs hardened under a user of its own."""

from __future__ import annotations

import json

import pytest

PKI = "/etc/shannon/pki"
CURL = f"curl -s --cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
HERE = ["gateway", "orchestrator", "llm-service", "agent-core", "vector-indexer"]
testinfra_hosts = ["ma1"]


@pytest.mark.parametrize("name", HERE)
def test_the_service_runs_and_is_enabled(host, name):
    assert host.service(f"shannon-{name}").is_running
    assert host.service(f"shannon-{name}").is_enabled


@pytest.mark.parametrize("name", HERE)
def test_it_runs_as_a_user_of_its_own_without_privileges(host, name):
    shown = host.check_output(
        f"systemctl show shannon-{name} -p NoNewPrivileges -p ProtectSystem -p CapabilityBoundingSet"
    )
    assert "NoNewPrivileges=yes" in shown
    assert "ProtectSystem=strict" in shown
    assert "CapabilityBoundingSet=\n" in shown + "\n"
    pid = host.check_output(f"systemctl show shannon-{name} -p MainPID --value")
    assert host.check_output(f"stat -c %u /proc/{pid}") != "0"


def test_a_release_is_current(host):
    link = host.file("/opt/shannon/services/current")
    assert link.is_symlink
    assert host.file(f"{link.linked_to}/.complete").exists


def test_the_configuration_passes_its_own_check(host):
    host.run_expect([0], "/opt/shannon/services/current/bin/shannon-gateway --check-config")


def test_a_wrong_configuration_is_refused_with_the_key(host):
    host.check_output("printf 'gateway: {port: 99999, prot: 1}\\n' > /tmp/wrong.yaml")
    run = host.run("/opt/shannon/services/current/bin/shannon-gateway --check-config --config /tmp/wrong.yaml")
    assert run.rc == 2
    assert "gateway.port is 99999" in run.stderr
    assert "gateway.prot: this key is unknown" in run.stderr


def test_each_service_reads_its_own_secrets_and_no_others(host):
    folder = "/etc/shannon/credentials"
    for service in host.check_output(f"ls {folder}").split():
        own = host.file(f"{folder}/{service}")
        assert (own.mode, own.user, own.group) == (0o750, "root", f"shannon-{service.replace('_', '-')}")
        for name in host.check_output(f"ls {folder}/{service}").split():
            found = host.file(f"{folder}/{service}/{name}")
            assert (found.mode, found.user, found.group) == (0o640, "root", own.group)
    host.run_expect([0], f"runuser -u shannon-gateway -- cat {folder}/gateway/redis_app")
    host.run_expect([1], f"runuser -u shannon-gateway -- cat {folder}/orchestrator/postgres_app")
    assert "password" not in host.file("/etc/shannon/shannon.yaml").content_string


@pytest.mark.parametrize(("port", "path"), [(8080, "/health"), (8081, "/health/live"), (8000, "/health/live")])
def test_it_lives(host, port, path):
    assert host.check_output(f"{CURL} -o /dev/null -w '%{{http_code}}' https://ma1:{port}{path}") == "200"


def test_the_orchestrator_is_not_ready_without_a_database(host):
    assert host.check_output(f"{CURL} -o /dev/null -w '%{{http_code}}' https://ma1:8081/health/ready") == "503"


def test_the_llm_service_works_without_redis(host):
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
    answer = json.loads(
        host.check_output(f"{CURL} -H 'Content-Type: application/json' -d '{body}' https://ma1:8000/completions/")
    )
    assert answer["output_text"]


def test_a_request_without_a_key_is_refused(host):
    assert host.check_output(f"{CURL} -o /dev/null -w '%{{http_code}}' https://ma1:8080/api/v1/tasks") == "401"


def test_logs_are_json(host):
    lines = host.check_output("journalctl -u shannon-gateway -o cat | grep '^{'").splitlines()
    assert {"time", "level", "service", "message"} <= set(json.loads(lines[-1]))


def test_the_edge_agent_runs_beside_the_edge(host):
    witness = host.get_host("ansible://mw1", ansible_inventory=host.backend.ansible_inventory)
    assert witness.service("shannon-edge-agent").is_running

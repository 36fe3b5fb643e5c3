"""Two peers in region a with two copies of each shard, one peer in b; nobody gets in without certificate and key."""

from __future__ import annotations

import json
import re

import pytest

testinfra_hosts = ["ma1", "mb1"]
PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
COLLECTIONS = {
    "cases",
    "decomposition_patterns",
    "document_chunks",
    "dr_markers",
    "summaries",
    "task_embeddings",
    "tool_results",
}


@pytest.fixture
def keys(host):
    text = host.file("/etc/shannon/qdrant/config.yaml").content_string
    return dict(re.findall(r"^ +(api_key|read_only_api_key): (\S+)$", text, re.M))


def ask(host, key, path, options=""):
    return json.loads(
        host.check_output(f"curl -s -m 10 {TLS} -H 'api-key: {key}' {options} https://localhost:6333{path}")
    )


def status(host, path, options=""):
    return host.run(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' {options} https://localhost:6333{path}").stdout


def test_each_region_has_a_cluster_of_its_own(host, keys):
    found = ask(host, keys["api_key"], "/cluster")["result"]
    expected = {"ma1": {"198.18.4.11", "198.18.4.12"}, "mb1": {"198.18.4.21"}}[host.check_output("hostname")]
    assert {re.search(r"//([0-9.]+):", peer["uri"]).group(1) for peer in found["peers"].values()} == expected
    assert found["raft_info"]["leader"]


def test_all_collections_are_there_with_their_indexes(host, keys):
    found = ask(host, keys["api_key"], "/collections")["result"]["collections"]
    assert {entry["name"] for entry in found} == COLLECTIONS
    schema = ask(host, keys["api_key"], "/collections/decomposition_patterns")["result"]["payload_schema"]
    assert {name: index["data_type"] for name, index in schema.items()} == {
        "session_id": "keyword",
        "user_id": "keyword",
        "strategy": "keyword",
        "success_rate": "float",
        "timestamp": "integer",
        "pattern": "text",
    }


def test_each_shard_has_as_many_copies_as_there_can_be(host, keys):
    found = ask(host, keys["api_key"], "/collections/summaries/cluster")["result"]
    replicas = [*found["local_shards"], *found["remote_shards"]]
    peers = {"ma1": 2, "mb1": 1}[host.check_output("hostname")]
    assert len(replicas) == peers * found["shard_count"]
    assert {replica["state"] for replica in replicas} == {"Active"}


def test_without_a_key_nothing_is_read(host):
    assert status(host, "/collections", TLS) in ("401", "403")


def test_the_read_only_key_cannot_write(host, keys):
    header = f"{TLS} -H 'api-key: {keys['read_only_api_key']}'"
    assert status(host, "/collections", header) == "200"
    write = f"{header} -X PUT -H 'Content-Type: application/json' -d '{{}}'"
    assert status(host, "/collections/x", write) in ("401", "403")


def test_without_a_certificate_or_tls_nothing_answers(host, keys):
    header = f"-H 'api-key: {keys['api_key']}'"
    assert status(host, "/collections", f"--cacert {PKI}/ca.crt {header}") == "000"
    assert "result" not in host.run(f"curl -s -m 5 {header} http://localhost:6333/collections").stdout


def test_the_unit_is_confined_and_its_files_are_its_own(host):
    assert host.service("qdrant").is_enabled and host.service("qdrant").is_running
    found = host.check_output("systemctl show qdrant -p User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet")
    assert {"User=qdrant", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(found.splitlines())
    config = host.file("/etc/shannon/qdrant/config.yaml")
    assert (config.user, config.group, config.mode) == ("root", "qdrant", 0o640)


def test_a_restart_asks_nobody(host):
    host.run_expect([0], "systemctl restart qdrant")
    assert host.service("qdrant").is_running

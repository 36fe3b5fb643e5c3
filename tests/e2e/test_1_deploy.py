"""site.yml on the lab: complete, idempotent, honest in check mode, and status.yml tells the truth about it."""

from __future__ import annotations

import typing as t

import pytest

import lab

DATA_HOSTS = ("a1", "a2", "a3", "b1", "b2", "b3")


def members(info: dict[str, t.Any], component: str, region: str) -> list[dict[str, t.Any]]:
    return list(info["cells"]["main"][component][region]["members"])


def test_both_regions_are_up_with_no_lag_and_epoch_1(healthy: dict[str, t.Any]) -> None:
    cell = healthy["cells"]["main"]
    assert (cell["home"], cell["epoch"], cell["state"]) == ("a", 1, "active")
    assert cell["in_registry"]
    roles = {
        component: {
            region: sorted(member["role"] for member in members(healthy, component, region)) for region in ("a", "b")
        }
        for component in ("postgres", "redis")
    }
    assert roles["postgres"] == {
        "a": ["primary", "replica", "replica"],
        "b": ["replica", "replica", "standby_leader"],
    }
    assert roles["redis"] == {"a": ["primary", "replica", "replica"], "b": ["replica"] * 3}
    lab.wait_for(
        lambda: all(
            member["lag_bytes"] == 0
            for component in ("postgres", "redis")
            for region in ("a", "b")
            for member in members(lab.status(), component, region)
        ),
        "lag 0 on every member",
        30,
    )


def test_vectors_have_two_active_copies_in_each_region(healthy: dict[str, t.Any]) -> None:
    for region in ("a", "b"):
        part = healthy["cells"]["main"]["qdrant"][region]
        assert len(part["members"]) == 3
        # The last two: the markers of the region agents, and how far the vector indexer has applied vector_log.
        assert set(part["collections"]) == {
            "task_embeddings", "tool_results", "cases", "document_chunks", "summaries", "decomposition_patterns",
            "dr_markers", "indexer_positions",
        }  # fmt: skip
        for found in part["collections"].values():
            assert found["replicas"] == found["replicas_active"] == 2 * found["shards"]


def test_the_registry_has_three_members_at_three_sites(healthy: dict[str, t.Any]) -> None:
    assert healthy["registry"]["quorum"]
    assert sorted(member["name"] for member in healthy["registry"]["members"]) == ["a1", "b1", "w1"]


def test_status_fits_100_columns(deployed: dict[str, float]) -> None:
    out = lab.playbook("status").stdout
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("cell "))
    last = next(number for number, line in enumerate(lines) if line.startswith("asked from "))
    table = lines[first : last + 1]
    assert any(line.startswith("cell main: home a, epoch 1") for line in table), out
    assert max(len(line) for line in table) <= 100


@pytest.mark.parametrize("host", DATA_HOSTS)
def test_replication_between_postgres_members_is_encrypted(deployed: dict[str, float], host: str) -> None:
    out = lab.Host(host).sh(
        'su postgres -c "psql -At -h /run/postgresql -p 5432 -d postgres -c '
        "'SELECT count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)'\""
    )
    assert out.strip() == "0"


def test_the_schema_is_there_in_both_regions(deployed: dict[str, float]) -> None:
    query = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    counts = {
        host: lab.Host(host).sh(f'su postgres -c "psql -At -h /run/postgresql -d shannon -c \\"{query}\\""').strip()
        for host in ("a1", "b1")
    }
    assert counts["a1"] == counts["b1"]
    assert int(counts["a1"]) >= 14  # the twelve tables and more of seed-facts 4, vector_log, schema_migrations


@pytest.mark.soak  # CI has the second run of each role alone, in its scenario
def test_a_second_run_changes_nothing_and_prints_no_secret_even_when_verbose(deployed: dict[str, float]) -> None:
    import yaml

    out = lab.playbook("site", "-vvv", "--diff")
    counts = lab.recap(out.stdout)
    assert set(counts) >= {*DATA_HOSTS, "w1"}
    assert {host: found["changed"] for host, found in counts.items() if found["changed"]} == {}
    secrets = yaml.safe_load((lab.INVENTORY / ".secrets" / "secrets.yml").read_text())
    leaked = [name for name, value in secrets.items() if value in out.stdout + out.stderr]
    assert leaked == []


@pytest.mark.soak
def test_check_mode_on_a_deployed_lab_finds_nothing_to_do(deployed: dict[str, float]) -> None:
    counts = lab.recap(lab.playbook("site", "--check").stdout)
    assert {host: found["changed"] for host, found in counts.items() if found["changed"]} == {}

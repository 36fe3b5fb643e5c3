"""The data proxy's configuration: who is asked what, in which order, and what happens to sessions."""

from __future__ import annotations

import pathlib
import re
import typing as t

import jinja2
import pytest
import yaml

ROLE = pathlib.Path(__file__).parents[2] / "roles" / "data_proxy"
CELL_PORTS = {
    "postgres": 5432,
    "patroni": 8008,
    "redis": 6379,
    "proxy_postgres_primary": 15432,
    "proxy_postgres_replicas": 15433,
    "proxy_redis": 16379,
}
MEMBERS = {"a": ["a1", "a2"], "b": ["b1", "b2"]}


def flatten(lists: t.Iterable[list[str]]) -> list[str]:
    return [item for inner in lists for item in inner]


def sections(**changes: t.Any) -> dict[str, list[str]]:
    """The rendered configuration: name of each section to its lines."""
    hosts = flatten(MEMBERS.values())
    given = {
        "data_proxy_cells": [{"name": "main", "ports": CELL_PORTS}],
        "data_proxy_members": {"postgres": MEMBERS, "redis": MEMBERS, "qdrant": MEMBERS},
        "data_proxy_hosts": {
            host: {"address": f"192.0.2.{number}", "region": host[0]} for number, host in enumerate(hosts, 1)
        },
        "data_proxy_ports": {
            "qdrant_http": 6333,
            "proxy_qdrant_http": 16333,
            "proxy_stats": 18404,
        },
        "data_proxy_region": "a",
        "data_proxy_bind": "127.0.0.1",
        "data_proxy_check_ms": 500,
        "data_proxy_check_fall": 2,
        "data_proxy_connect_timeout_ms": 1000,
        "data_proxy_idle_timeout": "24h",
        "data_proxy_hard_stop_after": "30s",
        "data_proxy_max_connections": 2000,
        "data_proxy_replica_max_lag": "16MB",
        "data_proxy_redis_monitor_password": "secret",
        **changes,
    }
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["flatten"] = flatten
    environment.filters["difference"] = lambda all_, without: [item for item in all_ if item not in without]
    text = environment.from_string((ROLE / "templates" / "haproxy.cfg.j2").read_text()).render(given)
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            lines = found.setdefault(line.split()[-1], [])
        elif line.strip() and not line.lstrip().startswith("#"):
            assert line.startswith("    ") and not line.startswith("     "), line
            lines.append(line.strip())
    return found


def servers(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith("server ")]


def server(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(f"server {name} "))


@pytest.mark.parametrize("proxy", ["main_postgres_primary", "main_redis_primary"])
@pytest.mark.parametrize("region", ["a", "b"])
def test_a_primary_is_looked_for_everywhere_in_the_same_order(proxy: str, region: str) -> None:
    lines = sections(data_proxy_region=region)[proxy]
    assert servers(lines) == ["a1", "a2", "b1", "b2"]
    assert "balance first" in lines
    assert "stick on int(1)" in lines


def test_patroni_is_asked_for_the_primary_with_our_certificate() -> None:
    lines = sections()["main_postgres_primary"]
    assert "http-check send meth GET uri /primary" in lines
    line = server(lines, "a1")
    for part in (
        "192.0.2.1:5432",
        "check-ssl",
        "port 8008",
        "verify required",
        "verifyhost a1",
        "crt /etc/shannon/pki/host.pem",
    ):
        assert part in line


def test_reads_fall_back_in_this_order() -> None:
    lines = sections(data_proxy_region="b")["main_postgres_replicas"]
    assert servers(lines) == [
        *("b1", "b2"),
        *("b1-standby-leader", "b2-standby-leader"),
        *("a1", "a2"),
        *("a1-primary", "a2-primary", "b1-primary", "b2-primary"),
    ]
    assert [line.split()[1] for line in lines if line.startswith("server") and not line.endswith(" backup")] == [
        "b1",
        "b2",
    ]
    assert "http-check send meth GET uri /replica?lag=16MB" in lines


def test_whoever_is_tracked_is_checked() -> None:
    found = sections()
    tracked = {match for lines in found.values() for line in lines for match in re.findall(r" track (\w+)/(\w+)", line)}
    assert tracked
    for proxy, name in tracked:
        assert " check " in server(found[proxy], name)


def test_sessions_to_a_server_that_is_no_longer_what_it_was_end() -> None:
    found = sections()
    default = next(line for line in found["defaults"] if line.startswith("default-server"))
    assert "on-marked-down shutdown-sessions" in default
    assert "inter 500ms fastinter 250ms downinter 500ms fall 2 rise 1" in default
    assert "hard-stop-after 30s" in found["global"]


def test_redis_is_asked_over_tls_in_its_own_protocol() -> None:
    lines = sections(data_proxy_redis_monitor_password='p w"\\ü')["main_redis_primary"]
    assert "tcp-check connect default" in lines
    sent = [bytes.fromhex(line.split()[-1]).decode() for line in lines if "send-binary" in line]
    assert sent == [
        '*3\r\n$4\r\nAUTH\r\n$7\r\nmonitor\r\n$7\r\np w"\\ü\r\n',
        "*1\r\n$4\r\nPING\r\n",
        "*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n",
        "*1\r\n$4\r\nQUIT\r\n",
    ]


def test_a_wrong_answer_of_redis_decides_at_once() -> None:
    shortest = len("$100\r\n# Replication\r\nrole:master\r\n")
    expects = [line for line in sections()["main_redis_primary"] if line.startswith("tcp-check expect")]
    assert all(" min-recv " in line for line in expects)
    needed = next(int(line.split()[3]) for line in expects if "role:master" in line)
    assert needed >= shortest


@pytest.mark.parametrize("section", ["main_postgres_primary", "main_redis_primary"])
def test_another_regions_primary_is_asked_less_often(section: str) -> None:
    found = sections(data_proxy_region="b")[section]
    assert " inter " not in server(found, "b1")
    assert " inter 2000ms downinter 2000ms" in server(found, "a1")


def test_qdrant_is_the_own_regions() -> None:
    found = sections(data_proxy_region="b")
    assert servers(found["qdrant_http"]) == ["b1", "b2", "b1-unchecked", "b2-unchecked"]
    assert servers(found["qdrant_peers"]) == ["b1", "b2"]
    for host in ("b1", "b2"):
        assert server(found["qdrant_http"], host).endswith(f"track qdrant_peers/{host}")
        # With all checks failed they are what is left, so they have none.
        assert server(found["qdrant_http"], f"{host}-unchecked").split()[3:] == ["backup"]
    assert "option allbackups" in found["qdrant_http"]
    assert "http-check send meth GET uri /readyz" in found["qdrant_peers"]


def test_a_region_without_data_still_reaches_the_primaries() -> None:
    found = sections(data_proxy_region="witness")
    assert servers(found["main_postgres_primary"]) == ["a1", "a2", "b1", "b2"]
    assert servers(found["main_postgres_replicas"])[:4] == ["a1", "a2", "b1", "b2"]
    assert "main_postgres_standby_leader" not in found
    assert servers(found["qdrant_http"]) == []


def test_each_cell_has_its_own_ports() -> None:
    second = {name: port + 10 for name, port in CELL_PORTS.items()}
    found = sections(
        data_proxy_cells=[{"name": "main", "ports": CELL_PORTS}, {"name": "other", "ports": second}],
        data_proxy_bind="127.0.0.2",
    )
    assert "bind 127.0.0.2:15432" in found["main_postgres_primary"]
    assert "bind 127.0.0.2:15442" in found["other_postgres_primary"]
    assert "192.0.2.1:5442" in server(found["other_postgres_primary"], "a1")
    assert "port 8018" in server(found["other_postgres_primary"], "a1")
    assert "track other_postgres_primary/a1" in server(found["other_postgres_replicas"], "a1-primary")


def test_every_variable_is_described_with_its_default() -> None:
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    assert {name: option.get("default") for name, option in options.items()} == defaults

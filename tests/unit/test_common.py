"""The firewall's rules: the topology's ports for the topology's hosts, ssh for the operator, nothing else."""

from __future__ import annotations

import pathlib
import typing as t

import jinja2
import yaml

ROLE = pathlib.Path(__file__).parents[2] / "roles" / "common"


def rules(**changes: t.Any) -> list[str]:
    """The lines of the rendered file, as Ansible renders it."""
    given = {
        "inventory_hostname": "a1",
        "common_topology": {
            "hosts": {"a1": {"address": "192.0.2.1"}, "b1": {"address": "192.0.2.2"}},
            "firewall": {"a1": [5432, 6379]},
            "public": {"a1": []},
        },
        "common_ssh_sources": ["0.0.0.0/0", "::/0"],
        "common_ssh_ports": [22],
        "common_firewall_extra_rules": [],
        **changes,
    }
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.tests["search"] = lambda value, what: what in value
    text = environment.from_string((ROLE / "templates" / "firewall.nft.j2").read_text()).render(given)
    return [line.strip() for line in text.splitlines() if line.strip()]


def topology(addresses: list[str], openings: list[int]) -> dict[str, t.Any]:
    hosts = {f"h{number}": {"address": address} for number, address in enumerate(addresses)}
    return {"hosts": hosts, "firewall": {"a1": openings}, "public": {"a1": []}}


def test_only_the_topologys_hosts_reach_its_ports() -> None:
    found = rules()
    assert "elements = { 192.0.2.1, 192.0.2.2 }" in found
    assert "ip saddr @topology_ip tcp dport { 5432, 6379 } accept" in found
    accepting = [line for line in found if line.endswith("accept") and "5432" in line]
    assert all("@topology_" in line for line in accepting)


def test_an_edges_door_is_open_to_everybody() -> None:
    found = rules(common_topology={**topology(["192.0.2.1"], []), "public": {"a1": [443]}})
    assert "tcp dport { 443 } accept" in found
    assert not any(line.startswith("tcp dport") for line in rules())


def test_a_dns_servers_door_is_open_over_both_protocols() -> None:
    doors = {"public": {"a1": [53]}, "public_udp": {"a1": [53]}}
    found = rules(common_topology={**topology(["192.0.2.1"], []), **doors})
    assert "tcp dport { 53 } accept" in found and "udp dport { 53 } accept" in found
    assert not any(line.startswith("udp dport") for line in rules())


def test_what_is_not_accepted_is_dropped() -> None:
    assert "type filter hook input priority filter; policy drop;" in rules()


def test_only_our_own_table_is_replaced() -> None:
    found = rules()
    assert not any("flush" in line for line in found)
    assert found.index("table inet shannon") < found.index("delete table inet shannon")
    assert [line for line in found if line.startswith("delete")] == ["delete table inet shannon"]


def test_ssh_is_open_in_both_families_on_all_its_ports() -> None:
    found = rules(common_ssh_ports=[22, 2222])
    assert "ip saddr { 0.0.0.0/0 } tcp dport { 22, 2222 } accept" in found
    assert "ip6 saddr { ::/0 } tcp dport { 22, 2222 } accept" in found


def test_ssh_sources_of_one_family_close_the_other() -> None:
    found = rules(common_ssh_sources=["192.0.2.0/24"])
    assert "ip saddr { 192.0.2.0/24 } tcp dport { 22 } accept" in found
    assert not any(line.startswith("ip6 saddr") and "dport { 22 }" in line for line in found)


def test_hosts_may_have_addresses_of_either_family() -> None:
    found = rules(common_topology=topology(["192.0.2.1", "2001:db8::1"], [5432]))
    assert "elements = { 192.0.2.1 }" in found
    assert "elements = { 2001:db8::1 }" in found
    assert "ip6 saddr @topology_ip6 tcp dport { 5432 } accept" in found


def test_a_host_without_ports_of_its_own_has_no_empty_set_in_its_rules() -> None:
    found = rules(common_topology=topology(["192.0.2.1"], []))
    assert not any("{ }" in line for line in found)


def test_rules_of_the_operator_come_before_the_end() -> None:
    found = rules(common_firewall_extra_rules=["tcp dport 443 accept"])
    assert found.index("tcp dport 443 accept") < found.index("ip saddr @topology_ip reject with icmpx admin-prohibited")


def test_protocols_need_no_names_of_the_host() -> None:
    assert "meta l4proto { 1, 58 } accept" in rules()


def test_every_variable_is_described_with_its_default() -> None:
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    assert {name: option.get("default") for name, option in options.items()} == defaults


def test_listeners_ports_are_kept_from_outgoing_connections_in_the_lab_and_in_molecule_too() -> None:
    """A container's kernel is not the role's to change, so what makes the containers says the same."""
    from shannon.resilience.topology import HOST_PORTS

    template = jinja2.Template((ROLE / "templates" / "sysctl.conf.j2").read_text(), trim_blocks=True)
    wanted = sorted(port for port in HOST_PORTS.values() if port >= 32768)
    assert wanted == [50051, 50052]
    assert "net.ipv4.ip_local_reserved_ports = 50051,50052" in template.render(
        common_sysctl={}, common_reserved_ports=wanted
    )
    assert "reserved" not in template.render(common_sysctl={}, common_reserved_ports=[])
    repository = ROLE.parents[1]
    molecule = yaml.safe_load((repository / ".config" / "molecule" / "config.yml").read_text())
    for platform in molecule["platforms"]:
        assert platform["sysctls"] == {"net.ipv4.ip_local_reserved_ports": "50051-50052"}
    lab = (repository / "lab/shannon_lab/hosts.py").read_text()
    assert "net.ipv4.ip_local_reserved_ports=50051-50052" in lab
    settings = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())["common_sysctl"]
    assert f"net.ipv4.tcp_retries2={settings['net.ipv4.tcp_retries2']}" in lab

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(routing_providers) of an inventory means: which name of which zone says what, when a cell is at home where."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .dns_update import ALGORITHMS, TYPES, Values, parse_server
from .errors import ResilienceError

RFC2136 = "rfc2136"
ROUTE53 = "route53"
CLOUDFLARE = "cloudflare"
PROVIDERS = (RFC2136, ROUTE53, CLOUDFLARE)
#: Seconds for which a resolver may keep an answer.
DEFAULT_TTL = 30
DEFAULT_NAME = "{cell}.{zone}"
DEFAULT_KEY = "shannon-update"
_COMMON = ("provider", "zone", "name", "ttl", "cells", "addresses")
_OPTIONS = {
    RFC2136: (*_COMMON, "servers", "port", "key_name", "key_secret", "key_algorithm"),
    ROUTE53: (*_COMMON, "options"),
    CLOUDFLARE: (*_COMMON, "options"),
}
_LABEL = re.compile(r"^(?!-)[a-z0-9-]{1,63}(?<!-)$")
#: Seconds that Cloudflare takes as a TTL at least; 1 means "as you like".
_CLOUDFLARE_TTL = 60


def records(providers: t.Any, topology: t.Mapping[str, t.Any], key_secret: str = "") -> list[dict[str, t.Any]]:
    """One entry for each name that is kept, with what it says by the region that is its cell's home.

    :param providers: the variable C(routing_providers).
    :param topology: what C(shannon.resilience.topology) derived.
    :param key_secret: the stack's own TSIG key, where a provider gives none.
    :returns: C(provider), C(cell), C(zone), C(name), C(ttl) and C(regions) (region to type to values); with
        C(rfc2136) also C(servers), C(key_name), C(key_secret) and C(key_algorithm), with the others C(options).
    :raises ResilienceError: something is wrong with the variable; a sentence for each finding.
    """
    problems: list[str] = []
    found: list[dict[str, t.Any]] = []
    if not isinstance(providers, (list, tuple)):
        raise ResilienceError("routing_providers is no list of mappings, each with provider and zone")
    for index, provider in enumerate(providers):
        where = f"routing_providers[{index}]"
        try:
            found += _records(provider, topology, key_secret)
        except ResilienceError as exc:
            problems += [f"{where}: {line}" for line in str(exc).splitlines()]
    taken: dict[tuple[str, ...], str] = {}
    for entry in found:
        key = (entry["provider"], entry["zone"], entry["name"], *entry.get("servers", ()))
        other = taken.setdefault(key, entry["cell"])
        if other != entry["cell"]:
            problems.append(
                f"the cells {other} and {entry['cell']} share the name {entry['name']}: put {{cell}} into it"
            )
    if problems:
        raise ResilienceError("\n".join(problems))
    return found


def calls(
    entries: t.Sequence[t.Mapping[str, t.Any]], provider: str, homes: t.Mapping[str, str]
) -> list[dict[str, t.Any]]:
    """The arguments with which a provider's module has its names say where the cells live.

    :param entries: what :func:`records` returned.
    :param homes: cell to its home; names of cells that it lacks are left alone.
    """
    found: list[dict[str, t.Any]] = []
    for entry in entries:
        home = homes.get(entry["cell"])
        if entry["provider"] == provider and home in entry["regions"]:
            found += _CALLS[provider](entry, str(home))
    return found


def _rfc2136(entry: t.Mapping[str, t.Any], home: str) -> list[dict[str, t.Any]]:
    names = ("zone", "name", "ttl", "servers", "key_name", "key_secret", "key_algorithm")
    return [{**{name: entry[name] for name in names}, "values": entry["regions"][home]}]


def _route53(entry: t.Mapping[str, t.Any], home: str) -> list[dict[str, t.Any]]:
    """A call for each kind of record that any region uses; those that this home does not use go first."""
    found = []
    wanted: Values = entry["regions"][home]
    for kind in sorted(_kinds(entry), key=lambda kind: (kind in wanted, kind)):
        call = {"zone": entry["zone"], "record": entry["name"], "type": kind, "ttl": entry["ttl"], **entry["options"]}
        if kind in wanted:
            call.update(state="present", overwrite=True, value=wanted[kind])
        else:
            call.update(state="absent")
        found.append(call)
    return found


def _cloudflare(entry: t.Mapping[str, t.Any], home: str) -> list[dict[str, t.Any]]:
    """A call for each value: this module knows one at a time. New ones come first, but not beside a CNAME."""
    wanted: Values = entry["regions"][home]
    every = {(kind, value) for values in entry["regions"].values() for kind in values for value in values[kind]}
    present = sorted((kind, value) for kind, value in every if value in wanted.get(kind, ()))
    absent = sorted(every - set(present))
    shared = {"zone": entry["zone"], "record": entry["name"], "ttl": max(entry["ttl"], _CLOUDFLARE_TTL)}
    adds = [{**shared, **entry["options"], "type": kind, "value": value, "state": "present"} for kind, value in present]
    drops = [{**shared, **entry["options"], "type": kind, "value": value, "state": "absent"} for kind, value in absent]
    return drops + adds if "CNAME" in _kinds(entry) else adds + drops


_CALLS: dict[str, t.Callable[[t.Mapping[str, t.Any], str], list[dict[str, t.Any]]]] = {
    RFC2136: _rfc2136,
    ROUTE53: _route53,
    CLOUDFLARE: _cloudflare,
}


def _kinds(entry: t.Mapping[str, t.Any]) -> set[str]:
    return {kind for values in entry["regions"].values() for kind in values}


def _records(provider: t.Any, topology: t.Mapping[str, t.Any], key_secret: str) -> list[dict[str, t.Any]]:
    if not isinstance(provider, t.Mapping) or provider.get("provider") not in PROVIDERS:
        raise ResilienceError(f"provider must be one of {', '.join(PROVIDERS)}")
    kind = str(provider["provider"])
    unknown = [str(name) for name in provider if name not in _OPTIONS[kind]]
    if unknown:
        raise ResilienceError(f"{', '.join(unknown)} is unknown; {kind} knows {', '.join(_OPTIONS[kind])}")
    zone = _name(provider.get("zone"), "zone")
    ttl = provider.get("ttl", DEFAULT_TTL)
    if not isinstance(ttl, int) or isinstance(ttl, bool) or not 0 < ttl <= 86400:
        raise ResilienceError(f"ttl is {ttl!r}, not a number of seconds from 1 to 86400")
    known = [str(cell["name"]) for cell in topology["cells"]]
    cells = provider.get("cells", known)
    if not isinstance(cells, (list, tuple)) or [cell for cell in cells if cell not in known]:
        raise ResilienceError(f"cells must be a list of some of {', '.join(known)}, and is {cells!r}")
    regions = _regions(provider.get("addresses", {}), topology)
    shared: dict[str, t.Any] = {"provider": kind, "zone": zone, "ttl": ttl, "regions": regions}
    shared.update(_update_of(provider, topology, key_secret) if kind == RFC2136 else {"options": _options(provider)})
    found = []
    for cell in cells:
        template = str(provider.get("name", DEFAULT_NAME))
        # A host's name has no underscore, and a server may refuse one that has.
        name = _name(template.replace("{cell}", str(cell).replace("_", "-")).replace("{zone}", zone), "name")
        if name != zone and not name.endswith(f".{zone}"):
            raise ResilienceError(f"name gives {name}, which is not in the zone {zone}")
        found.append({**shared, "cell": str(cell), "name": name})
    return found


def _options(provider: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    options = provider.get("options", {})
    if not isinstance(options, t.Mapping):
        raise ResilienceError("options is no mapping of further arguments of the module")
    return dict(options)


def _update_of(provider: t.Mapping[str, t.Any], topology: t.Mapping[str, t.Any], key_secret: str) -> dict[str, t.Any]:
    own = [
        str(topology["hosts"][host]["address"])
        for hosts in topology["components"].get("dns", {}).values()
        for host in hosts
    ]
    given = provider.get("servers", own)
    if not isinstance(given, (list, tuple)) or not given:
        raise ResilienceError("servers is missing: name the zone's primary server, or put a host into the group dns")
    port = provider.get("port", topology["ports"]["dns"])
    servers = [parse_server(str(server), int(port)) for server in given]
    secret = str(provider.get("key_secret", key_secret))
    # Of base64, and nothing that could end the line that nsupdate reads.
    if not re.fullmatch(r"[A-Za-z0-9+/]{16,}={0,2}", secret) or len(secret) % 4:
        raise ResilienceError("key_secret is no base64 of a TSIG key, as the DNS server has it")
    algorithm = str(provider.get("key_algorithm", ALGORITHMS[0]))
    if algorithm not in ALGORITHMS:
        raise ResilienceError(f"key_algorithm is {algorithm}, and must be one of {', '.join(ALGORITHMS)}")
    return {
        "servers": [f"[{host}]:{number}" if ":" in host else f"{host}:{number}" for host, number in servers],
        "key_name": _name(provider.get("key_name", DEFAULT_KEY), "key_name"),
        "key_secret": secret,
        "key_algorithm": algorithm,
    }


def _regions(addresses: t.Any, topology: t.Mapping[str, t.Any]) -> dict[str, Values]:
    if not isinstance(addresses, t.Mapping):
        raise ResilienceError("addresses is no mapping of regions to lists of addresses")
    unknown = [str(region) for region in addresses if region not in topology["regions"]]
    if unknown:
        raise ResilienceError(f"addresses.{unknown[0]} is no region ({', '.join(topology['regions'])})")
    return {
        region: _values(addresses.get(region, _default_addresses(region, topology)), region)
        for region in topology["regions"]
    }


def _default_addresses(region: str, topology: t.Mapping[str, t.Any]) -> list[str]:
    """A region's edges; where it has none, as with edges on the witness alone, its gateways."""
    for component in ("edge", "gateway"):
        hosts = topology["components"].get(component, {}).get(region, [])
        if hosts:
            return [str(topology["hosts"][host]["address"]) for host in hosts]
    return []


def _values(given: t.Any, region: str) -> Values:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise ResilienceError(
            f"addresses.{region} is missing: region {region} has neither an edge nor a gateway to take it from"
        )
    found: Values = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(str(text))
            found.setdefault("A" if address.version == 4 else "AAAA", []).append(str(address))
        except ValueError:
            found.setdefault("CNAME", []).append(_name(text, f"addresses.{region}"))
    if "CNAME" in found and sum(len(values) for values in found.values()) > 1:
        raise ResilienceError(f"addresses.{region}: a name can stand alone only, without another name or address")
    return {kind: sorted(set(found[kind])) for kind in TYPES if kind in found}


def _name(value: t.Any, what: str) -> str:
    name = str(value or "").rstrip(".").lower()
    if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
        raise ResilienceError(f"{what} is {value!r}, which is no name that DNS knows")
    return name

"""What routing_providers means: which name says what, by the home of its cell, and which calls that takes."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.routing_providers import calls, records

SECRET = "A" * 32
HOSTS = {
    "a1": "192.0.2.11",
    "a2": "192.0.2.12",
    "b1": "198.51.100.11",
    "w1": "203.0.113.11",
}


def topology(**components: dict[str, list[str]]) -> dict[str, t.Any]:
    return {
        "regions": ["a", "b"],
        "hosts": {host: {"address": address} for host, address in HOSTS.items()},
        "components": {
            "gateway": {"a": ["a1", "a2"], "b": ["b1"]},
            "edge": {"witness": ["w1"]},
            "dns": {"witness": ["w1"]},
            **components,
        },
        "cells": [{"name": "main"}, {"name": "eu_two"}],
        "ports": {"dns": 53},
    }


RFC2136 = {"provider": "rfc2136", "zone": "example.org"}


def test_the_defaults_are_enough_for_the_stacks_own_server() -> None:
    found = records([RFC2136], topology(), SECRET)
    assert [(one["cell"], one["name"]) for one in found] == [
        ("main", "main.example.org"),
        ("eu_two", "eu-two.example.org"),
    ]
    one = found[0]
    assert one["servers"] == ["203.0.113.11:53"] and one["ttl"] == 30
    assert (one["key_name"], one["key_secret"], one["key_algorithm"]) == ("shannon-update", SECRET, "hmac-sha256")
    # All edges are on the witness, so what differs by region are the gateways.
    assert one["regions"] == {"a": {"A": ["192.0.2.11", "192.0.2.12"]}, "b": {"A": ["198.51.100.11"]}}


def test_a_regions_own_edges_come_before_its_gateways() -> None:
    found = records([RFC2136], topology(edge={"a": ["a2"], "b": ["b1"]}), SECRET)
    assert found[0]["regions"] == {"a": {"A": ["192.0.2.12"]}, "b": {"A": ["198.51.100.11"]}}


def test_everything_can_be_said_otherwise() -> None:
    given = {
        **RFC2136,
        "name": "ai-{cell}.{zone}",
        "ttl": 60,
        "cells": ["main"],
        "servers": ["ns1.example.org", "2001:db8::53"],
        "port": 5353,
        "key_name": "Mine.",
        "key_secret": "bWluZW1pbmVtaW5lbWluZQ==",
        "key_algorithm": "hmac-sha512",
        "addresses": {"a": ["192.0.2.80", "2001:db8:0::80"], "b": "lb.example.net"},
    }
    (one,) = records([given], topology(), SECRET)
    assert one["name"] == "ai-main.example.org"
    assert one["servers"] == ["ns1.example.org:5353", "[2001:db8::53]:5353"]
    assert one["key_name"] == "mine" and one["key_secret"] == given["key_secret"]
    assert one["regions"] == {"a": {"A": ["192.0.2.80"], "AAAA": ["2001:db8::80"]}, "b": {"CNAME": ["lb.example.net"]}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"provider": "bind"}, "provider must be one of rfc2136, route53, cloudflare"),
        ({"zone": None}, "zone is None"),
        ({"zone": "-bad-.org"}, "no name that DNS knows"),
        ({"ttl": 0}, "ttl is 0"),
        ({"ttl": "30"}, "ttl is '30'"),
        ({"cells": ["other"]}, "cells must be a list of some of main, eu_two"),
        ({"name": "{cell}.example.net"}, "not in the zone example.org"),
        ({"name": "all.{zone}"}, "share the name all.example.org"),
        ({"addresses": {"c": ["192.0.2.1"]}}, "addresses.c is no region"),
        ({"addresses": {"a": []}}, "addresses.a is missing"),
        ({"addresses": {"a": ["lb.example.net", "192.0.2.1"]}}, "can stand alone only"),
        ({"servers": []}, "servers is missing"),
        ({"servers": ["host:99999"]}, "is no DNS server"),
        ({"key_secret": "short"}, "no base64"),
        ({"key_secret": "AAAAAAAAAAAAAAAA\nupdate delete example.org NS"}, "no base64"),
        ({"key_algorithm": "hmac-md5"}, "key_algorithm is hmac-md5"),
        ({"profile": "x"}, "profile is unknown"),
    ],
)
def test_mistakes_are_named(change: dict[str, t.Any], expected: str) -> None:
    with pytest.raises(ResilienceError) as caught:
        records([{**RFC2136, **change}], topology(), SECRET)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(("routing_providers[0]: ", "the cells "))


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ResilienceError) as caught:
        records([{"provider": "x"}, {**RFC2136, "ttl": -1}], topology(), SECRET)
    assert "routing_providers[0]" in str(caught.value) and "routing_providers[1]" in str(caught.value)


def test_a_server_is_needed() -> None:
    with pytest.raises(ResilienceError, match="put a host into the group dns"):
        records([RFC2136], topology(dns={}), SECRET)


def test_a_call_says_where_the_cell_lives() -> None:
    entries = records([RFC2136], topology(), SECRET)
    (one,) = calls(
        entries, "rfc2136", {"main": "b"}
    )  # the other cell has no record in the registry, so its name is left alone
    assert one == {
        "zone": "example.org",
        "name": "main.example.org",
        "ttl": 30,
        "servers": ["203.0.113.11:53"],
        "key_name": "shannon-update",
        "key_secret": SECRET,
        "key_algorithm": "hmac-sha256",
        "values": {"A": ["198.51.100.11"]},
    }
    assert calls(entries, "route53", {"main": "b"}) == []


_FILTERS = """
import json, sys
from ansible.errors import AnsibleFilterError
from ansible_collections.shannon.resilience.plugins.filter import routing_calls, routing_records
given = json.load(sys.stdin)
found = routing_calls.FilterModule().filters()["routing_calls"](*given)
try:
    routing_records.FilterModule().filters()["routing_records"]([{"provider": "x"}], given[2])
except AnsibleFilterError as exc:
    print(json.dumps([found, str(exc)]))
"""


def test_the_filters_give_what_the_library_does() -> None:
    """In a process of their own: what they import makes modules run in this one keep their warnings to themselves."""
    given = json.dumps([[RFC2136], "rfc2136", topology(), {"main": "b"}, SECRET])
    done = subprocess.run([sys.executable, "-c", _FILTERS], input=given, capture_output=True, text=True, check=True)
    found, error = json.loads(done.stdout)
    assert found == calls(records([RFC2136], topology(), SECRET), "rfc2136", {"main": "b"})
    assert "routing_providers[0]: provider must be one of" in error


ROUTE53 = {
    "provider": "route53",
    "zone": "example.com",
    "cells": ["main"],
    "options": {"profile": "shannon"},
    "addresses": {"a": ["192.0.2.80", "2001:db8::80"], "b": ["198.51.100.80"]},
}


def test_route53_drops_what_the_home_does_not_have_and_replaces_the_rest() -> None:
    shared = {"zone": "example.com", "record": "main.example.com", "ttl": 30, "profile": "shannon"}
    entries = records([ROUTE53], topology())
    assert calls(entries, "route53", {"main": "a"}) == [
        {**shared, "type": "A", "state": "present", "overwrite": True, "value": ["192.0.2.80"]},
        {**shared, "type": "AAAA", "state": "present", "overwrite": True, "value": ["2001:db8::80"]},
    ]
    assert calls(entries, "route53", {"main": "b"}) == [
        {**shared, "type": "AAAA", "state": "absent"},
        {**shared, "type": "A", "state": "present", "overwrite": True, "value": ["198.51.100.80"]},
    ]


CLOUDFLARE = {**ROUTE53, "provider": "cloudflare", "options": {"api_token": "hush"}}


def test_cloudflare_gets_a_call_for_each_value_new_ones_first() -> None:
    found = calls(records([CLOUDFLARE], topology()), "cloudflare", {"main": "b"})
    assert [(one["state"], one["type"], one["value"]) for one in found] == [
        ("present", "A", "198.51.100.80"),
        ("absent", "A", "192.0.2.80"),
        ("absent", "AAAA", "2001:db8::80"),
    ]
    assert {one["api_token"] for one in found} == {"hush"} and {one["ttl"] for one in found} == {60}


def test_cloudflare_takes_addresses_away_before_a_name_comes() -> None:
    given = {**CLOUDFLARE, "addresses": {"a": ["192.0.2.80"], "b": "lb.example.net"}}
    found = calls(records([given], topology()), "cloudflare", {"main": "b"})
    assert [(one["state"], one["type"]) for one in found] == [("absent", "A"), ("present", "CNAME")]


def test_an_address_that_both_regions_share_stays() -> None:
    given = {**CLOUDFLARE, "addresses": {"a": ["192.0.2.80", "192.0.2.81"], "b": ["192.0.2.80"]}}
    found = calls(records([given], topology()), "cloudflare", {"main": "b"})
    assert [(one["state"], one["value"]) for one in found] == [("present", "192.0.2.80"), ("absent", "192.0.2.81")]


def test_the_arguments_are_those_of_the_modules() -> None:
    """By the installed collections' own argument specs, since neither service can be reached by a test."""
    yaml = pytest.importorskip("yaml")
    for provider, name in (("route53", "amazon.aws.route53"), ("cloudflare", "community.general.cloudflare_dns")):
        module = pytest.importorskip(
            f"ansible_collections.{name.rpartition('.')[0]}.plugins.modules.{name.rpartition('.')[2]}"
        )
        options = yaml.safe_load(module.DOCUMENTATION)["options"]
        given = {"route53": ROUTE53, "cloudflare": CLOUDFLARE}[provider]
        for home in ("a", "b"):
            for call in calls(records([given], topology()), provider, {"main": home}):
                own = set(call) - {"profile"}  # of a fragment that all modules of the collection share
                assert own <= set(options), name
                assert call["state"] in options["state"]["choices"]
                assert call["type"] in options["type"]["choices"]

#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_records
short_description: Have names in DNS say given addresses, by dynamic updates
version_added: "0.1.0"
description:
  - Asks each name's servers what they say, and changes by dynamic update (RFC 2136), signed with a key (TSIG), what is
    different. All of a name changes in one step, and what it says is read again afterwards.
  - All names on all servers are brought about at once, so a dead server costs one O(timeout) and keeps no other
    from its change; then the module fails, and says of each server what is amiss.
  - It is what the region agents do after a failover without a playbook, with the same code.
requirements:
  - C(nsupdate) and C(dig), of Debian's package C(bind9-dnsutils), on the host that runs it.
options:
  records:
    description: The names. The filter P(shannon.resilience.routing_calls#filter) makes them of C(routing_providers).
    type: list
    elements: dict
    required: true
    suboptions:
      zone:
        description: The zone that is changed.
        type: str
        required: true
      name:
        description: The whole name, in O(records[].zone), without a dot at its end.
        type: str
        required: true
      ttl:
        description: Seconds for which an answer may be kept.
        type: int
        required: true
      values:
        description: C(A), C(AAAA) or C(CNAME) to lists of what it says. The name gets these and no others.
        type: dict
        required: true
      servers:
        description: The zone's primary servers, each as C(host), C(host:port) or C([address]:port).
        type: list
        elements: str
        required: true
      key_name:
        description: Name of the key.
        type: str
        required: true
      key_secret:
        description: The key as base64.
        type: str
        required: true
      key_algorithm:
        description: What it is used with.
        type: str
        choices: [hmac-sha256, hmac-sha384, hmac-sha512]
        default: hmac-sha256
  timeout:
    description: Seconds that one question or one update may take.
    type: float
    default: 3
attributes:
  check_mode:
    description: Can run in check mode; the servers are asked, and nothing is changed.
    support: full
  diff_mode:
    description: Shows what each changed name said and says.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Have the names say where the cells live
  shannon.resilience.dns_records:
    records: "{{ routing_providers | shannon.resilience.routing_calls('rfc2136', shannon_topology, homes, key) }}"
"""

RETURN = r"""
records:
  description: Each name on each server.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    server:
      description: The server.
      type: str
    before:
      description: What it said, in words; empty when that could not be found out.
      type: str
    after:
      description: What it says, in words.
      type: str
    changed:
      description: Whether it was changed, or would be.
      type: bool
    seconds:
      description: How long that took.
      type: float
    error:
      description: Why it is not as it should be; empty when it is.
      type: str
seconds:
  description: How long all of it took.
  returned: always
  type: float
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.concurrently import gather
from ansible_collections.shannon.resilience.plugins.module_utils.dns_update import (
    ALGORITHMS,
    TYPES,
    Change,
    DnsServer,
    Key,
    describe,
    parse_server,
)
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError

RECORD = {
    "zone": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "ttl": {"type": "int", "required": True},
    "values": {"type": "dict", "required": True},
    "servers": {"type": "list", "elements": "str", "required": True},
    "key_name": {"type": "str", "required": True, "no_log": False},
    "key_secret": {"type": "str", "required": True, "no_log": True},
    "key_algorithm": {"type": "str", "choices": list(ALGORITHMS), "default": ALGORITHMS[0], "no_log": False},
}


def call(record: t.Mapping[str, t.Any], server: str, timeout: float, check: bool) -> t.Callable[[], Change]:
    """What brings one name about on one server."""

    def bring() -> Change:
        unknown = [kind for kind in record["values"] if kind not in TYPES]
        if unknown:
            raise ResilienceError(f"{unknown[0]} is none of {', '.join(TYPES)}")
        key = Key(record["key_name"], record["key_secret"], record["key_algorithm"])
        host, port = parse_server(server)
        known = DnsServer(host, port, record["zone"], key, timeout)
        return known.bring(record["name"], record["ttl"], record["values"], check)

    return bring


def told(name: str, server: str, change: Change | ResilienceError) -> dict[str, t.Any]:
    """What became of a name on a server."""
    found: dict[str, t.Any] = {"name": name, "server": server, "error": ""}
    if isinstance(change, Change):
        facts = {"before": describe(change.before), "after": describe(change.after)}
        return {**found, **facts, "changed": change.changed, "seconds": change.seconds}
    return {**found, "before": "", "after": "", "changed": False, "seconds": 0.0, "error": str(change)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "records": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": RECORD,
            },
            "timeout": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    began = time.monotonic()
    calls = {
        (record["zone"], record["name"], server): call(record, server, module.params["timeout"], module.check_mode)
        for record in module.params["records"]
        for server in record["servers"]
    }
    answers = gather(calls)
    found = [told(name, server, answers[zone, name, server]) for zone, name, server in calls]
    changed = [one for one in found if one["changed"]]
    answer = {
        "records": found,
        "changed": bool(changed),
        "seconds": round(time.monotonic() - began, 2),
        "diff": [
            {
                "before_header": f"{one['name']} on {one['server']}",
                "after_header": f"{one['name']} on {one['server']}",
                "before": one["before"] + "\n",
                "after": one["after"] + "\n",
            }
            for one in changed
        ],
    }
    errors = [one["error"] for one in found if one["error"]]
    if errors:
        module.fail_json(msg=" ".join(f"{error}." for error in errors), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()

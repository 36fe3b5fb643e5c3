#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: health_check
short_description: Probe endpoints through circuit breakers that outlive the run
version_added: "0.1.0"
description:
  - Probes all endpoints at once, each the way its type is asked for its health, and says how bad it is all in all.
  - Each endpoint has a circuit breaker, kept in a file. However many endpoints are dead, they cost one timeout; and on
    the next run, while their breakers are open, nothing. When a breaker's time is over, one probe finds out whether
    the endpoint is back; while it is not, that is tried less and less often.
  - M(shannon.resilience.circuit_breaker) shows those breakers, and resets, forces open or disables them.
  - An endpoint that is down does not fail the task; RV(aggregate) says what to make of it.
options:
  endpoints:
    description: What to probe.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the endpoint and of its breaker. By default as in C(redis@a1:6379).
        type: str
      type:
        description:
          - How it is probed.
          - V(postgres) is well when it answers a startup packet, V(redis) and V(sentinel) when they answer C(PING),
            V(patroni), V(qdrant) and V(etcd) when their health endpoint says so, V(http) when it answers with one of
            O(endpoints[].statuses), V(grpc) when the standard health service says C(SERVING) (or there is no such
            service), V(tcp) when it can be connected.
        type: str
        required: true
        choices: [postgres, patroni, redis, sentinel, qdrant, etcd, http, grpc, tcp]
      host:
        description: Its name or address.
        type: str
        required: true
      port:
        description: Its port. Those of V(http), V(grpc) and V(tcp) must be given.
        type: int
      critical:
        description: Whether all is unhealthy, rather than degraded, without it.
        type: bool
        default: true
      timeout:
        description: Seconds that it may take; by default O(timeout).
        type: float
      tls:
        description: Whether to talk TLS.
        type: bool
        default: true
      server_name:
        description: The name or address that its certificate must have; by default O(endpoints[].host).
        type: str
        default: ""
      username:
        description: User to log in as, for Redis; user of the startup packet, for PostgreSQL.
        type: str
        default: ""
      password:
        description: Password, for Redis and Sentinel.
        type: str
        default: ""
      api_key:
        description: API key, for Qdrant.
        type: str
        default: ""
      database:
        description: Database of the startup packet, for PostgreSQL.
        type: str
        default: postgres
      path:
        description: Path to ask for, of those that talk HTTP; by default what is usual for the type.
        type: str
        default: ""
      statuses:
        description: What it may answer with, of those that talk HTTP.
        type: list
        elements: int
        default: [200]
      service:
        description: The service to ask gRPC's health service about; by default the server as a whole.
        type: str
        default: ""
  timeout:
    description: Seconds that an endpoint may take.
    type: float
    default: 2
  path:
    description:
      - File that the breakers are kept in.
      - When it can't be used, all endpoints are probed nevertheless, and a warning and RV(storage) say why.
    type: path
    default: /var/lib/shannon/breakers.json
  failure_threshold:
    description: Failures in a row that open a breaker.
    type: int
    default: 1
  success_threshold:
    description: Successes in a row that close it again.
    type: int
    default: 1
  open_time:
    description: Seconds that a breaker stays open at first; it doubles each time the endpoint is found dead again.
    type: float
    default: 30
  open_time_max:
    description: Seconds that it stays open at most.
    type: float
    default: 300
extends_documentation_fragment:
  - shannon.resilience.tls
attributes:
  check_mode:
    description: Can run in check mode; it probes then, but does not keep what it finds.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
seealso:
  - module: shannon.resilience.circuit_breaker
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Look at the data tier of a region
  shannon.resilience.health_check:
    endpoints:
      - {type: patroni, host: 192.0.2.1}
      - {type: redis, host: 192.0.2.1, username: monitor, password: "{{ redis_monitor_password }}", critical: false}
      - {type: qdrant, host: 192.0.2.1, critical: false}
  register: health

- name: Stop when something critical is down
  ansible.builtin.assert:
    that: health.aggregate.status != 'unhealthy'
    fail_msg: "down: {{ health.aggregate.failed | join(', ') }}"

- name: From the controller, with breakers of its own
  shannon.resilience.health_check:
    endpoints:
      - {name: edge, type: http, host: shannon.example.com, port: 443, path: /health}
    path: "{{ lookup('env', 'HOME') }}/.cache/shannon-breakers.json"
  delegate_to: localhost
"""

RETURN = r"""
endpoints:
  description: What was found, in the order in which they were given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the endpoint.
      type: str
    type:
      description: Its type.
      type: str
    host:
      description: Its host.
      type: str
    port:
      description: Its port.
      type: int
    critical:
      description: Whether it is critical.
      type: bool
    healthy:
      description: Whether it is well.
      type: bool
    probed:
      description: Whether it was asked; not while its breaker is open.
      type: bool
    latency_ms:
      description: Milliseconds that it took, connecting included; null unless it is well.
      type: float
    error:
      description: What is wrong; empty when it is well.
      type: str
    breaker:
      description:
        - Its breaker after this run, with C(state) (closed, half-open or open), C(control) (none, forced_open or
          disabled), C(counts), and C(retry_after), the seconds until it is probed again.
      type: dict
aggregate:
  description: All of them together.
  returned: success
  type: dict
  contains:
    level:
      description: Level of degradation, 0 to 3, by the default thresholds.
      type: int
    level_name:
      description: none, minor, moderate or severe.
      type: str
    failed:
      description: Names of those that are not well.
      type: list
      elements: str
    status:
      description: unhealthy when a critical one is not well, degraded when another one is not, else healthy.
      type: str
    reason:
      description: Which thresholds were reached; empty at level none.
      type: str
    open_breakers:
      description: Names of those whose breaker is open.
      type: list
      elements: str
storage:
  description: The breakers' file, with C(path), C(kept) (whether it has what this run found), and C(error).
  returned: success
  type: dict
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import dataclasses
import ssl
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.shannon.resilience.plugins.module_utils.circuit_breaker_storage import FileStorage
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.health_check import (
    SETTINGS,
    Endpoint,
    HealthCheck,
    aggregate,
)
from ansible_collections.shannon.resilience.plugins.module_utils.health_probes import KINDS, PORTS, Target
from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS as TLS_ARGUMENTS
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context, files_of

#: Seconds that a probe may be given; a host that needs more is not healthy.
LONGEST = 300.0


class Contexts:
    """TLS contexts, made once and only when an endpoint needs one."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._made: dict[bool, ssl.SSLContext] = {}

    def get(self, kind: str) -> ssl.SSLContext:
        """The one for this kind of endpoint: gRPC needs HTTP/2."""
        http2 = kind == "grpc"
        if http2 not in self._made:
            context = client_context(self._files)
            if http2:
                context.set_alpn_protocols(["h2"])
            self._made[http2] = context
        return self._made[http2]


def endpoints(params: dict[str, t.Any]) -> list[Endpoint]:
    """What the options ask for.

    :raises ResilienceError: an endpoint makes no sense.
    """
    contexts = Contexts(files_of(params))
    found: dict[str, Endpoint] = {}
    for given in params["endpoints"]:
        kind, host = given["type"], given["host"]
        port = given["port"] if given["port"] is not None else PORTS.get(kind)
        if port is None:
            raise ResilienceError(f"endpoint {given['name'] or host}: a port is needed, since {kind} has no usual one")
        if not 0 < port < 65536:
            raise ResilienceError(f"endpoint {given['name'] or host}: port is {port}; allowed: 1 to 65535")
        name = given["name"] or f"{kind}@{host}:{port}"
        timeout = given["timeout"] if given["timeout"] is not None else params["timeout"]
        if not 0 < timeout <= LONGEST:
            raise ResilienceError(f"endpoint {name}: timeout is {timeout:g} s; allowed: above 0 to {LONGEST:g}")
        if name in found:
            raise ResilienceError(f"endpoint {name} is given twice: each needs a name, and a breaker, of its own")
        found[name] = Endpoint(
            name,
            Target(
                kind=kind,
                host=host,
                port=port,
                timeout=timeout,
                context=contexts.get(kind) if given["tls"] else None,
                server_name=given["server_name"],
                username=given["username"],
                password=given["password"],
                api_key=given["api_key"],
                database=given["database"],
                path=given["path"],
                statuses=tuple(given["statuses"]),
                service=given["service"],
            ),
            given["critical"],
        )
    return list(found.values())


def run(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    begun = time.monotonic()
    wanted = endpoints(params)
    try:
        settings = dataclasses.replace(
            SETTINGS,
            failure_threshold=params["failure_threshold"],
            success_threshold=params["success_threshold"],
            timeout=params["open_time"],
            timeout_max=params["open_time_max"],
            # A run that is killed while it probes must not keep the next ones from doing so for longer.
            probe_timeout=max((one.target.timeout for one in wanted), default=1.0) + 5,
        )
    except ValueError as exc:
        raise ResilienceError(f"{exc} (of the options open_time is timeout, open_time_max is timeout_max)") from exc
    storage = FileStorage(params["path"], read_only=module.check_mode)
    check = HealthCheck(wanted, storage, settings)
    findings = check.run()
    for text in storage.warnings:
        module.warn(text)
    if check.storage_error:
        module.warn(f"{check.storage_error}. Endpoints were probed, but the next run will not know what this one found")
    return {
        "changed": False,
        "endpoints": [finding.as_dict() for finding in findings],
        "aggregate": aggregate(findings),
        "storage": {
            "path": params["path"],
            "kept": not module.check_mode and not check.storage_error,
            "error": check.storage_error,
        },
        "seconds": round(time.monotonic() - begun, 3),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str"},
                    "type": {"type": "str", "required": True, "choices": list(KINDS)},
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int"},
                    "critical": {"type": "bool", "default": True},
                    "timeout": {"type": "float"},
                    "tls": {"type": "bool", "default": True},
                    "server_name": {"type": "str", "default": ""},
                    "username": {"type": "str", "default": ""},
                    "password": {"type": "str", "default": "", "no_log": True},
                    "api_key": {"type": "str", "default": "", "no_log": True},
                    "database": {"type": "str", "default": "postgres"},
                    "path": {"type": "str", "default": ""},
                    "statuses": {"type": "list", "elements": "int", "default": [200]},
                    "service": {"type": "str", "default": ""},
                },
            },
            "timeout": {"type": "float", "default": 2},
            "path": {"type": "path", "default": "/var/lib/shannon/breakers.json"},
            "failure_threshold": {"type": "int", "default": 1},
            "success_threshold": {"type": "int", "default": 1},
            "open_time": {"type": "float", "default": 30},
            "open_time_max": {"type": "float", "default": 300},
            **TLS_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()

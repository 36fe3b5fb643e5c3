#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_certificates
short_description: Keep a CA and one certificate per host on the controller
version_added: "0.1.0"
description:
  - Makes the CA once, and for each host a key and a certificate for servers and clients alike, whose names are the
    host's name, its address, C(localhost) and C(127.0.0.1).
  - A certificate is renewed before it ends, and when the host's name or address or the CA changed.
  - A CA of which half is missing or damaged is never replaced; that would lock out every deployed host.
  - Run it on the controller.
requirements:
  - cryptography (on the controller)
options:
  path:
    description: Folder on the controller, made with mode 0700; it should be ignored by git.
    type: path
    required: true
  hosts:
    description: Name and IP address of each host.
    type: dict
    required: true
  days:
    description: For how many days a new certificate is valid.
    type: int
    default: 397
  renew_before_days:
    description: How many days before its end a certificate is renewed.
    type: int
    default: 30
  ca_cert_file:
    description: The certificate of a CA that you bring yourself, in PEM.
    type: path
  ca_key_file:
    description: The key of O(ca_cert_file), an elliptic curve key in PEM without a password.
    type: path
attributes:
  check_mode:
    description: Can run in check mode; nothing is written then.
    support: full
  diff_mode:
    description: Shows for each host why it gets a new certificate.
    support: full
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Keep a certificate per host
  shannon.resilience.host_certificates:
    path: "{{ inventory_dir }}/.secrets/pki"
    hosts: {a1: 192.0.2.1, a2: 192.0.2.2}
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
renewed:
  description: For each host that gets a new certificate, why.
  returned: success
  type: dict
expires:
  description: For each host when its certificate ends, in UTC; hosts that have none yet are left out.
  returned: success
  type: dict
ca_created:
  description: Whether the CA was made now.
  returned: success
  type: bool
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.shannon.resilience.plugins.module_utils import pki
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    now = pki.utc_now()
    folder = pki.Folder.at(params["path"], params["ca_cert_file"] or "", params["ca_key_file"] or "")
    if module.check_mode:
        return _look(folder, params, now)
    with pki.locked(folder):
        authority = pki.load_authority(folder)
        created = authority is None
        if authority is None:
            authority = pki.make_authority(folder, now)
        renewed = _reasons(folder, authority, params, now)
        for host in renewed:
            pki.issue(folder, authority, host, params["hosts"][host], params["days"], now)
        return _result(folder, params, renewed, created)


def _look(folder: t.Any, params: dict[str, t.Any], now: t.Any) -> dict[str, t.Any]:
    authority = pki.load_authority(folder)
    return _result(folder, params, _reasons(folder, authority, params, now), authority is None)


def _reasons(folder: t.Any, authority: t.Any, params: dict[str, t.Any], now: t.Any) -> dict[str, str]:
    reasons = {
        host: pki.reason_to_renew(folder, authority, host, address, params["renew_before_days"], now)
        for host, address in params["hosts"].items()
    }
    return {host: reason for host, reason in reasons.items() if reason}


def _result(folder: t.Any, params: dict[str, t.Any], renewed: dict[str, str], created: bool) -> dict[str, t.Any]:
    expires = {}
    for host in params["hosts"]:
        try:
            expires[host] = pki.end_of(folder, host).strftime("%Y-%m-%dT%H:%M:%SZ")
        except ResilienceError:
            continue  # none yet, in check mode
    after = "".join(f"{host}: new certificate, since {reason}\n" for host, reason in sorted(renewed.items()))
    return {
        "changed": created or bool(renewed),
        "renewed": renewed,
        "expires": expires,
        "ca_created": created,
        "diff": {"before": "", "after": ("new CA\n" if created else "") + after},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "hosts": {"type": "dict", "required": True},
            "days": {"type": "int", "default": 397},
            "renew_before_days": {"type": "int", "default": 30},
            "ca_cert_file": {"type": "path"},
            "ca_key_file": {"type": "path", "no_log": False},
        },
        required_together=[("ca_cert_file", "ca_key_file")],
        supports_check_mode=True,
    )
    if not pki.HAS_CRYPTOGRAPHY:
        module.fail_json(msg=missing_required_lib("cryptography"))
    try:
        module.exit_json(**ensure(module))
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"cannot keep certificates in {module.params['path']}: {exc.strerror or exc}")


if __name__ == "__main__":
    main()

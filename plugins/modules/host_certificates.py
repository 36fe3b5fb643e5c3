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
  - No certificate outlives the CA. From O(days) days before the CA's end on, there is a warning.
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
    description:
      - The certificate of a CA that you bring yourself, in PEM.
      - The issuing certificate comes first; those above it, up to the root, follow.
    type: path
  ca_key_file:
    description: The key of O(ca_cert_file), an elliptic curve or RSA key in PEM without a password.
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
expires_first:
  description: The host whose certificate ends first; empty when there is none yet.
  returned: success
  type: str
ca_expires:
  description: When the CA ends, in UTC; empty in check mode when there is none yet.
  returned: success
  type: str
ca_created:
  description: Whether the CA was made now.
  returned: success
  type: bool
"""

import typing as t
from datetime import timedelta

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.shannon.resilience.plugins.module_utils import pki
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError

STAMP = "%Y-%m-%dT%H:%M:%SZ"


def ensure(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    now = pki.utc_now()
    folder = pki.Folder.at(params["path"], params["ca_cert_file"] or "", params["ca_key_file"] or "")
    if module.check_mode:
        return _look(folder, params, now)
    with pki.locked(folder):
        authority = pki.load_authority(folder, now)
        created = authority is None
        if authority is None:
            authority = pki.make_authority(folder, now)
        renewed = _reasons(folder, authority, params, now)
        for host in renewed:
            pki.issue(folder, authority, host, params["hosts"][host], params["days"], now)
        return _result(folder, params, renewed, created, authority.ends)


def _look(folder: t.Any, params: dict[str, t.Any], now: t.Any) -> dict[str, t.Any]:
    authority = pki.load_authority(folder, now)
    ends = None if authority is None else authority.ends
    return _result(folder, params, _reasons(folder, authority, params, now), authority is None, ends)


def _reasons(folder: t.Any, authority: t.Any, params: dict[str, t.Any], now: t.Any) -> dict[str, str]:
    reasons = {
        host: pki.reason_to_renew(folder, authority, host, address, params["renew_before_days"], now)
        for host, address in params["hosts"].items()
    }
    return {host: reason for host, reason in reasons.items() if reason}


def _result(
    folder: t.Any, params: dict[str, t.Any], renewed: dict[str, str], created: bool, ca_ends: t.Any
) -> dict[str, t.Any]:
    expires = {}
    for host in params["hosts"]:
        try:
            expires[host] = pki.end_of(folder, host).strftime(STAMP)
        except ResilienceError:
            continue  # none yet, in check mode
    after = "".join(f"{host}: new certificate, since {reason}\n" for host, reason in sorted(renewed.items()))
    return {
        "changed": created or bool(renewed),
        "renewed": renewed,
        "expires": expires,
        "expires_first": min(expires, key=expires.__getitem__, default=""),
        "ca_expires": ca_ends.strftime(STAMP) if ca_ends else "",
        "ca_created": created,
        "diff": {"before": "", "after": ("new CA\n" if created else "") + after},
    }


def _warn_of_the_cas_end(module: AnsibleModule, ca_expires: str) -> None:
    # No certificate outlives its CA, so from here on certificates get shorter.
    if ca_expires and ca_expires < (pki.utc_now() + timedelta(days=module.params["days"])).strftime(STAMP):
        module.warn(
            f"the CA ends on {ca_expires[:10]}, which is less than {module.params['days']} days away, and every host's "
            "certificate ends with it: change to a new CA as roles/pki/README.md says"
        )


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
        result = ensure(module)
        _warn_of_the_cas_end(module, result["ca_expires"])
        module.exit_json(**result)
    except ResilienceError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"cannot keep certificates in {module.params['path']}: {exc.strerror or exc}")


if __name__ == "__main__":
    main()

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which a module is told its certificate; their argument spec is ARGUMENTS of module_utils/tls.py."""

from __future__ import annotations


class ModuleDocFragment:
    """What Ansible puts into the documentation of modules that name C(shannon.resilience.tls)."""

    DOCUMENTATION = r"""
options:
  ca_file:
    description: The CA that the certificates of whom the module talks to must come from.
    type: path
    default: /etc/shannon/pki/ca.crt
  cert_file:
    description: The certificate to present.
    type: path
    default: /etc/shannon/pki/host.crt
  key_file:
    description: The key of O(cert_file).
    type: path
    default: /etc/shannon/pki/host.key
"""

#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: reachable
short_description: Tell which hosts answer on their ssh port
version_added: "0.1.0"
description:
  - Connects from the controller to the ssh port of each host, all at once, and waits for the ssh banner, since a paused
    host accepts connections too. Ten dead hosts cost one timeout.
  - Nobody is marked unreachable by it, so a play can choose whom to work on.
  - This is an action plugin; addresses and ports are the hosts' C(ansible_host) and C(ansible_port).
options:
  hosts:
    description: Names of the inventory's hosts to ask.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds that a host has to accept the connection, and again to send its banner.
    type: float
    default: 1.5
attributes:
  check_mode:
    description: Can run in check mode; never changes anything.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: See which hosts of region b answer
  shannon.resilience.reachable:
    hosts: "{{ groups['region_b'] }}"
  register: found
"""

RETURN = r"""
reachable:
  description: Names of the hosts that answered, in the order given.
  returned: success
  type: list
  elements: str
silent:
  description: For each host that did not, what happened instead.
  returned: success
  type: dict
"""

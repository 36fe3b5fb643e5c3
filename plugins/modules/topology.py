#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: topology
short_description: Check an inventory's regions, cells and groups, and derive the topology from them
version_added: "0.1.0"
description:
  - Reads the variables C(regions), C(cells) and optionally C(ports), the groups and the hosts' addresses of the
    whole inventory, and fails with one sentence for each thing that is wrong with them, naming the variable or group
    and the file to look at.
  - Otherwise returns everything that roles derive from them. Ports are offset by the cell's position in C(cells), so
    add new cells at the end.
  - A host's address is its C(shannon_address), else its C(ansible_host), else its name; names are resolved on the
    controller.
  - This is an action plugin; it runs on the controller and connects to no host.
options:
  records:
    description:
      - What the registry knows, as C(shannon.resilience.registry_cell_info) returns it, a mapping of cell names to
        mappings with C(home), C(epoch) and C(state).
      - It outranks the first home that C(cells) gives.
    type: dict
    default: {}
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
- name: Derive the topology, or say what is wrong with the inventory
  shannon.resilience.topology:
  register: derived
  run_once: true

- name: Show where each cell lives
  ansible.builtin.debug:
    msg: "{{ derived.topology.cells | items2dict(key_name='name', value_name='home') }}"
"""

RETURN = r"""
topology:
  description: The derived topology.
  returned: success
  type: dict
  contains:
    regions:
      description: Names of the regions, in the order of the file.
      type: list
      elements: str
    hosts:
      description: For each host its C(address), C(region) and C(components).
      type: dict
    components:
      description: For each component the hosts by region.
      type: dict
    cells:
      description: For each cell its C(name), C(index), C(home), C(standbys), C(epoch), C(state) and C(ports).
      type: list
      elements: dict
    ports:
      description: Ports that a host has once.
      type: dict
    firewall:
      description: For each host the TCP ports that it accepts from the other hosts of the topology.
      type: dict
    public:
      description: For each host the TCP ports that it accepts from anywhere; those of an edge and of a DNS server.
      type: dict
    public_udp:
      description: For each host the UDP ports that it accepts from anywhere; that of a DNS server.
      type: dict
problems:
  description: What is wrong, a sentence each.
  returned: always
  type: list
  elements: str
"""

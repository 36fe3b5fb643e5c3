#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: status_table
short_description: Print what cell_info found as a table that fits 100 columns
version_added: "0.1.0"
description:
  - Prints to the terminal on the controller, whatever callback plugin is in use, and returns the same lines.
  - This is an action plugin; it connects to no host.
options:
  info:
    description: What M(shannon.resilience.cell_info) returned as C(info).
    type: dict
    required: true
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
- name: Print who is what and how far behind
  shannon.resilience.status_table:
    info: "{{ found.info }}"
"""

RETURN = r"""
lines:
  description: The lines that were printed.
  returned: success
  type: list
  elements: str
"""

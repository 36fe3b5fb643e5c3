#!/usr/bin/python
# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: move_summary
short_description: Print what became of moves, and fail when one was refused or failed
version_added: "0.1.0"
description:
  - Prints to the terminal on the controller, whatever callback plugin is in use, and returns the same lines.
  - This is an action plugin; it connects to no host.
options:
  moves:
    description: What M(shannon.resilience.cell_move) returned as C(moves).
    type: list
    elements: dict
    required: true
  skipped_cells:
    description: What it returned as C(skipped_cells).
    type: dict
    default: {}
  reports:
    description: Pages that were written.
    type: list
    elements: str
    default: []
  error:
    description: Why nothing was moved at all.
    type: str
    default: ''
attributes:
  check_mode:
    description: Can run in check mode; never changes anything itself.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Say what became of it
  shannon.resilience.move_summary:
    moves: "{{ moved.moves }}"
"""

RETURN = r"""
lines:
  description: The lines that were printed.
  returned: always
  type: list
  elements: str
"""

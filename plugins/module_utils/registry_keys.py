# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry's keys that movers, edges and region agents share; those of records and leases are beside their code."""

from __future__ import annotations

#: Who moves a cell now; a name of a cell follows.
MOVES = "/shannon/moves/"
#: What an edge says of a cell's requests: the edge's host, a slash and the cell follow.
EDGES = "/shannon/edges/"
#: Figures of a move: the cell, a slash and the epoch follow.
REPORTS = "/shannon/reports/"
#: A move that waits for a second person's word: the cell follows.
APPROVALS = "/shannon/approvals/"

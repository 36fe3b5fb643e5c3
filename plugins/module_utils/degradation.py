# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Graceful degradation, all of it in one place to import from (seed facts 2).

Dependencies are reported to a :class:`DegradationManager`, which assesses how bad it is; a :class:`ModeManager` and a
:class:`FallbackPolicy` ask for that assessment at each decision.
"""

from __future__ import annotations

from .degradation_levels import (
    DEFAULT_THRESHOLDS,
    Assessment,
    DegradationManager,
    DependencyHealth,
    Level,
    Observer,
    Status,
    Threshold,
    Thresholds,
    assess,
    canonical,
    level_of,
)
from .mode_manager import Behaviour, Decision, FallbackPolicy, Mode, ModeManager, Reason, Rule

__all__ = [
    "DEFAULT_THRESHOLDS",
    "Assessment",
    "Behaviour",
    "Decision",
    "DegradationManager",
    "DependencyHealth",
    "FallbackPolicy",
    "Level",
    "Mode",
    "ModeManager",
    "Observer",
    "Reason",
    "Rule",
    "Status",
    "Threshold",
    "Thresholds",
    "assess",
    "canonical",
    "level_of",
]

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from shannon.services.common import logs
from shannon.services.proto import shannon_pb2 as pb


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    :ivar identity: what rate limits count for: C(key:<id>) or C(user:<tenant>:<user>).
    """

    tenant_id: str
    user_id: str
    tier: str
    identity: str

    def caller(self) -> pb.Caller:
        """For the orchestrator."""
        return pb.Caller(tenant_id=self.tenant_id, user_id=self.user_id, request_id=logs.request_id.get())

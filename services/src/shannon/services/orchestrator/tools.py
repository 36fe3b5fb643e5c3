# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools: the built-in ones of agent-core, and those that a tenant uploaded, which PostgreSQL keeps."""

from __future__ import annotations

import asyncio
import hashlib
import time
import typing as t
from dataclasses import dataclass

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shannon.resilience.circuit_breaker import CircuitBreaker
from shannon.resilience.errors import ResilienceError
from shannon.services.common import breakers, logs
from shannon.services.common.deployment import Tls
from shannon.services.common.grpc_client import NoEndpointError, Pool
from shannon.services.common.turns import Turns
from shannon.services.database.client import Database, Row
from shannon.services.proto import shannon_pb2 as pb
from shannon.services.proto import shannon_pb2_grpc as stubs

_log = logs.get(__name__)
#: Seconds that the list of built-in tools is taken for granted; a new release brings others.
_FRESH = 60.0
#: What may be wrong with an agent-core that is not wrong with another.
_ELSEWHERE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
)


class ToolError(ResilienceError):
    """A tool could not be run."""


class ToolsAway(ToolError):
    """No agent-core answers."""


class ToolRefused(ToolError):
    """The tool, its name or its input is wrong; agent-core said so."""


@dataclass(frozen=True)
class Tool:
    """A tool; built-in ones have no SHA-256."""

    name: str
    description: str
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Run:
    """What a run came to: what the tool wrote, as JSON text, or why there is nothing."""

    success: bool
    output: str
    error: str
    seconds: float


class AgentCores:
    """The region's agent-cores: each with a channel and a breaker of its own, asked in turn.

    A module that one of them lacks is given to that very one.
    """

    def __init__(self, endpoints: t.Sequence[str], tls: Tls, caller: str) -> None:
        self._caller = caller
        self._endpoints = list(endpoints)
        self._pools = [Pool([place], tls, "agent-core", caller, stubs.AgentCoreStub) for place in endpoints]
        self._health = [Pool([place], tls, "agent-core", caller, health_pb2_grpc.HealthStub) for place in endpoints]
        self._turns = Turns()
        self._known: list[Tool] = []
        self._listed = float("-inf")

    async def run(
        self, tool: Tool, text: str, *, tenant: str, timeout: float, module: t.Callable[[], t.Awaitable[bytes]]
    ) -> Run:
        """Run a tool.

        :param text: its input, JSON.
        :param timeout: seconds.
        :param module: gives the bytes of an uploaded tool when an agent-core lacks them.
        :raises ToolsAway: no agent-core answers.
        :raises ToolRefused: the request is wrong.
        """
        request = pb.ExecuteToolRequest(
            tool="" if tool.sha256 else tool.name,
            sha256=tool.sha256,
            input_json=text,
            timeout_seconds=timeout,
            key=tenant,
        )
        # A little longer than the tool itself may take.
        limit = timeout + 2

        async def execute(pool: Pool) -> pb.ExecuteToolResponse:
            try:
                return t.cast(pb.ExecuteToolResponse, await pool.call("ExecuteTool", request, timeout=limit))
            except aio.AioRpcError as exc:
                if exc.code() is not grpc.StatusCode.FAILED_PRECONDITION or not tool.sha256:
                    raise
            await pool.call("StoreModule", pb.StoreModuleRequest(module=await module()), timeout=limit)
            return t.cast(pb.ExecuteToolResponse, await pool.call("ExecuteTool", request, timeout=limit))

        started = time.monotonic()
        found = await self._anywhere(execute)
        return Run(found.success, found.output_json, found.error, time.monotonic() - started)

    async def check(self, module: bytes) -> None:
        """Have a module looked at, and kept, by an agent-core.

        :raises ToolRefused: it is none.
        """

        async def store(pool: Pool) -> t.Any:
            return await pool.call("StoreModule", pb.StoreModuleRequest(module=module), timeout=10)

        await self._anywhere(store)

    async def built_in(self) -> list[Tool]:
        """The built-in tools; what was known last while no agent-core answers.

        :raises ToolsAway: nothing is known yet.
        """
        if time.monotonic() - self._listed < _FRESH:
            return self._known

        async def discover(pool: Pool) -> pb.ListToolsResponse:
            return t.cast(pb.ListToolsResponse, await pool.call("DiscoverTools", pb.DiscoverToolsRequest(), timeout=2))

        try:
            found = await self._anywhere(discover)
        except ToolError:
            if not self._known:
                raise
            return self._known
        self._known = [Tool(tool.name, tool.description) for tool in found.tools]
        self._listed = time.monotonic()
        return self._known

    async def probe(self, timeout: float) -> None:
        """Ask whether one of them serves.

        :raises ToolsAway: none does.
        """

        async def one(pool: Pool) -> str:
            try:
                answer = await pool.call("Check", health_pb2.HealthCheckRequest(), timeout=timeout)
            except (NoEndpointError, aio.AioRpcError) as exc:
                return str(exc)
            serving = answer.status == health_pb2.HealthCheckResponse.SERVING
            return "" if serving else "it is not serving"

        problems = await asyncio.gather(*map(one, self._health))
        if all(problems):
            raise ToolsAway("; ".join(problems) or "no agent-core is configured")

    @property
    def breakers(self) -> list[CircuitBreaker]:
        """Those of the agent-cores."""
        return [breakers.breaker("grpc", f"agent-core@{place}", self._caller) for place in self._endpoints]

    async def close(self) -> None:
        """Close all channels."""
        for pool in (*self._pools, *self._health):
            await pool.close()

    async def _anywhere(self, work: t.Callable[[Pool], t.Awaitable[t.Any]]) -> t.Any:
        problems: list[str] = []
        for pool in self._turns.order(self._pools):
            try:
                return await work(pool)
            except NoEndpointError as exc:
                problems.append(str(exc))
            except aio.AioRpcError as exc:
                if exc.code() not in _ELSEWHERE:
                    raise ToolRefused(exc.details() or exc.code().name.lower()) from exc
                problems.append(f"{exc.code().name}: {exc.details()}")
        raise ToolsAway("; ".join(problems) or "no agent-core is configured")


class Toolbox:
    """A cell's tools: uploaded ones in its PostgreSQL, and agent-cores that run them."""

    def __init__(self, database: Database, cores: AgentCores) -> None:
        self._database = database
        self._cores = cores

    async def upload(self, tenant: str, name: str, description: str, module: bytes) -> Tool:
        """Keep a tenant's tool; one of the same name is replaced.

        :raises ToolRefused: the name is a built-in tool's, or it is no module; nothing was stored.
        :raises ToolsAway: no agent-core can look at it; nothing was stored.
        """
        if any(tool.name == name for tool in await self._cores.built_in()):
            raise ToolRefused(f"{name} is a built-in tool; choose another name")
        await self._cores.check(module)
        tool = Tool(name, description, hashlib.sha256(module).hexdigest(), len(module))
        await self._database.execute(
            "INSERT INTO tool_modules (sha256, tenant_id, name, description, module, size)"
            " VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET sha256 = EXCLUDED.sha256, module = EXCLUDED.module,"
            " description = EXCLUDED.description, size = EXCLUDED.size",
            (tool.sha256, tenant, name, description, module, tool.size),
        )
        return tool

    async def listing(self, tenant: str) -> list[Tool]:
        """What a tenant's tasks may run: built-in tools, and its own.

        :raises DatabaseAway: its own can't be listed.
        """
        try:
            known = await self._cores.built_in()
        except ToolError as exc:
            _log.warning("the built-in tools can't be listed: %s", exc)
            known = []
        rows = await self._database.fetch(
            "SELECT name, description, sha256, size FROM tool_modules WHERE tenant_id = %s ORDER BY name", (tenant,)
        )
        return [*known, *(_tool(row) for row in rows)]

    async def run(self, tenant: str, tool: Tool, text: str, timeout: float) -> Run:
        """Run a tool; raises as :meth:`AgentCores.run`."""

        async def module() -> bytes:
            row = await self._database.fetch_one(
                "SELECT module FROM tool_modules WHERE tenant_id = %s AND sha256 = %s LIMIT 1", (tenant, tool.sha256)
            )
            if row is None:
                raise ToolRefused(f"the tool {tool.name} was replaced or removed")
            return bytes(row["module"])

        return await self._cores.run(tool, text, tenant=tenant, timeout=timeout, module=module)


def _tool(row: Row) -> Tool:
    return Tool(row["name"], row["description"], row["sha256"], int(row["size"]))

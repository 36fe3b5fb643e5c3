# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gRPC service AgentCore."""

from __future__ import annotations

import asyncio
import concurrent.futures
import resource
import time
import typing as t

import grpc
from grpc import aio

from shannon.resilience.circuit_breaker import BreakerError, CircuitBreaker
from shannon.services.common import logs, metrics
from shannon.services.common.config import AgentCore
from shannon.services.proto import shannon_pb2 as pb
from shannon.services.proto import shannon_pb2_grpc as stubs

from .buckets import Buckets
from .modules import BUILT_IN, InvalidModuleError, Modules, UnknownModuleError
from .sandbox import Limits, Outcome, Sandbox

_log = logs.get(__name__)
NAME = "shannon.v1.AgentCore"


class AgentCoreService(stubs.AgentCoreServicer):
    """Runs tools for orchestrators.

    :param guard: opens when runs fail for reasons of this service; what a module does wrong does not count.
    """

    def __init__(self, sandbox: Sandbox, modules: Modules, settings: AgentCore, guard: CircuitBreaker) -> None:
        self._sandbox = sandbox
        self._modules = modules
        self._settings = settings
        self._guard = guard
        self._buckets = Buckets(settings.rate)
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.concurrency, thread_name_prefix="tool")
        self._active = 0
        self._began = time.monotonic()
        self._executions = metrics.counter(
            "agent_core_tool_executions_total", "Runs of tools.", ("tool_name", "status")
        )
        self._seconds = metrics.histogram("agent_core_tool_duration_seconds", "Seconds that runs took.")
        self._drops = metrics.counter("agent_core_enforcement_drops_total", "Runs that were refused.", ("reason",))
        self._allowed = metrics.counter("agent_core_enforcement_allowed_total", "Runs that were let in.", ("outcome",))
        metrics.gauge("agent_core_active_tasks", "Runs under way.").set_function(lambda: self._active)

    # The names of the methods are those of the interface.
    async def ExecuteTool(self, request: pb.ExecuteToolRequest, context: aio.ServicerContext) -> pb.ExecuteToolResponse:
        """Run a tool; what goes wrong within it is an answer, not an error."""
        settings = self._settings
        if bool(request.tool) == bool(request.sha256):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "give either a tool's name or a module's sha256")
        if len(request.input_json) > settings.max_input:
            text = f"the input has more than {settings.max_input} bytes"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        wait = self._buckets.take(request.key or "anonymous")
        if wait:
            await self._drop(context, "rate_limit", f"more than {settings.rate:g} runs in a second; wait {wait:.2f} s")
        if self._active >= 2 * settings.concurrency:
            await self._drop(context, "concurrency", f"{self._active} runs are under way or wait already")
        limits = Limits(
            fuel=min(request.fuel or settings.fuel, settings.max_fuel),
            memory=min(request.memory_bytes or settings.memory, settings.max_memory),
            seconds=min(_seconds(request.timeout_seconds) or settings.timeout, settings.max_timeout),
            output=settings.max_output,
        )
        self._active += 1
        try:
            outcome = await self._guard.call_async(self._run, request, limits)
        except UnknownModuleError as exc:
            code = grpc.StatusCode.NOT_FOUND if request.tool else grpc.StatusCode.FAILED_PRECONDITION
            await context.abort(code, str(exc))
        except InvalidModuleError as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except BreakerError as exc:
            await self._drop(context, "circuit_open", str(exc), grpc.StatusCode.UNAVAILABLE)
        finally:
            self._active -= 1
        self._count(request, outcome)
        return pb.ExecuteToolResponse(
            success=outcome.success,
            output_json=outcome.output,
            error=outcome.error,
            reason=outcome.reason.value if outcome.reason else "",
            fuel_used=outcome.fuel_used,
            memory_bytes=outcome.memory,
            duration_ms=outcome.seconds * 1000,
        )

    async def StoreModule(self, request: pb.StoreModuleRequest, context: aio.ServicerContext) -> pb.Tool:
        """Keep a module that a user uploaded."""
        if len(request.module) > self._settings.max_module:
            text = f"the module has {len(request.module)} bytes, at most {self._settings.max_module}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        try:
            stored = await self._in_thread(self._modules.store, request.module)
        except InvalidModuleError as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except OSError as exc:
            _log.error("a module can't be kept: %s", exc)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the module can't be kept: {exc.strerror}")
        return pb.Tool(sha256=stored.sha256, size=stored.size)

    async def DiscoverTools(
        self, request: pb.DiscoverToolsRequest, context: aio.ServicerContext
    ) -> pb.ListToolsResponse:
        """The built-in tools."""
        del request, context
        tools = [pb.Tool(name=name, description=text, builtin=True) for name, text in BUILT_IN.items()]
        return pb.ListToolsResponse(tools=tools)

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: aio.ServicerContext) -> pb.HealthCheckResponse:
        """Whether it could run a tool now: it runs one."""
        del request, context
        limits = Limits(fuel=1_000_000, memory=2**20, seconds=1, output=1024)
        try:
            outcome = await self._in_thread(self._sandbox.run, self._modules.built_in("echo"), "{}", limits)
            healthy, message = outcome.success, outcome.error or "a tool was run"
        except OSError as exc:
            healthy, message = False, f"no tool can be run: {exc}"
        return pb.HealthCheckResponse(
            healthy=healthy,
            message=message,
            uptime_seconds=int(time.monotonic() - self._began),
            active_tasks=self._active,
            memory_usage_percent=_memory_percent(),
        )

    def close(self) -> None:
        """Wait for runs that are under way; their own limits bound that."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._sandbox.close()

    async def _run(self, request: pb.ExecuteToolRequest, limits: Limits) -> Outcome:
        def run() -> Outcome:
            module = self._modules.built_in(request.tool) if request.tool else self._modules.get(request.sha256)
            return self._sandbox.run(module, request.input_json, limits)

        return await self._in_thread(run)

    async def _in_thread(self, work: t.Callable[..., t.Any], *args: t.Any) -> t.Any:
        # A run can't be cancelled from outside, and ends by its own limits; so whoever asked may go without harm.
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def _drop(
        self,
        context: aio.ServicerContext,
        reason: str,
        text: str,
        code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED,
    ) -> t.NoReturn:
        self._drops.labels(reason).inc()
        await context.abort(code, text)
        raise AssertionError("abort does not return")

    def _count(self, request: pb.ExecuteToolRequest, outcome: Outcome) -> None:
        status = outcome.reason.value if outcome.reason else "success"
        # Modules of users are counted as one, since there is no end of them.
        self._executions.labels(request.tool or "uploaded", status).inc()
        self._allowed.labels("success" if outcome.success else "error").inc()
        self._seconds.observe(outcome.seconds)


def is_own_failure(exc: BaseException) -> bool:
    """Whether an exception says that this service is unwell, and not that a caller asked for something wrong."""
    return isinstance(exc, Exception) and not isinstance(exc, (UnknownModuleError, InvalidModuleError))


def _seconds(value: float) -> float:
    return value if 0 < value < float("inf") else 0.0


def _memory_percent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            total = int(handle.readline().split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0.0
    return 100 * used / total

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gRPC clients: several endpoints of one service, each with its breaker; a call goes to the next one that is well."""

from __future__ import annotations

import asyncio
import itertools
import typing as t

import grpc
from grpc import aio

from shannon.resilience.circuit_breaker import BreakerError, State
from shannon.resilience.errors import ResilienceError

from . import breakers, logs
from .deployment import Tls
from .grpc_server import MAX_MESSAGE, REQUEST_ID
from .tls import grpc_channel_credentials

#: What says that a call did not reach the service, so that it may be made elsewhere.
_NOT_REACHED = (grpc.StatusCode.UNAVAILABLE,)
#: What an endpoint that is overloaded or stuck answers; elsewhere it may be better, if the call may be repeated.
_REPEATABLE = (*_NOT_REACHED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class NoEndpointError(ResilienceError):
    """No endpoint of a service took a call.

    :ivar retry_after: seconds after which it may be worth trying again.
    """

    def __init__(self, service: str, failures: t.Mapping[str, str], retry_after: float) -> None:
        self.service = service
        self.failures = dict(failures)
        self.retry_after = retry_after
        said = (
            "; ".join(f"{endpoint}: {failure}" for endpoint, failure in self.failures.items()) or "none is configured"
        )
        super().__init__(f"no {service} answers ({said})")


class Pool:
    """Channels to all endpoints of a service.

    :param endpoints: C(host:port) each.
    :param service: the name of the service that is called; breakers are named C(<service>@<endpoint>).
    :param caller: the name of the service that calls.
    :param stub: makes a stub of a channel.
    """

    def __init__(
        self, endpoints: t.Sequence[str], tls: Tls, service: str, caller: str, stub: t.Callable[[aio.Channel], t.Any]
    ) -> None:
        self.service = service
        self._endpoints = list(endpoints)
        self._tls = tls
        self._caller = caller
        self._stub = stub
        self._stubs: dict[str, tuple[aio.Channel, t.Any]] = {}
        self._turn = itertools.count()

    async def call(self, method: str, request: t.Any, *, timeout: float, retry_safe: bool = False) -> t.Any:
        """Call a unary method on an endpoint that is well.

        :param timeout: seconds for all attempts together.
        :param retry_safe: whether the call may be repeated elsewhere although it may have reached an endpoint.
        :raises NoEndpointError: nobody took it.
        :raises grpc.aio.AioRpcError: what the service answered instead.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        failures: dict[str, str] = {}
        waits: list[float] = []
        again = _REPEATABLE if retry_safe else _NOT_REACHED
        for endpoint in self._order():
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            guard = self._breaker(endpoint)
            try:
                return await guard.call_async(self._attempt, endpoint, method, request, remaining)
            except BreakerError as exc:
                failures[endpoint] = str(exc)
                waits.append(exc.retry_after)
            except aio.AioRpcError as exc:
                # Only what never reached the service is safe to repeat for every call. gRPC does not tell the two kinds
                # of UNAVAILABLE apart, so a service makes its own calls repeatable (the idempotency key of SubmitTask).
                if exc.code() not in again:
                    raise
                failures[endpoint] = f"{exc.code().name}: {exc.details()}"
        raise NoEndpointError(self.service, failures, max(1.0, min(waits, default=1.0)))

    async def _attempt(self, endpoint: str, method: str, request: t.Any, timeout: float) -> t.Any:
        call = getattr(self._stub_of(endpoint), method)
        metadata = ((REQUEST_ID, logs.request_id.get()),) if logs.request_id.get() else ()
        return await call(request, timeout=timeout, metadata=metadata)

    def _order(self) -> list[str]:
        # In turn, so that the load is spread; those whose breaker is open come last, and cost no time there.
        start = next(self._turn) % max(len(self._endpoints), 1)
        rotated = self._endpoints[start:] + self._endpoints[:start]
        return sorted(rotated, key=lambda endpoint: self._breaker(endpoint).state is State.OPEN)

    def _breaker(self, endpoint: str) -> t.Any:
        return breakers.breaker("grpc", f"{self.service}@{endpoint}", self._caller)

    def _stub_of(self, endpoint: str) -> t.Any:
        found = self._stubs.get(endpoint)
        if found is None:
            options = (
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.keepalive_time_ms", 10000),
                ("grpc.keepalive_timeout_ms", 3000),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.enable_retries", 0),
            )
            if self._tls.enabled:
                channel = aio.secure_channel(endpoint, grpc_channel_credentials(self._tls), options=options)
            else:
                channel = aio.insecure_channel(endpoint, options=options)
            found = self._stubs[endpoint] = (channel, self._stub(channel))
        return found[1]

    def states(self) -> dict[str, State]:
        """Each endpoint and the state of its breaker."""
        return {endpoint: self._breaker(endpoint).state for endpoint in self._endpoints}

    async def close(self) -> None:
        """Close all channels."""
        stubs, self._stubs = self._stubs, {}
        await asyncio.gather(*(channel.close(1) for channel, _stub in stubs.values()))

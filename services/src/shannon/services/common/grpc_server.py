# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gRPC listeners: TLS with client certificates, the standard health service, request ids, metrics, bounded calls."""

from __future__ import annotations

import asyncio
import re
import time
import typing as t
import uuid

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from . import logs, metrics
from .deployment import Tls
from .lifecycle import Lifecycle
from .tls import grpc_server_credentials

_log = logs.get(__name__)
_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.:-]{1,128}$")
#: The metadata key that carries the request id from service to service.
REQUEST_ID = "x-request-id"
#: Bytes of the largest message: an uploaded module with room around it.
MAX_MESSAGE = 16 * 2**20

Health = health_aio.HealthServicer


class Interceptor(aio.ServerInterceptor):
    """Gives each unary call its request id and a time limit, counts it, and turns a crash into INTERNAL."""

    def __init__(self, service: str, longest: float) -> None:
        self._longest = longest
        self._requests = metrics.counter(
            f"{service}_grpc_requests_total", "gRPC calls by method and status.", ("method", "status")
        )
        self._seconds = metrics.histogram(
            f"{service}_grpc_request_duration_seconds", "Seconds that gRPC calls took.", ("method",)
        )

    async def intercept_service(
        self,
        continuation: t.Callable[[grpc.HandlerCallDetails], t.Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Wrap the method that was called."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        given = dict(handler_call_details.invocation_metadata or ()).get(REQUEST_ID, "")
        request_id = str(given) if _REQUEST_ID.match(str(given)) else uuid.uuid4().hex
        inner = handler.unary_unary

        async def guarded(request: t.Any, context: aio.ServicerContext) -> t.Any:
            token = logs.request_id.set(request_id)
            started = time.perf_counter()
            status = "OK"
            try:
                remaining = context.time_remaining()
                limit = self._longest if remaining is None else min(remaining, self._longest)
                return await asyncio.wait_for(inner(request, context), max(limit, 0.001))
            except aio.AbortError:
                status = _name(context.code())
                raise
            except asyncio.TimeoutError:
                status = "DEADLINE_EXCEEDED"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"{method} did not end within its time")
            except asyncio.CancelledError:
                status = "CANCELLED"
                raise
            except Exception:
                status = "INTERNAL"
                _log.exception("%s crashed", method)
                await context.abort(grpc.StatusCode.INTERNAL, f"{method} failed; the log has request {request_id}")
            finally:
                self._requests.labels(method, status).inc()
                self._seconds.labels(method).observe(time.perf_counter() - started)
                logs.request_id.reset(token)

        return grpc.unary_unary_rpc_method_handler(
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def _name(code: t.Any) -> str:
    return str(getattr(code, "name", None) or "UNKNOWN")


async def serve(
    add: t.Callable[[aio.Server], None],
    names: t.Sequence[str],
    host: str,
    port: int,
    tls: Tls,
    lifecycle: Lifecycle,
    *,
    metric_prefix: str,
    longest: float = 60,
    grace: float = 30,
) -> tuple[Health, int]:
    """Listen, and return once calls are taken; ends with the service, after open calls have ended.

    :param add: adds the servicers to the server.
    :param names: full names of the services, for the health service; all start as SERVING.
    :param port: 0 takes a free one.
    :param metric_prefix: as in C(agent_core) of C(agent_core_grpc_requests_total).
    :param longest: seconds after which a call is ended, whatever its own deadline.
    :param grace: seconds that open calls have at the end.
    :returns: the health service, to say otherwise in, and the port.
    :raises OSError: the address can't be bound.
    """
    server = aio.server(
        interceptors=(Interceptor(metric_prefix, longest),),
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 30000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ),
    )
    add(server)
    health = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"{host}:{port}"
    try:
        if tls.enabled:
            bound = server.add_secure_port(address, grpc_server_credentials(tls))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as exc:
        raise OSError(
            f"nothing can listen on {address}; is another process there? (ss -ltnp 'sport = :{port}')"
        ) from exc
    for name in ("", *names):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    _log.info("listening on %s:%s", host, bound)

    async def stop() -> None:
        await health.enter_graceful_shutdown()
        await server.stop(grace)

    lifecycle.on_stop(stop, f"the gRPC listener on port {bound}")
    return health, bound

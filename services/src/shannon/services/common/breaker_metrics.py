# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of circuit breakers (seed facts 1), kept up by listening to them.

A call that was refused is counted as such, not as a failure. The state is looked up when metrics are scraped, so that
it is right even when nobody calls.
"""

from __future__ import annotations

import threading
import typing as t

from shannon.resilience.circuit_breaker import CircuitBreaker, Listener, State

from . import metrics

_STATE = metrics.gauge("shannon_circuit_breaker_state", "State: 0 closed, 1 half-open, 2 open", ("name", "service"))
_REQUESTS = metrics.counter(
    "shannon_circuit_breaker_requests_total",
    "Calls by the state they met and their result: success, failure, rejected, cancelled",
    ("name", "service", "state", "result"),
)
_FAILURES = metrics.counter(
    "shannon_circuit_breaker_failures_total", "Calls that were made and failed", ("name", "service")
)
_CHANGES = metrics.counter(
    "shannon_circuit_breaker_state_changes_total", "Changes of state", ("name", "service", "from_state", "to_state")
)
_OPEN_SINCE = metrics.gauge(
    "shannon_circuit_breaker_open_since_seconds",
    "When it opened, in seconds since 1970; 0 when it is not open",
    ("name", "service"),
)


class PrometheusListener(Listener):
    """Publishes breakers; one listener may serve several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Looking a series up costs more than counting in it.
        self._series: dict[tuple[CircuitBreaker, State, str], t.Any] = {}

    def attached(self, breaker: CircuitBreaker) -> None:
        """The series are there, at 0, before anything happens."""
        names = (breaker.name, breaker.service)
        _STATE.labels(*names).set_function(lambda: float(breaker.state))
        _OPEN_SINCE.labels(*names).set_function(lambda: breaker.open_since)
        _FAILURES.labels(*names)

    def on_result(self, breaker: CircuitBreaker, state: State, result: str) -> None:
        key = (breaker, state, result)
        series = self._series.get(key)
        if series is None:
            with self._lock:
                series = self._series[key] = _REQUESTS.labels(breaker.name, breaker.service, state.label, result)
        series.inc()
        if result == "failure":
            _FAILURES.labels(breaker.name, breaker.service).inc()

    def on_state_change(self, breaker: CircuitBreaker, old: State, new: State) -> None:
        _CHANGES.labels(breaker.name, breaker.service, old.label, new.label).inc()

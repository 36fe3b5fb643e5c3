# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task through an edge, as a client sees it."""

from __future__ import annotations

import ssl
import time
import typing as t
import urllib.parse
import uuid

from .errors import ResilienceError
from .http_client import JsonEndpoint

#: Seconds between two looks at a task that runs.
INTERVAL = 0.1
#: What a task ends as.
ENDED = ("completed", "failed", "cancelled", "timeout")


class Client:
    """A client of the gateways' API.

    :param url: the edge.
    :param context: what its certificate is checked with.
    :param deadline: monotonic time after which nothing is waited for any more.
    """

    def __init__(self, url: str, api_key: str, context: ssl.SSLContext, deadline: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ResilienceError(f"{url!r} is no URL of an edge; write https://HOST or https://HOST:PORT")
        secure = parts.scheme == "https"
        self.url = url.rstrip("/")
        self.deadline = deadline
        self._headers = {"X-API-Key": api_key}
        port = parts.port or (443 if secure else 80)
        self._endpoint = JsonEndpoint(parts.hostname, port, context if secure else None)

    def ask(self, method: str, path: str, body: t.Any = None, **headers: str) -> t.Any:
        """One request.

        :raises ResilienceError: no answer within the deadline, or one that is no success; the text has what was said.
        """
        what = f"{method} {self.url}{path}"
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise ResilienceError(f"{what}: the time was up before it was asked")
        self._endpoint.headers = {**self._headers, **headers}
        try:
            answer = self._endpoint.request(method, path, body, remaining)
        except ResilienceError as exc:
            raise ResilienceError(
                f"{what}: {exc} Does the edge run, and is a region's gateway ready and active? "
                "(http://127.0.0.1:18405/ on the edge shows what it thinks of them)"
            ) from exc
        if not 200 <= answer.status < 300:
            raise ResilienceError(f"{what}: expected a success, got {answer.status}: {str(answer.body)[:500]}")
        return answer.body


def run(client: Client, query: str, search: bool) -> dict[str, t.Any]:
    """Submit, wait, fetch, and search.

    :param query: what to ask; unique, so that what is found is this task.
    :returns: what the module C(smoke_task) documents.
    :raises ResilienceError: a step failed; the text says which and why.
    """
    started = time.monotonic()
    key = uuid.uuid4().hex
    accepted = client.ask("POST", "/api/v1/tasks", {"query": query}, **{"Idempotency-Key": key})
    submitted = time.monotonic()
    task_id = accepted["task_id"]
    while True:
        task = client.ask("GET", f"/api/v1/tasks/{task_id}")
        if word_of(task["status"]) in ENDED:
            break
        _wait(client, f"the task {task_id} to end; it is {task['status']}")
    done = time.monotonic()
    status = word_of(task["status"])
    if status != "completed":
        raise ResilienceError(f"the task {task_id} ended as {status}: {task.get('error') or 'no reason given'}")
    score, found_ms = 0.0, -1
    if search:
        score = _find(client, task_id, query)
        found_ms = _ms(time.monotonic() - done)
    return {
        "task_id": task_id,
        "status": status,
        "mode": task.get("mode") or "",
        "query": query,
        "result": task.get("result") or "",
        "submit_ms": _ms(submitted - started),
        "task_ms": _ms(done - started),
        "found_ms": found_ms,
        "score": round(score, 4),
    }


def word_of(status: str) -> str:
    """A status without the prefix of the original's enumeration: C(TASK_STATUS_COMPLETED) is C(completed)."""
    return status.removeprefix("TASK_STATUS_").lower()


def _find(client: Client, task_id: str, query: str) -> float:
    while True:
        answer = client.ask("POST", "/api/v1/memory/search", {"query": query, "top_k": 5, "threshold": 0.1})
        for hit in answer.get("results", []):
            if hit.get("payload", {}).get("task_id") == task_id:
                return float(hit["score"])
        _wait(
            client, f"the task {task_id} to be found by similarity; does the vector indexer run, and is its lag small?"
        )


def _wait(client: Client, what: str) -> None:
    if time.monotonic() + INTERVAL >= client.deadline:
        raise ResilienceError(f"the time was up while waiting for {what}")
    time.sleep(INTERVAL)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)

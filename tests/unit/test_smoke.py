"""One task through an edge: what is asked of it, in which order, and how each failure is told."""

from __future__ import annotations

import json
import ssl
import threading
import time
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.smoke import Client, run, word_of


class FakeEdge:
    """Accepts a task, lets it run for two looks, and finds it at the second search."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, t.Any], dict[str, str]]] = []
        self.statuses = ["TASK_STATUS_QUEUED", "TASK_STATUS_RUNNING", "TASK_STATUS_COMPLETED"]
        self.searches = [[], [{"score": 0.91, "payload": {"task_id": "t1"}}]]
        self.failure: tuple[int, str] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: t.Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply("GET")

            def do_POST(self) -> None:
                self.reply("POST")

            def reply(self, method: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((method, self.path, json.loads(body or b"{}"), dict(self.headers)))
                code, document = outer.answer(method, self.path)
                raw = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, method: str, path: str) -> tuple[int, t.Any]:
        if self.failure:
            return self.failure[0], {"error": self.failure[1]}
        if (method, path) == ("POST", "/api/v1/tasks"):
            return 200, {"task_id": "t1"}
        if path == "/api/v1/tasks/t1":
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return 200, {"status": status, "result": "an answer", "mode": "simple", "error": "it broke"}
        if path == "/api/v1/memory/search":
            return 200, {"results": self.searches.pop(0) if len(self.searches) > 1 else self.searches[0]}
        return 404, {"error": "no such page"}

    def client(self, seconds: float = 5) -> Client:
        url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        return Client(url, "key", ssl.create_default_context(), time.monotonic() + seconds)


@pytest.fixture
def edge() -> t.Iterator[FakeEdge]:
    fake = FakeEdge()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def test_the_task_is_submitted_followed_and_found(edge: FakeEdge) -> None:
    found = run(edge.client(), "a question", search=True)
    assert (found["task_id"], found["status"], found["result"], found["score"]) == (
        "t1",
        "completed",
        "an answer",
        0.91,
    )
    assert found["submit_ms"] <= found["task_ms"] and found["found_ms"] >= 0
    method, path, body, headers = edge.asked[0]
    assert (method, path, body) == ("POST", "/api/v1/tasks", {"query": "a question"})
    assert headers["X-API-Key"] == "key" and headers["Idempotency-Key"]


def test_the_search_can_be_left_out(edge: FakeEdge) -> None:
    assert run(edge.client(), "a question", search=False)["found_ms"] == -1
    assert not any(path == "/api/v1/memory/search" for _method, path, _body, _headers in edge.asked)


def test_a_task_that_fails_is_an_error_with_its_reason(edge: FakeEdge) -> None:
    edge.statuses = ["TASK_STATUS_FAILED"]
    with pytest.raises(ResilienceError, match="t1 ended as failed: it broke"):
        run(edge.client(), "a question", search=True)


def test_an_answer_that_is_no_success_is_told_with_what_was_said(edge: FakeEdge) -> None:
    edge.failure = (503, "nobody is home")
    with pytest.raises(ResilienceError, match=r"POST .*/api/v1/tasks: expected a success, got 503: .*nobody is home"):
        run(edge.client(), "a question", search=True)


@pytest.mark.parametrize(
    ("statuses", "said"), [(["TASK_STATUS_QUEUED"], "it is TASK_STATUS_QUEUED"), ([], "similarity")]
)
def test_what_does_not_happen_in_time_is_named(edge: FakeEdge, statuses: list[str], said: str) -> None:
    edge.statuses = statuses or ["completed"]
    edge.searches = [[]]
    with pytest.raises(ResilienceError, match=f"the time was up while waiting for .*{said}"):
        run(edge.client(seconds=2), "a question", search=True)


def test_an_edge_that_is_not_there_is_named(edge: FakeEdge) -> None:
    client = edge.client()
    edge.server.shutdown()
    edge.server.server_close()
    with pytest.raises(ResilienceError, match=r"http://127\.0\.0\.1:\d+/api/v1/tasks: .*Does the edge run"):
        run(client, "a question", search=True)


def test_statuses_of_both_spellings() -> None:
    assert word_of("TASK_STATUS_COMPLETED") == word_of("completed") == "completed"

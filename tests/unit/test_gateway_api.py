"""The gateway's API: what it takes, what it refuses, and what it hands on."""

from __future__ import annotations

import base64
import io
import typing as t

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import grpc
from fake_gateway import OTHER_KEY, Rig, rpc_error

from shannon.services.common.grpc_client import NoEndpointError

WASM = b"\0asm\1\0\0\0" + bytes(range(256)) + b"\r\n--\n\r"


def error(response: t.Any, status: int) -> str:
    """The code of an error, which must have the one form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    return str(body["code"])


def test_a_task_is_submitted_and_looked_at() -> None:
    rig = Rig()
    done = rig.ask("POST", "/api/v1/tasks", json={"query": "do it", "mode": "simple", "context": {"n": 1}})
    assert done.status_code == 200
    body = done.json()
    assert body["created_at"] == "2023-11-14T22:13:20.250000Z"
    assert done.headers["x-workflow-id"] == body["workflow_id"]
    assert done.headers["x-session-id"] == body["session_id"]
    (_method, sent), *_rest = rig.orchestrator.calls
    assert (sent.caller.user_id, sent.cell, sent.mode, sent.context_json) == ("ann", "main", "simple", '{"n": 1}')
    assert sent.idempotency_key.startswith("auto:")
    assert sent.caller.request_id == done.headers["x-request-id"]
    found = rig.ask("GET", f"/api/v1/tasks/{body['task_id']}").json()
    assert (found["status"], found["query"], found["started_at"]) == ("TASK_STATUS_QUEUED", "do it", None)
    listed = rig.ask("GET", "/api/v1/tasks?status=queued&limit=5").json()
    assert listed["total_count"] == 1


def test_nobody_sees_anothers_task() -> None:
    rig = Rig()
    task = rig.task()
    assert error(rig.ask("GET", f"/api/v1/tasks/{task.task_id}", OTHER_KEY), 404) == "not_found"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b'{"query": "q"', "application/json", 400, "malformed_json"),
        (b'{"query": NaN}', "application/json", 400, "malformed_json"),
        (b"[" * 100_000, "application/json", 400, "malformed_json"),
        (b"\xff", "application/json", 400, "malformed_json"),
        (b'{"query": "q"}', "text/plain", 415, "unsupported_media_type"),
        (b'{"query": "q"}', "", 415, "unsupported_media_type"),
        (b'{"query": "q", "more": 1}', "application/json", 422, "invalid_request"),
        (b'{"query": 1}', "application/json", 422, "invalid_request"),
        (b'{"query": " "}', "application/json", 422, "invalid_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b"{}", "application/json", 422, "invalid_request"),
        (b'{"query": "a\\u0000b"}', "application/json", 422, "invalid_request"),
        (b'{"query": "\\ud800"}', "application/json", 422, "invalid_request"),
        (b'{"query": "q", "context": {"a": [{"b\\u0000": 1}]}}', "application/json", 422, "invalid_request"),
        (b'{"query": "q", "context": {"a": 1e999}}', "application/json", 422, "invalid_request"),
        (b'{"query": "q", "mode": "magic"}', "application/json", 422, "invalid_request"),
        (b'{"query": "q", "session_id": "a b"}', "application/json", 422, "invalid_request"),
    ],
)
def test_bad_bodies(content: bytes, content_type: str, status: int, code: str) -> None:
    rig = Rig()
    headers = {"content-type": content_type} if content_type else {}
    assert error(rig.ask("POST", "/api/v1/tasks", content=content, headers=headers), status) == code
    assert not rig.orchestrator.calls, "nothing of it goes on"


def test_large_bodies_with_and_without_a_length() -> None:
    rig = Rig()
    headers = {"content-type": "application/json"}
    big = b'{"query": "' + b"x" * 2**20 + b'"}'
    assert error(rig.ask("POST", "/api/v1/tasks", content=big, headers=headers), 413) == "too_large"

    async def parts() -> t.AsyncIterator[bytes]:
        for _turn in range(20):
            yield b"x" * 100_000

    assert error(rig.ask("POST", "/api/v1/tasks", content=parts(), headers=headers), 413) == "too_large"
    long = rig.ask("POST", "/api/v1/tasks", json={"query": "x" * 40_000})
    assert error(long, 422) == "invalid_request"
    context = rig.ask("POST", "/api/v1/tasks", json={"query": "x", "context": {"a": "x" * 70_000}})
    assert error(context, 422) == "invalid_request"


@pytest.mark.parametrize("path", ["/api/v1/tasks/a%20b", "/api/v1/tasks/" + "x" * 129, "/api/v1/sessions/a%00"])
def test_bad_ids(path: str) -> None:
    assert error(Rig().ask("GET", path), 422) == "invalid_request"


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "offset=-1", "limit=x", "status=late", "session_id=%00"])
def test_bad_queries(query: str) -> None:
    assert error(Rig().ask("GET", f"/api/v1/tasks?{query}"), 422) == "invalid_request"


def test_unknown_paths_and_methods() -> None:
    rig = Rig()
    assert error(rig.ask("GET", "/nowhere"), 404) == "not_found"
    response = rig.ask("DELETE", "/api/v1/tasks")
    assert error(response, 405) == "method_not_allowed"
    assert response.headers["allow"]


def test_request_ids_are_taken_when_well_formed() -> None:
    rig = Rig()
    assert rig.ask("GET", "/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = rig.ask("GET", "/health", headers={"X-Request-ID": "no spaces"}).headers["x-request-id"]
    assert len(made) == 32


def test_idempotency() -> None:
    rig = Rig()
    headers = {"Idempotency-Key": "once"}
    first = rig.ask("POST", "/api/v1/tasks", json={"query": "q"}, headers=headers)
    again = rig.ask("POST", "/api/v1/tasks", json={"query": "q"}, headers=headers)
    assert first.json()["task_id"] == again.json()["task_id"]
    assert "x-idempotency-cached" not in first.headers
    assert again.headers["x-idempotency-cached"] == "true"
    other = rig.ask("POST", "/api/v1/tasks", json={"query": "r"}, headers=headers)
    assert error(other, 422) == "idempotency_key_reused"
    bad = rig.ask("POST", "/api/v1/tasks", json={"query": "q"}, headers={"Idempotency-Key": "a b"})
    assert error(bad, 400) == "malformed_idempotency_key"


def test_cancel_needs_no_body() -> None:
    rig = Rig()
    task = rig.task()
    path = f"/api/v1/tasks/{task.task_id}/cancel"
    done = rig.ask("POST", path)
    assert (done.status_code, done.json()["success"]) == (202, True)
    again = rig.ask("POST", path, json={"reason": "twice"})
    assert (again.status_code, again.json()["success"]) == (202, False)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "why"), 400, "invalid_argument"),
        (rpc_error(grpc.StatusCode.PERMISSION_DENIED), 404, "not_found"),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), 429, "overloaded"),
        (rpc_error(grpc.StatusCode.UNAVAILABLE), 503, "unavailable"),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), 503, "timeout"),
        (rpc_error(grpc.StatusCode.INTERNAL, "secrets of the inside"), 500, "internal"),
        (NoEndpointError("orchestrator", {}, 7), 503, "unavailable"),
        (RuntimeError("a bug"), 500, "internal"),
    ],
)
def test_what_an_orchestrators_error_becomes(failure: Exception, status: int, code: str) -> None:
    rig = Rig()
    rig.orchestrator.error = failure
    response = rig.ask("GET", "/api/v1/tasks/x")
    assert error(response, status) == code
    assert "inside" not in response.text and "a bug" not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_sessions() -> None:
    rig = Rig()
    assert rig.ask("GET", "/api/v1/sessions").json()["sessions"][0]["context"] == {"n": 1}
    assert rig.ask("GET", "/api/v1/sessions/s1").json()["created_at"] == "1970-01-01T00:00:01Z"
    assert rig.ask("GET", "/api/v1/sessions/s1/history").json()["messages"][0]["content"] == "hi"
    assert error(rig.ask("GET", "/api/v1/sessions/s2"), 404) == "not_found"


def test_memory() -> None:
    rig = Rig()
    found = rig.ask("POST", "/api/v1/memory/search", json={"query": "q", "top_k": 3, "threshold": 0.25, "mmr": False})
    assert found.json()["results"] == [{"point_id": "p", "score": 0.5, "payload": {"n": 1}}]
    sent = rig.orchestrator.calls[-1][1]
    assert (sent.top_k, sent.threshold, sent.mmr) == (3, 0.25, False)
    rig.ask("POST", "/api/v1/memory/search", json={"query": "q"})
    assert rig.orchestrator.calls[-1][1].threshold == -1
    bad = rig.ask("POST", "/api/v1/memory/search", json={"query": "q", "consistency": "none"})
    assert error(bad, 422) == "invalid_request"


def test_a_tool_as_json_and_as_a_form() -> None:
    rig = Rig()
    body = {"name": "t", "module": base64.b64encode(WASM).decode(), "description": "d"}
    assert rig.ask("POST", "/api/v1/tools", json=body).status_code == 201
    assert rig.orchestrator.calls[-1][1].module == WASM
    form = rig.ask("POST", "/api/v1/tools", data={"name": "t"}, files={"module": ("m.wasm", io.BytesIO(WASM))})
    assert form.status_code == 201, form.text
    assert rig.orchestrator.calls[-1][1].module == WASM, "not a byte is another"
    assert rig.ask("GET", "/api/v1/tools").json()["tools"][0]["builtin"] is True


def test_bad_tools() -> None:
    rig = Rig(agent_core={"max_module": 1000})
    path = "/api/v1/tools"
    encoded = base64.b64encode(WASM).decode()
    assert error(rig.ask("POST", path, json={"name": "T", "module": encoded}), 422) == "invalid_request"
    assert error(rig.ask("POST", path, json={"name": "t", "module": "*"}), 422) == "invalid_request"
    assert error(rig.ask("POST", path, json={"name": "t", "module": "aGVsbG8="}), 422) == "invalid_request"
    large = base64.b64encode(WASM + b"x" * 1000).decode()
    assert error(rig.ask("POST", path, json={"name": "t", "module": large}), 413) == "too_large"
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert error(rig.ask("POST", path, content=b"no parts", headers=form), 400) == "malformed_form"
    assert error(rig.ask("POST", path, data={"name": "t"}, files={"other": b"x"}), 422) == "invalid_request"


def test_health_readiness_and_metrics_need_no_key() -> None:
    rig = Rig()
    assert rig.ask("GET", "/health", None).json()["status"] == "healthy"
    assert rig.ask("GET", "/readiness", None).status_code == 503, "nobody was asked yet"
    assert b"shannon_gateway_requests_total" in rig.ask("GET", "/metrics", None).content
    document = rig.ask("GET", "/openapi.json", None).json()
    assert "/api/v1/tasks/{task_id}/stream" in document["paths"]

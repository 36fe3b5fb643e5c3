"""The parts that the console scripts put together."""

from __future__ import annotations

import asyncio
import json
import typing as t

import pytest

psycopg = pytest.importorskip("psycopg")
httpx = pytest.importorskip("httpx")
pytest.importorskip("qdrant_client")

from shannon.resilience.circuit_breaker import CircuitBreaker  # noqa: E402
from shannon.services.common.config import parse  # noqa: E402
from shannon.services.vectors import main as indexer_main  # noqa: E402
from shannon.services.vectors.dead_letters import DeadLetters  # noqa: E402
from shannon.services.vectors.log_reader import PostgresLog  # noqa: E402
from shannon.services.vectors.positions import Mark, Position  # noqa: E402
from shannon.services.vectors.rows import Row  # noqa: E402
from shannon.services.vectors.search import qdrant_client  # noqa: E402
from shannon.services.vectors.sink import CollectionMissing, QdrantSink, Refused, Unavailable  # noqa: E402

ROW = Row(Position(5, 1), "c", "00000000-0000-0000-0000-000000000001", "upsert", "[1.5,2]", '{"a": "ü"}', 3.0)


def test_the_connection_string_is_read_only_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("SHANNON_SECRET_POSTGRES_APP", "it's a secret")
    config = parse({"deployment": {"tls": {"ca": "ca.crt", "cert": "c.crt", "key": "c.key"}}})
    found = psycopg.conninfo.conninfo_to_dict(indexer_main.conninfo(config, config.deployment.cells[0]))
    assert (found["port"], found["sslmode"], found["password"]) == ("15433", "verify-full", "it's a secret")
    assert "default_transaction_read_only=on" in found["options"]


def test_a_client_of_qdrant_asks_nothing_when_it_is_made() -> None:
    client = qdrant_client(parse({}), "key", 0.2)
    asyncio.run(client.close())


def sink(answer: t.Callable[[t.Any], t.Any]) -> QdrantSink:
    client = httpx.AsyncClient(base_url="http://qdrant", transport=httpx.MockTransport(answer))
    return QdrantSink(client, CircuitBreaker("qdrant", "test"), "main", 2)


def test_what_goes_to_qdrant() -> None:
    asked: list[t.Any] = []

    def answer(request: t.Any) -> t.Any:
        asked.append((request.method, str(request.url), json.loads(request.content)))
        return httpx.Response(200, json={"result": {"status": "completed"}})

    async def run() -> None:
        await sink(answer).upsert("c", [ROW], 1)
        await sink(answer).delete("c", [ROW], 1)

    asyncio.run(run())
    assert asked[0] == (
        "PUT",
        "http://qdrant/collections/c/points?wait=true&ordering=medium",
        {"points": [{"id": ROW.point_id, "vector": [1.5, 2], "payload": {"a": "ü"}}]},
    )
    assert asked[1][2] == {"points": [ROW.point_id]}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Refused),
        (413, Refused),
        (404, CollectionMissing),
        (401, Unavailable),
        (429, Unavailable),
        (503, Unavailable),
    ],
)
def test_what_qdrants_answers_mean(status: int, expected: type[Exception]) -> None:
    def answer(request: t.Any) -> t.Any:
        return httpx.Response(status, json={"status": {"error": "because"}})

    with pytest.raises(expected, match="http://qdrant"):
        asyncio.run(sink(answer).upsert("c", [ROW], 1))


def test_refusals_do_not_open_the_breaker_and_outages_do() -> None:
    status = [400]

    def answer(request: t.Any) -> t.Any:
        return httpx.Response(status[0], json={})

    async def run() -> None:
        one = sink(answer)
        for _turn in range(10):
            with pytest.raises(Refused):
                await one.upsert("c", [ROW], 1)
        assert one._breaker.state.label == "closed"
        status[0] = 500
        for _turn in range(5):
            with pytest.raises(Unavailable):
                await one.upsert("c", [ROW], 1)
        assert one._breaker.state.label == "open"

    asyncio.run(run())


def test_positions_make_their_collection() -> None:
    made: list[t.Any] = []
    points: dict[str, t.Any] = {}

    def answer(request: t.Any) -> t.Any:
        path, body = request.url.path, json.loads(request.content)
        if path == "/collections/indexer_positions" and request.method == "PUT":
            made.append(body)
            return httpx.Response(200, json={"result": True})
        if not made:
            return httpx.Response(404, json={"status": {"error": "Not found: Collection"}})
        if path.endswith("/scroll"):
            found = [{"id": key, "payload": payload} for key, payload in points.items()]
            found.append({"id": "x", "payload": {"collection": "broken"}})
            return httpx.Response(200, json={"result": {"points": found}})
        points.update({point["id"]: point["payload"] for point in body["points"]})
        return httpx.Response(200, json={"result": {}})

    async def run() -> None:
        one = sink(answer)
        assert await one.positions(1) == {}
        marks = {"c": ROW.mark, "d": Mark()}
        await one.save(marks, 1)
        await one.save(marks, 1)
        assert await one.positions(1) == marks

    asyncio.run(run())
    assert len(points) == 2, "replaced, never doubled"
    assert made[0]["vectors"] == {"size": 1, "distance": "Dot"}
    assert made[0]["replication_factor"] == 2


def test_dead_letters_are_kept_and_never_stop_anything(tmp_path: t.Any) -> None:
    DeadLetters(str(tmp_path), "main").add(ROW, "wrong dimension")
    (line,) = (tmp_path / "dead-letters-main.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "wrong dimension"
    DeadLetters(str(tmp_path / "none"), "main").add(ROW, "wrong dimension")


def test_a_server_that_is_away_is_an_error_in_time() -> None:
    log = PostgresLog("host=127.0.0.1 port=1 connect_timeout=2", CircuitBreaker("log", "test"), 1)
    with pytest.raises((psycopg.Error, OSError)):
        asyncio.run(log.read(Position(0, 0), 1))

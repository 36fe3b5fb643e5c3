"""Who may come in, how often, and to which region they are sent."""

from __future__ import annotations

import asyncio
import time
import typing as t

import pytest

jwt = pytest.importorskip("jwt")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from fake_gateway import API_KEY, JWT_SECRET, TENANT, Rig, config, rpc_error  # noqa: E402

from shannon.resilience.errors import ResilienceError  # noqa: E402
from shannon.services.common.secrets import SecretError  # noqa: E402
from shannon.services.gateway.auth import authenticator  # noqa: E402
from shannon.services.gateway.tokens import Tokens  # noqa: E402

PATH = "/api/v1/tasks"


def token(secret: str = JWT_SECRET, algorithm: str = "HS256", **claims: t.Any) -> str:
    full = {"exp": time.time() + 3600, "sub": "ann", "tenant_id": TENANT, **claims}
    return str(jwt.encode({key: value for key, value in full.items() if value is not None}, secret, algorithm))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize("headers", [{"X-API-Key": API_KEY}, bearer(API_KEY), bearer(token())])
def test_ways_in(headers: dict[str, str]) -> None:
    assert Rig().ask("GET", PATH, None, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": "ü".encode()},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer "},
        bearer("wrong"),
        bearer("a.b.c"),
        bearer(token(exp=time.time() - 60)),
        bearer(token(exp=None)),
        bearer(token(sub=None)),
        bearer(token(tenant_id=None)),
        bearer(token(tenant_id="no uuid")),
        bearer(token(tenant_id=TENANT + "\n")),
        bearer(token(sub="a b")),
        bearer(token("another secret that is long enough, too")),
        bearer(jwt.encode({"exp": time.time() + 60, "sub": "ann", "tenant_id": TENANT}, None, "none")),
    ],
)
def test_no_way_in(headers: dict[str, str]) -> None:
    response = Rig().ask("GET", PATH, None, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["code"] == "unauthorized"


def test_a_key_in_the_query_only_counts_for_streams() -> None:
    rig = Rig()
    task = rig.task()
    rig.orchestrator.store(task, 1, "STREAM_END")
    assert rig.ask("GET", f"{PATH}?api_key={API_KEY}", None).status_code == 401
    assert rig.ask("GET", f"{PATH}/{task.task_id}/stream?api_key={API_KEY}", None).status_code == 200


def test_issuer_and_audience() -> None:
    rig = Rig(auth={"jwt": {"issuer": "us", "audience": "gateway"}})
    good = token(iss="us", aud="gateway")
    assert rig.ask("GET", PATH, None, headers=bearer(good)).status_code == 200
    for bad in (token(), token(iss="them", aud="gateway"), token(iss="us", aud="other")):
        assert rig.ask("GET", PATH, None, headers=bearer(bad)).status_code == 401


def test_rs256_takes_no_hs256(tmp_path: t.Any) -> None:
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization

    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "public.pem"
    path.write_bytes(public)
    settings = config(auth={"jwt": {"algorithm": "RS256", "public_key_file": str(path)}}).auth.jwt
    tokens = Tokens(settings, "")
    claims = {"exp": time.time() + 60, "sub": "ann", "tenant_id": TENANT}
    assert tokens.check(jwt.encode(claims, key, "RS256")).user_id == "ann"
    from shannon.services.gateway.tokens import BadToken

    with pytest.raises(BadToken):
        tokens.check(token(JWT_SECRET))


def test_without_any_way_in_there_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("SHANNON_SECRET_GATEWAY_JWT", raising=False)
    authenticator(config())
    with pytest.raises(SecretError, match="nobody could use"):
        authenticator(config(auth={"api_keys": []}))
    monkeypatch.setenv("SHANNON_SECRET_GATEWAY_JWT", "short")
    with pytest.raises(SecretError, match="at least 32"):
        authenticator(config())


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_of_the_tier_are_counted_in_redis() -> None:
    rig = Rig()
    response = rig.ask("GET", PATH)
    assert response.headers["x-ratelimit-limit-minute"] == "200"
    assert response.headers["x-ratelimit-remaining-minute"] == "199"
    assert response.headers["x-ratelimit-reset"] == str(int(rig.now // 60 * 60 + 60))
    assert "ratelimit:key:k1:minute:1699999980" in rig.redis.counters
    assert sorted(rig.redis.expiry.values()) == [61, 3601, 86401]
    rig.redis.counters = dict.fromkeys(rig.redis.counters, 200)
    refused = rig.ask("GET", PATH)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "40"
    assert refused.headers["x-ratelimit-remaining-minute"] == "0"
    rig.now += 60
    assert rig.ask("GET", PATH).status_code == 200


def test_polling_one_task_is_not_limited() -> None:
    rig = Rig()
    rig.ask("GET", f"{PATH}/{rig.task().task_id}")
    assert not rig.redis.counters


def test_without_redis_a_local_bucket_counts_this_gateways_share() -> None:
    rig = Rig(rate_limits={"tiers": {"pro": {"minute": 8, "hour": 100, "day": 1000}}})
    rig.redis.down = True
    answers = [rig.ask("GET", PATH).status_code for _turn in range(5)]
    assert answers == [200] * 4 + [429], "two gateways share the limit of 8"
    rig.now += 15
    assert rig.ask("GET", PATH).status_code == 200
    assert rig.ask("GET", PATH).status_code == 429


def test_a_slow_redis_costs_no_more_than_its_bound() -> None:
    rig = Rig()

    async def slow(*_args: t.Any, **_more: t.Any) -> t.Any:
        await asyncio.sleep(30)

    rig.limiter._script = slow
    started = time.monotonic()
    assert rig.ask("GET", PATH).status_code == 200
    assert time.monotonic() - started < 2


# -- regions -----------------------------------------------------------------------------------------------------------


def pair() -> tuple[Rig, Rig]:
    """The home a, and b that forwards there."""
    home = Rig("a")
    return home, Rig("b", {"a": home.client(None)})


def test_a_request_is_forwarded_with_all_it_has() -> None:
    home, other = pair()
    headers = {"Idempotency-Key": "k", "X-Request-ID": "r-1"}
    done = other.ask("POST", PATH, json={"query": "q"}, headers=headers)
    assert done.status_code == 200
    assert done.headers.get_list("x-request-id") == ["r-1"]
    assert done.headers["x-ratelimit-remaining-minute"] == "199", "counted once, at home"
    assert not other.redis.counters and not other.orchestrator.calls
    ((_method, sent),) = home.orchestrator.calls
    assert (sent.idempotency_key, sent.caller.request_id) == ("k", "r-1")
    bad = other.ask("GET", f"{PATH}?limit=0")
    assert bad.status_code == 422, "errors come back as they are"
    assert other.ask("GET", PATH, None).status_code == 401, "strangers go nowhere"


def test_streams_are_forwarded() -> None:
    home, other = pair()
    task = home.task()
    home.orchestrator.store(task, 1)
    home.orchestrator.store(task, 2, "STREAM_END")
    response = other.ask("GET", f"{PATH}/{task.task_id}/stream", headers={"Last-Event-ID": "1"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "id: 2\nevent: done\ndata: [DONE]" in response.text and "id: 1\n" not in response.text


def test_it_is_forwarded_once() -> None:
    home, other = pair()
    home.cells.homes["main"] = "b"
    response = other.ask("GET", PATH)
    assert (response.status_code, response.json()["code"]) == (508, "loop")


def test_nobody_home() -> None:
    def refuse(request: t.Any) -> t.Any:
        raise httpx.ConnectError("refused")

    other = Rig("b", {"a": httpx.AsyncClient(base_url="http://a", transport=httpx.MockTransport(refuse))})
    response = other.ask("POST", PATH, json={"query": "q"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    other.cells.homes["main"] = None
    assert other.ask("GET", PATH).status_code == 503


def test_the_next_gateway_is_asked_when_one_is_gone() -> None:
    _home, other = pair()

    class Dead(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: t.Any) -> t.Any:
            raise httpx.ConnectError("refused")

    dead = httpx.AsyncClient(base_url="http://dead", transport=Dead())
    breaker = other.services.forwarder._gateways["a"][0][1]
    alive = other.services.forwarder._gateways["a"][0][0]
    other.services.forwarder._gateways = {"a": [(dead, breaker), (alive, breaker)]}
    other.services.forwarder._turn = 1
    assert other.ask("POST", PATH, json={"query": "q"}).status_code == 200


def test_a_local_search_stays() -> None:
    home, other = pair()
    search = "/api/v1/memory/search"
    assert other.ask("POST", search, json={"query": "q", "consistency": "local"}).status_code == 200
    assert (len(other.orchestrator.calls), len(home.orchestrator.calls)) == (1, 0)
    assert other.ask("POST", search, json={"query": "q"}).status_code == 200
    assert (len(other.orchestrator.calls), len(home.orchestrator.calls)) == (1, 1)
    assert other.ask("POST", search, content=b"{").status_code == 415


# -- readiness ---------------------------------------------------------------------------------------------------------


def test_readiness_by_cell_and_role() -> None:
    rig = Rig("b")
    asyncio.run(rig.readiness.probe())

    def status(query: str) -> int:
        return rig.ask("GET", f"/readiness{query}", None).status_code

    assert rig.ask("GET", "/readiness", None).json()["cells"]["main"] == {"role": "standby", "home": "a", "epoch": 1}
    assert [status(q) for q in ("", "?cell=main", "?cell=main&role=standby", "?cell=main&role=active")] == [
        200,
        200,
        200,
        503,
    ]
    rig.cells.homes["main"] = "b"
    assert status("?cell=main&role=active") == 200
    rig.cells.homes["main"] = None
    assert status("?cell=main&role=active") == 503
    assert status("?cell=unheard&role=active") == 404
    assert status("?role=leader") == 422
    rig.readiness.draining = True
    assert status("") == 503


@pytest.mark.parametrize("failure", [ResilienceError("none"), rpc_error(__import__("grpc").StatusCode.UNIMPLEMENTED)])
def test_not_ready_without_an_orchestrator(failure: Exception) -> None:
    rig = Rig()
    rig.probe_error = failure
    asyncio.run(rig.readiness.probe())
    assert rig.ask("GET", "/readiness", None).status_code == 503
    assert rig.ask("GET", "/health", None).status_code == 200

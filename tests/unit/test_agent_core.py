"""agent-core: real WebAssembly in a real sandbox behind a real gRPC server, which goes on whatever a module does."""

from __future__ import annotations

import asyncio
import json
import pathlib
import time
import typing as t
import zlib

import grpc
import pytest
import wasmtime
from grpc import aio

from shannon.resilience.circuit_breaker import State
from shannon.services.agent_core import modules as stock
from shannon.services.agent_core.buckets import Buckets
from shannon.services.agent_core.main import breaker_of
from shannon.services.agent_core.modules import BUILT_IN, InvalidModuleError, Modules, UnknownModuleError
from shannon.services.agent_core.sandbox import Limits, Outcome, Reason, Sandbox
from shannon.services.agent_core.service import AgentCoreService
from shannon.services.common.config import AgentCore
from shannon.services.proto import shannon_pb2 as pb
from shannon.services.proto import shannon_pb2_grpc as stubs

LIMITS = Limits(fuel=50_000_000, memory=4 * 2**20, seconds=5, output=65536)
PRELUDE = (pathlib.Path(stock.__file__).parent / "tools" / "io.wat").read_text()
LOOP = '(func (export "_start") (loop $l (br $l)))'
GREEDY = """(memory (export "memory") 1)
(func (export "_start") (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable)"""
ENDLESS = PRELUDE + '(func (export "_start") (loop $l (call $write (i32.const 1024) (i32.const 65536)) (br $l)))'
FAILS = """(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
(func (export "_start") (call $exit (i32.const 3)))"""
DEEP = '(func $f (call $f)) (func (export "_start") (call $f))'


def wasm(body: str) -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {body})"))


@pytest.fixture(scope="module")
def sandbox() -> t.Iterator[Sandbox]:
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture
def kept(sandbox: Sandbox, tmp_path: pathlib.Path) -> Modules:
    return Modules(sandbox, str(tmp_path), 4)


def run(sandbox: Sandbox, body: str, given: str = "", limits: Limits = LIMITS) -> Outcome:
    return sandbox.run(sandbox.compile(wasm(body)), given, limits)


# ---- built-in tools


@pytest.mark.parametrize("given", ["{}", '{"a": [1, 2]}', '"x"', '"' + "long " * 40000 + '"'])
def test_echo_gives_back_its_input(sandbox: Sandbox, kept: Modules, given: str) -> None:
    limits = Limits(10**9, 4 * 2**20, 5, 10**6)
    assert sandbox.run(kept.built_in("echo"), given, limits).output == given


@pytest.mark.parametrize("given", ["", "123456789", '{"text": "häuser"}', "x" * 150_000])
def test_checksum_is_crc_32(sandbox: Sandbox, kept: Modules, given: str) -> None:
    outcome = sandbox.run(kept.built_in("checksum"), given, LIMITS)
    raw = given.encode()
    assert json.loads(outcome.output) == {"crc32": f"{zlib.crc32(raw):08x}", "bytes": len(raw)}


@pytest.mark.parametrize(
    ("given", "total", "count"),
    [("[]", 0, 0), ("[1, -2, 30]", 29, 3), ('{"a7": "x-9y"}', -2, 2), ("[999999999999999999]", 999999999999999999, 1)],
)
def test_sum_adds_up_whole_numbers(sandbox: Sandbox, kept: Modules, given: str, total: int, count: int) -> None:
    outcome = sandbox.run(kept.built_in("sum"), given, LIMITS)
    assert json.loads(outcome.output) == {"sum": total, "count": count}


@pytest.mark.parametrize("given", ["1234567890123456789", json.dumps([10**18 - 1] * 10)])
def test_a_sum_that_does_not_fit_is_refused_not_wrong(sandbox: Sandbox, kept: Modules, given: str) -> None:
    assert sandbox.run(kept.built_in("sum"), given, LIMITS).reason is Reason.TRAP


@pytest.mark.parametrize(
    "text", ["", "one", "two words", " spaces  around ", "Zwei Wörter\nhier", "a\tb\r\nc", 'q"uote\\']
)
def test_word_count_counts_as_python_does(sandbox: Sandbox, kept: Modules, text: str) -> None:
    expected = {
        "words": len(text.split()),
        "characters": len(text),
        "lines": text.count("\n") + 1 if text else 0,
    }
    for given in (json.dumps(text, ensure_ascii=False), json.dumps({"n": 1, "text": text}, ensure_ascii=False)):
        assert json.loads(sandbox.run(kept.built_in("word_count"), given, LIMITS).output) == expected


@pytest.mark.parametrize("given", ["", "[1]", '{"other": "x"}', '"never ends', '{"text": 5}'])
def test_word_count_refuses_what_is_no_text(sandbox: Sandbox, kept: Modules, given: str) -> None:
    assert sandbox.run(kept.built_in("word_count"), given, LIMITS).reason is Reason.TRAP


# ---- the sandbox


def test_a_loop_ends_with_its_fuel(sandbox: Sandbox) -> None:
    outcome = run(sandbox, LOOP)
    assert (outcome.reason, outcome.fuel_used) == (Reason.FUEL, LIMITS.fuel)


def test_a_loop_with_plenty_of_fuel_ends_with_its_time(sandbox: Sandbox) -> None:
    outcome = run(sandbox, LOOP, limits=Limits(10**15, 2**20, 0.2, 10))
    assert outcome.reason is Reason.TIMEOUT and "within 0.2 s" in outcome.error


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (GREEDY, Reason.MEMORY),
        ('(memory (export "memory") 1000) (func (export "_start"))', Reason.MEMORY),
        (ENDLESS, Reason.OUTPUT),
        (FAILS, Reason.EXIT),
        (DEEP, Reason.TRAP),
        ('(func (export "_start") unreachable)', Reason.TRAP),
    ],
)
def test_whatever_a_module_does_the_run_ends_with_a_reason(sandbox: Sandbox, body: str, reason: Reason) -> None:
    outcome = run(sandbox, body)
    assert outcome.reason is reason and outcome.error and not outcome.output
    assert outcome.memory <= LIMITS.memory


def test_what_is_no_json_comes_back_as_a_json_string(sandbox: Sandbox) -> None:
    body = (
        PRELUDE
        + '(data (i32.const 50000) "hi \\ff") (func (export "_start") (call $write (i32.const 50000) (i32.const 4)))'
    )
    assert json.loads(run(sandbox, body).output) == "hi \ufffd"


def test_a_module_sees_no_file_no_environment_and_no_network(sandbox: Sandbox) -> None:
    # Descriptor 3 would be the first folder; 8 is WASI's "bad file descriptor". No variables: 0 of them, in 0 bytes.
    body = """(import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
      (if (i32.ne (call $prestat (i32.const 3) (i32.const 0)) (i32.const 8)) (then unreachable))
      (drop (call $environ (i32.const 0) (i32.const 4)))
      (if (i32.load (i32.const 0)) (then unreachable)))"""
    assert run(sandbox, body).success


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin"),
        (b"(module)", "does not begin"),
        (b"\0asm\1\0\0\0junk", "not a WebAssembly module"),
        (wasm('(import "env" "x" (func))'), "imports from env"),
        (wasm(""), "exports no function _start"),
        (wasm('(memory (export "_start") 1)'), "exports no function _start"),
    ],
)
def test_what_is_no_module_is_refused(sandbox: Sandbox, content: bytes, said: str) -> None:
    with pytest.raises(InvalidModuleError, match=said):
        sandbox.compile(content)


# ---- modules on disk


def test_a_stored_module_is_found_by_its_hash_after_a_restart(sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    stored = Modules(sandbox, str(tmp_path), 4).store(wasm(FAILS))
    assert sandbox.run(Modules(sandbox, str(tmp_path), 4).get(stored.sha256), "", LIMITS).reason is Reason.EXIT


def test_old_modules_are_forgotten(sandbox: Sandbox, kept: Modules, tmp_path: pathlib.Path) -> None:
    hashes = [kept.store(wasm(f'(func (export "_start") (drop (i32.const {n})))')).sha256 for n in range(6)]
    assert len(list((tmp_path / "modules").glob("*.wasm"))) == 4
    kept.get(hashes[-1])
    with pytest.raises(UnknownModuleError):
        Modules(sandbox, str(tmp_path), 4).get(hashes[0])


def test_a_module_that_was_changed_on_disk_is_not_run(sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    stored = Modules(sandbox, str(tmp_path), 4).store(wasm(FAILS))
    (tmp_path / "modules" / f"{stored.sha256}.wasm").write_bytes(wasm(LOOP))
    with pytest.raises(UnknownModuleError):
        Modules(sandbox, str(tmp_path), 4).get(stored.sha256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64])
def test_a_name_that_is_no_hash_is_unknown(kept: Modules, name: str) -> None:
    with pytest.raises(UnknownModuleError):
        kept.get(name)


# ---- the rate


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    now = [0.0]
    buckets = Buckets(2, keys=2, clock=lambda: now[0])
    assert [buckets.take("a") for _turn in range(3)] == [0, 0, 0.5]
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("b") == 0, "each has a bucket of its own"


# ---- the service


class Rig:
    """A server on a free port of loopback, and a client."""

    def __init__(self, tmp_path: pathlib.Path, **settings: t.Any) -> None:
        self.settings = AgentCore.model_validate({"state_directory": str(tmp_path), "timeout": 1, **settings})
        self.guard = breaker_of(self.settings)

    def use(self, work: t.Callable[[stubs.AgentCoreStub], t.Awaitable[t.Any]]) -> t.Any:
        async def go() -> t.Any:
            sandbox = Sandbox()
            service = AgentCoreService(
                sandbox, Modules(sandbox, self.settings.state_directory, 4), self.settings, self.guard
            )
            server = aio.server()
            stubs.add_AgentCoreServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    return await work(stubs.AgentCoreStub(channel))
            finally:
                await server.stop(0)
                service.close()

        return asyncio.run(go())

    def fails(self, method: str, request: t.Any) -> aio.AioRpcError:
        async def call(stub: stubs.AgentCoreStub) -> aio.AioRpcError:
            with pytest.raises(aio.AioRpcError) as caught:
                await getattr(stub, method)(request)
            return caught.value

        return t.cast("aio.AioRpcError", self.use(call))


def test_tools_are_listed_and_run(tmp_path: pathlib.Path) -> None:
    async def work(stub: stubs.AgentCoreStub) -> tuple[set[str], t.Any, t.Any]:
        listed = await stub.DiscoverTools(pb.DiscoverToolsRequest())
        ran = await stub.ExecuteTool(pb.ExecuteToolRequest(tool="word_count", input_json='"a b c"', key="t"))
        return {tool.name for tool in listed.tools}, ran, await stub.HealthCheck(pb.HealthCheckRequest())

    names, ran, health = Rig(tmp_path).use(work)
    assert names == set(BUILT_IN)
    assert ran.success and json.loads(ran.output_json)["words"] == 3 and ran.fuel_used > 0
    assert health.healthy and health.memory_usage_percent > 0, "health is real (facts in full, 10.2, item 15)"


def test_an_uploaded_module_runs_once_it_is_stored(tmp_path: pathlib.Path) -> None:
    async def work(stub: stubs.AgentCoreStub) -> tuple[t.Any, t.Any]:
        tool = await stub.StoreModule(pb.StoreModuleRequest(module=wasm(FAILS)))
        return tool, await stub.ExecuteTool(pb.ExecuteToolRequest(sha256=tool.sha256))

    tool, ran = Rig(tmp_path).use(work)
    assert tool.size == len(wasm(FAILS))
    assert (ran.success, ran.reason) == (False, "exit")


def test_modules_that_loop_or_grow_leave_the_others_alone(tmp_path: pathlib.Path) -> None:
    async def work(stub: stubs.AgentCoreStub) -> tuple[list[str], float]:
        bad = [(await stub.StoreModule(pb.StoreModuleRequest(module=wasm(body)))).sha256 for body in (LOOP, GREEDY)]
        runs = [stub.ExecuteTool(pb.ExecuteToolRequest(sha256=sha256, timeout_seconds=0.5)) for sha256 in bad * 2]
        waiting = asyncio.gather(*runs)
        started = time.monotonic()
        good = await stub.ExecuteTool(pb.ExecuteToolRequest(tool="echo", input_json="{}"))
        took = time.monotonic() - started
        assert good.success
        return [answer.reason for answer in await waiting], took

    reasons, took = Rig(tmp_path).use(work)
    assert reasons[1::2] == ["memory", "memory"]
    assert set(reasons[0::2]) <= {"timeout", "out_of_fuel"}
    assert took < 5


@pytest.mark.parametrize(
    ("method", "given", "code", "said"),
    [
        ("ExecuteTool", pb.ExecuteToolRequest(), "INVALID_ARGUMENT", "either"),
        ("ExecuteTool", pb.ExecuteToolRequest(tool="echo", sha256="x"), "INVALID_ARGUMENT", "either"),
        ("ExecuteTool", pb.ExecuteToolRequest(tool="rm"), "NOT_FOUND", "there are echo"),
        ("ExecuteTool", pb.ExecuteToolRequest(sha256="0" * 64), "FAILED_PRECONDITION", "module unknown"),
        ("ExecuteTool", pb.ExecuteToolRequest(tool="echo", input_json="x" * 2000), "INVALID_ARGUMENT", "1024 bytes"),
        ("StoreModule", pb.StoreModuleRequest(module=b"x"), "INVALID_ARGUMENT", "does not begin"),
        ("StoreModule", pb.StoreModuleRequest(module=b"x" * 3000), "INVALID_ARGUMENT", "at most 2048"),
    ],
)
def test_bad_requests_have_a_status_and_a_reason(
    tmp_path: pathlib.Path, method: str, given: t.Any, code: str, said: str
) -> None:
    rig = Rig(tmp_path, max_input=1024, max_module=2048)
    error = rig.fails(method, given)
    assert error.code() is grpc.StatusCode[code] and said in error.details()
    assert rig.guard.state is State.CLOSED


def test_a_tenant_that_asks_too_often_is_refused_and_another_is_not(tmp_path: pathlib.Path) -> None:
    async def work(stub: stubs.AgentCoreStub) -> list[str]:
        found = []
        for key in ("a", "a", "b"):
            try:
                await stub.ExecuteTool(pb.ExecuteToolRequest(tool="echo", input_json="{}", key=key))
                found.append("OK")
            except aio.AioRpcError as exc:
                found.append(exc.code().name)
        return found

    assert Rig(tmp_path, rate=0.01).use(work) == ["OK", "RESOURCE_EXHAUSTED", "OK"]


def test_what_modules_do_wrong_never_opens_the_breaker(tmp_path: pathlib.Path) -> None:
    rig = Rig(tmp_path, rate=10000)

    async def work(stub: stubs.AgentCoreStub) -> None:
        tool = await stub.StoreModule(pb.StoreModuleRequest(module=wasm(FAILS)))
        for _turn in range(40):
            await stub.ExecuteTool(pb.ExecuteToolRequest(sha256=tool.sha256))

    rig.use(work)
    assert rig.guard.state is State.CLOSED


def test_a_service_that_fails_itself_opens_its_breaker(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: t.Any) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sandbox, "run", broken)
    rig = Rig(tmp_path, rate=10000)

    async def work(stub: stubs.AgentCoreStub) -> list[str]:
        codes = []
        for _turn in range(25):
            try:
                await stub.ExecuteTool(pb.ExecuteToolRequest(tool="echo"))
            except aio.AioRpcError as exc:
                codes.append(exc.code().name)
        assert not (await stub.HealthCheck(pb.HealthCheckRequest())).healthy
        return codes

    codes = rig.use(work)
    assert len(codes) == 25 and codes[-1] == "UNAVAILABLE"
    assert rig.guard.state is State.OPEN

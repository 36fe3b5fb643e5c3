"""The database client against a server that answers, refuses, hangs, dies or is not there, as each test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
import time
import typing as t

import psycopg
import psycopg.conninfo
import pytest

from shannon.resilience.circuit_breaker import CircuitBreaker, Settings, State
from shannon.resilience.circuit_breaker_failures import is_failure
from shannon.services.common import config as configs
from shannon.services.database import client, pool
from shannon.services.database.client import Database, DatabaseAway, DatabaseBusy
from shannon.services.database.connection import conninfo
from shannon.services.database.records import KINDS, Record
from shannon.services.database.store import TABLES, PostgresStore, statement

PASSWORD = "not for the logs"


class FakePostgres:
    """Enough of PostgreSQL's protocol for a client. What a statement's text says is what happens:

    C(fail 23505) is refused with that SQLSTATE, C(hang) gets no answer, C(die) ends the connection, C(SELECT) has one
    row. What else there is succeeds, and all are kept in C(heard).
    """

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.values: list[list[bytes | None]] = []
        self.connections = 0
        self.hang_on = ""
        self.port = 0
        self.refuse = ""
        self.canceled = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.base_events.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.end_connections()

    def end_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await Session(self, reader, writer).run()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Session:
    """One connection of the fake."""

    def __init__(self, server: FakePostgres, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.status = b"I"
        self.texts: dict[bytes, str] = {}
        self.bound = ""
        self.skipping = False

    def send(self, kind: bytes, body: bytes = b"") -> None:
        self.writer.write(kind + struct.pack("!I", len(body) + 4) + body)

    async def run(self) -> None:
        while True:
            length, code = struct.unpack("!II", await self.reader.readexactly(8))
            await self.reader.readexactly(length - 8)
            if code == 80877102:
                self.server.canceled.set()
                return
            if code not in (80877103, 80877104):
                break
            self.writer.write(b"N")
        if self.server.refuse:
            self.error(self.server.refuse)
            await self.writer.drain()
            return
        self.server.connections += 1
        self.send(b"R", struct.pack("!I", 0))
        for name, value in (("server_version", "15.0"), ("client_encoding", "UTF8"), ("in_hot_standby", "off")):
            self.send(b"S", f"{name}\0{value}\0".encode())
        self.send(b"S", b"default_transaction_read_only\0off\0")
        self.send(b"K", struct.pack("!II", 1, 2))
        self.send(b"Z", self.status)
        while True:
            kind = await self.reader.readexactly(1)
            (length,) = struct.unpack("!I", await self.reader.readexactly(4))
            body = await self.reader.readexactly(length - 4)
            if kind == b"X":
                return
            if kind == b"S":
                self.skipping = False
                self.send(b"Z", self.status)
            elif kind == b"Q":
                await self.answer(body[:-1].decode(), described=True)
                self.send(b"Z", self.status)
                self.skipping = False
            elif not self.skipping:
                await self.extended(kind, body)

    async def extended(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            self.texts[name] = text.decode()
            self.send(b"1")
        elif kind == b"B":
            _portal, name, rest = body.split(b"\0", 2)
            self.bound = self.texts[name]
            self.server.values.append(parameters(rest))
            self.send(b"2")
        elif kind == b"D":
            self.describe(self.bound)
        elif kind == b"E":
            await self.answer(self.bound, described=False)

    def describe(self, text: str) -> None:
        if text.startswith("SELECT"):
            self.send(b"T", struct.pack("!H", 1) + b"x\0" + struct.pack("!IHIHIH", 0, 0, 23, 4, 0xFFFFFFFF, 0))
        else:
            self.send(b"n")

    async def answer(self, text: str, described: bool) -> None:
        self.server.heard.append(text)
        if "hang" in text or text == self.server.hang_on:
            await self.server.canceled.wait()
            self.error("57014")
            return
        if "die" in text:
            self.writer.close()
            return
        if found := re.search(r"fail (\w{5})", text):
            self.error(found.group(1))
            return
        tag = text.split(" ", 1)[0]
        if tag == "BEGIN":
            self.status = b"T"
        elif tag in ("COMMIT", "ROLLBACK"):
            tag = "ROLLBACK" if self.status == b"E" else tag
            self.status = b"I"
        elif tag == "SELECT":
            if described:
                self.describe(text)
            self.send(b"D", struct.pack("!HI", 1, 1) + b"1")
            tag = "SELECT 1"
        elif tag == "INSERT":
            tag = "INSERT 0 1"
        else:
            tag += " 3"
        self.send(b"C", tag.encode() + b"\0")

    def error(self, state: str) -> None:
        self.status = b"E" if self.status != b"I" else b"I"
        self.skipping = True
        self.send(b"E", f"SERROR\0VERROR\0C{state}\0Mas the test wants\0\0".encode())


def parameters(rest: bytes) -> list[bytes | None]:
    """The values of a Bind message, from its formats on."""
    (formats,) = struct.unpack_from("!H", rest)
    at = 2 + 2 * formats
    (count,) = struct.unpack_from("!H", rest, at)
    at += 2
    found: list[bytes | None] = []
    for _value in range(count):
        (length,) = struct.unpack_from("!i", rest, at)
        at += 4
        found.append(rest[at : at + length] if length >= 0 else None)
        at += max(length, 0)
    return found


class Rig:
    """A client of a fake server."""

    def __init__(self, **options: t.Any) -> None:
        self.server = FakePostgres()
        self.observed: list[bool] = []
        self.breaker = CircuitBreaker(
            "postgresql",
            "test",
            Settings(timeout=0.2, failure_threshold=5, success_threshold=2),
            is_failure=is_failure("database"),
        )
        self.settings = configs.Database.model_validate(
            {
                "statement_timeout": 0.2,
                "acquire_timeout": 5,
                "ping_timeout": 1,
                "max_connections": 1,
                "idle_connections": 1,
                **options,
            }
        )

    @property
    def failures(self) -> int:
        return self.breaker.counts.total_failures

    def client(self) -> Database:
        parts = {"host": "127.0.0.1", "port": self.server.port, "user": "u", "password": PASSWORD, "dbname": "d"}
        text = psycopg.conninfo.make_conninfo("", **parts, sslmode="disable", gssencmode="disable", connect_timeout=2)
        return Database(
            "main", text, self.settings, self.breaker, lambda _seconds, failed: self.observed.append(failed)
        )


@contextlib.asynccontextmanager
async def running(rig: Rig) -> t.AsyncIterator[Database]:
    await rig.server.start()
    database = rig.client()
    try:
        assert await database.open()
        yield database
    finally:
        await database.close()
        await rig.server.stop()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(client, "SLACK", 0.1)
    monkeypatch.setattr(client, "_AGAIN", 0.02)
    monkeypatch.setattr(client, "_PROBE", 0.02)
    monkeypatch.setattr(pool, "_IMPATIENT", 0.2)
    monkeypatch.setattr(pool, "_RECONNECT", 0.1)
    return Rig()


def test_statements_and_transactions(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            assert await database.fetch("SELECT one") == [{"x": 1}]
            assert await database.fetch_one("SELECT one WHERE a = %s", ("b",)) == {"x": 1}
            assert await database.execute("UPDATE t SET a = %(a)s", {"a": 1}) == 3
            async with database.transaction() as tx:
                assert await tx.execute("INSERT INTO t VALUES (%s)", (1,)) == 1
                assert await tx.fetch_one("SELECT one") == {"x": 1}
            assert database.latency is not None and database.error == "" and not database.full
            # All of this is one connection's work.
            assert rig.server.connections == 1

    asyncio.run(go())
    assert rig.server.heard[-4:] == ["BEGIN", "INSERT INTO t VALUES ($1)", "SELECT one", "COMMIT"]
    assert rig.failures == 0 and not any(rig.observed)


@pytest.mark.parametrize("state", ["23505", "23503", "22001", "42P01", "40001", "40P01", "25P02"])
def test_a_wrong_statement_passes_as_it_is_and_is_no_failure(rig: Rig, state: str) -> None:
    async def go() -> None:
        async with running(rig) as database:
            for _turn in range(6):
                with pytest.raises(psycopg.Error) as caught:
                    await database.execute(f"fail {state}")
                assert caught.value.sqlstate == state and not isinstance(caught.value, DatabaseAway)
            with pytest.raises(psycopg.Error, match="as the test wants"):
                async with database.transaction() as tx:
                    await tx.execute(f"fail {state}")
            assert await database.fetch("SELECT one")

    asyncio.run(go())
    assert rig.breaker.state is State.CLOSED and rig.failures == 0
    assert rig.server.heard[-2:] == ["ROLLBACK", "SELECT one"]


@pytest.mark.parametrize("state", ["25006", "57P01", "57P02", "57P03", "53300", "08006"])
def test_a_server_that_cannot_be_used_opens_the_breaker(rig: Rig, state: str) -> None:
    async def go() -> None:
        async with running(rig) as database:
            for _turn in range(5):
                with pytest.raises(DatabaseAway, match="PostgreSQL of main failed") as caught:
                    await database.execute(f"fail {state}")
                assert caught.value.retry_after > 0
            with pytest.raises(DatabaseAway, match="breaker is open") as caught:
                await database.execute("INSERT")
            assert 0 < caught.value.retry_after <= 0.2 and not await database.ping()

    asyncio.run(go())
    assert "INSERT" not in rig.server.heard and rig.observed[-5:] == [True] * 5


def test_the_connections_of_a_demoted_primary_are_not_used_again(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(DatabaseAway):
                await database.execute("fail 25006")
            assert await database.fetch("SELECT one") and rig.server.connections == 2

    asyncio.run(go())


def test_a_connection_that_lost_its_prepared_statements_is_not_used_again(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(psycopg.errors.InvalidSqlStatementName) as caught:
                await database.execute("fail 26000")
            assert PostgresStore(database).is_away(caught.value) and rig.failures == 0
            assert await database.fetch("SELECT one") and rig.server.connections == 2

    asyncio.run(go())


def test_a_server_that_ends_a_connection_in_the_middle(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(DatabaseAway):
                await database.execute("die")
            with pytest.raises(DatabaseAway):
                async with database.transaction() as tx:
                    await tx.execute("die")
            assert rig.failures == 2 and await database.fetch("SELECT one")

    asyncio.run(go())


def test_a_connection_that_ended_while_nobody_used_it_is_not_handed_out(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            rig.server.end_connections()
            while not (await asyncio.sleep(0)) and rig.server._writers:
                pass
            assert await database.fetch("SELECT one") and rig.failures == 0

    asyncio.run(go())


@pytest.mark.parametrize("silent", ["hang", "BEGIN", "COMMIT", "ROLLBACK"])
def test_a_server_without_a_word_holds_nobody_up(rig: Rig, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shannon.services.database.use.SLACK", 0.1)

    async def use(database: Database) -> None:
        async with database.transaction() as tx:
            await tx.execute("INSERT" if silent != "hang" else silent)
            if silent == "ROLLBACK":
                raise LookupError("of the caller")

    async def go() -> None:
        async with running(rig) as database:
            rig.server.hang_on = silent
            with pytest.raises(LookupError if silent == "ROLLBACK" else DatabaseAway):
                await asyncio.wait_for(use(database), 5)
            assert rig.failures == (silent != "ROLLBACK")
            assert await database.fetch("SELECT one") and not database.full

    asyncio.run(go())


@pytest.mark.parametrize("mine", [LookupError("mine"), asyncio.TimeoutError(), ConnectionRefusedError()])
def test_what_the_caller_raises_in_a_transaction_passes_and_is_no_failure(rig: Rig, mine: Exception) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(type(mine)) as caught:
                async with database.transaction() as tx:
                    await tx.execute("INSERT")
                    raise mine
            assert caught.value is mine

    asyncio.run(go())
    assert rig.server.heard[-3:] == ["BEGIN", "INSERT", "ROLLBACK"] and rig.failures == 0


def test_a_failure_counts_although_the_caller_raises_something_else(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(LookupError):
                async with database.transaction() as tx:
                    try:
                        await tx.execute("die")
                    except DatabaseAway as exc:
                        raise LookupError("in the caller's words") from exc

    asyncio.run(go())
    assert rig.failures == 1


def test_a_transaction_in_which_an_error_was_kept_quiet_does_not_look_committed(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing of it was committed"):
                async with database.transaction() as tx:
                    with contextlib.suppress(psycopg.Error):
                        await tx.execute("fail 23505")

    asyncio.run(go())
    assert rig.failures == 0


def test_a_caller_that_gives_up_says_nothing_and_takes_nothing_along(rig: Rig) -> None:
    async def go() -> None:
        async with running(rig) as database:
            asked = asyncio.ensure_future(database.execute("hang"))
            while "hang" not in rig.server.heard:
                await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert rig.server.canceled.is_set() and rig.failures == 0
            assert await database.fetch("SELECT one") and database._pool._taken == 0

    asyncio.run(go())


def test_connections_that_are_all_in_use_are_no_failure(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"acquire_timeout": 0.05})

    async def go() -> None:
        async with running(rig) as database:
            async with database.transaction():
                assert database.full
                with pytest.raises(DatabaseBusy, match="all 1 connections"):
                    await database.fetch("SELECT one")
                assert await database.ping()  # as the last time
            assert not database.full and await database.fetch("SELECT one")

    asyncio.run(go())
    assert rig.failures == 0


def test_a_breaker_opens_and_closes_although_nobody_calls(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async def state(wanted: State) -> None:
        while rig.breaker.state is not wanted:
            await asyncio.sleep(0.005)

    async def go() -> None:
        await rig.server.start()
        await rig.server.stop()
        database = rig.client()
        assert not await database.open()
        assert "can't be reached" in database.error and database.latency is None
        stopping = asyncio.Event()
        task = asyncio.ensure_future(database.run(stopping))
        await asyncio.wait_for(state(State.OPEN), 20)
        with pytest.raises(DatabaseAway) as caught:
            await database.fetch("SELECT one")
        chain: BaseException | None = caught.value
        while chain is not None:
            assert PASSWORD not in f"{chain!r} {chain}"
            chain = chain.__cause__ or chain.__context__
        await rig.server.start()
        await asyncio.wait_for(state(State.CLOSED), 20)
        # A failure of a caller makes it ask soon, long before the next ping is due.
        heard = rig.server.heard.count("SELECT 1")
        with pytest.raises(DatabaseAway):
            await database.execute("die")
        while rig.server.heard.count("SELECT 1") == heard:
            await asyncio.sleep(0.005)
        stopping.set()
        await asyncio.wait_for(task, 5)
        await database.close()
        await rig.server.stop()

    asyncio.run(go())
    assert PASSWORD not in caplog.text and "does not answer" in caplog.text


def test_a_caller_who_waits_has_a_connection_as_soon_as_one_can_be_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a move: what there was has ended, and the new primary is there a moment later."""
    monkeypatch.setattr(pool, "_IMPATIENT", 10.0)

    async def go() -> None:
        async with running(rig) as database:
            await rig.server.stop()
            asked = asyncio.ensure_future(database._pool.take(10.0))
            # Long enough that the pool has given its attempts up: it makes none by itself then.
            await asyncio.sleep(1.0)
            assert not asked.done()
            await rig.server.start()
            back = time.monotonic()
            connection = await asked
            assert time.monotonic() - back < 3, "the pool waits between its attempts"
            await database._pool.give_back(connection)

    asyncio.run(go())


def test_a_server_that_turns_connections_away_is_away(rig: Rig) -> None:
    rig.server.refuse = "53300"

    async def go() -> str:
        await rig.server.start()
        database = rig.client()
        assert not await database.open()
        # More callers than connections: those that are only being made are not in use.
        found = await asyncio.gather(*(database.fetch("SELECT one") for _turn in range(8)), return_exceptions=True)
        assert all(isinstance(one, DatabaseAway) and not isinstance(one, DatabaseBusy) for one in found)
        await database.close()
        await rig.server.stop()
        with pytest.raises(DatabaseAway):
            await database.fetch("SELECT one")
        return database.error

    assert "as the test wants" in asyncio.run(go())
    assert rig.breaker.state is not State.CLOSED


def test_the_connection_string_checks_the_name_and_bounds_everything() -> None:
    tls = {"ca": "/ca", "cert": "/cert", "key": "/key"}
    config = configs.parse({"deployment": {"data_proxy": "192.0.2.7", "tls": tls}, "database": {"connect_timeout": 4}})
    found = psycopg.conninfo.conninfo_to_dict(conninfo(config, config.deployment.cells[0], "p w'd", "shannon-test"))
    assert (found["host"], found["hostaddr"], found["sslmode"]) == ("localhost", "192.0.2.7", "verify-full")
    assert (found["sslrootcert"], found["password"], found["application_name"]) == ("/ca", "p w'd", "shannon-test")
    assert found["target_session_attrs"] == "read-write" and found["connect_timeout"] == "4"
    assert "statement_timeout=15000" in found["options"] and found["tcp_user_timeout"] == "17000"
    plain = configs.parse({})
    assert (
        psycopg.conninfo.conninfo_to_dict(conninfo(plain, plain.deployment.cells[0], "x", "y"))["sslmode"] == "prefer"
    )


# ---- the store


def event(number: int, **values: t.Any) -> Record:
    return Record("event_log", "task", {"workflow_id": "w", "type": "T", "seq": number, **values})


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_batch_is_one_transaction_in_order(rig: Rig, pipeline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pipeline:
        monkeypatch.setattr(psycopg.capabilities, "has_pipeline", lambda: False)

    async def go() -> list[Record]:
        async with running(rig) as database:
            records = [event(number) for number in range(20)]
            await PostgresStore(database).write(records)
            return records

    records = asyncio.run(go())
    begin = rig.server.heard.index("BEGIN")
    assert rig.server.heard[begin + 21] == "COMMIT"
    assert all(text.endswith("ON CONFLICT DO NOTHING") for text in rig.server.heard[begin + 1 : begin + 21])
    written = [values[0] for values in rig.server.values if len(values) == 4]
    assert written == [record.id.encode() for record in records]


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_wrong_record_undoes_its_batch_and_the_connection_lives_on(
    rig: Rig, pipeline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pipeline:
        monkeypatch.setattr(psycopg.capabilities, "has_pipeline", lambda: False)
    monkeypatch.setitem(TABLES, "audit_log", ("fail 23503", TABLES["event_log"][1]))

    async def go() -> None:
        async with running(rig) as database:
            store = PostgresStore(database)
            wrong = Record("audit_log", "task", {"workflow_id": "w"})
            # More often than it takes for the driver to prepare a statement.
            for _turn in range(7):
                with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
                    await store.write([event(1), wrong, event(2)])
                assert not store.is_away(caught.value)
            await store.write([event(3)])
            assert rig.server.connections == 1 and rig.failures == 0

    asyncio.run(go())
    assert rig.server.heard.count("ROLLBACK") == 7 and rig.server.heard[-1] == "COMMIT"


@pytest.mark.parametrize(
    ("state", "away"),
    [("40P01", True), ("55P03", True), ("57014", True), ("53100", True), ("58030", True), ("22P02", False)],
)
def test_what_may_pass_is_no_fault_of_the_records(rig: Rig, state: str, away: bool) -> None:
    async def go() -> None:
        async with running(rig) as database:
            with pytest.raises(psycopg.Error) as caught:
                await database.execute(f"fail {state}")
            assert PostgresStore(database).is_away(caught.value) is away

    asyncio.run(go())


def test_characters_that_postgresql_cannot_store_are_replaced_everywhere() -> None:
    record = event(1, message="a\0b", payload={"k\0": ["\0", {"deep": "x \ud83d y"}], "kept": "\\u0000 \U0001f600"})
    _text, values = statement(Record.decoded(record.encoded()))
    assert values["message"] == "a\ufffdb"
    assert json.loads(values["payload"]) == {
        "k\ufffd": ["\ufffd", {"deep": "x \ufffd y"}],
        "kept": "\\u0000 \U0001f600",
    }


def test_every_kind_has_a_table_and_refuses_other_columns() -> None:
    assert set(TABLES) == set(KINDS)
    for kind, (_table, columns) in TABLES.items():
        text, values = statement(Record(kind, "k", dict.fromkeys(columns)))
        assert set(values) == {"id", *columns} and TABLES[kind][0] in text.as_string()
        with pytest.raises(ValueError, match="has no nonsense"):
            statement(Record(kind, "k", {"nonsense": 1}))

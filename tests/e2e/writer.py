"""A client that writes one record after the other through the local data proxy, and notes what was acknowledged.

It runs on a lab host, as a service would: with the host's certificate and a user's password, and it never learns where
the primary is. Each acknowledged write is a line ``{"id": n, "at": seconds}`` in the log; a write whose answer was lost
counts as not acknowledged. It stops on SIGTERM.

    writer.py postgres|redis|qdrant --log FILE --password-file FILE [--interval SECONDS]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import typing as t
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

PKI = "/etc/shannon/pki"
#: How long a client waits for one answer before it gives up and tries anew; seconds.
ANSWER_WITHIN = 2


class Store(t.Protocol):
    """One store behind the data proxy: connect, write one record, and read back what is there."""

    def connect(self) -> None: ...

    def write(self, number: int) -> None: ...

    def ids(self) -> set[int]: ...


class Postgres:
    """Inserts rows as the application's role."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.connection: t.Any = None

    def connect(self) -> None:
        import psycopg2

        self.connection = psycopg2.connect(
            host="localhost",
            port=15432,
            dbname="shannon",
            user="shannon",
            password=self.password,
            sslmode="verify-full",
            sslrootcert=f"{PKI}/ca.crt",
            sslcert=f"{PKI}/host.crt",
            sslkey=f"{PKI}/host.key",
            connect_timeout=ANSWER_WITHIN,
            tcp_user_timeout=ANSWER_WITHIN * 1000,
            options=f"-c statement_timeout={ANSWER_WITHIN}s",
            application_name="e2e-writer",
        )
        self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS e2e_writes (id bigint PRIMARY KEY, at timestamptz DEFAULT now())"
            )

    def write(self, number: int) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("INSERT INTO e2e_writes (id) VALUES (%s)", (number,))

    def ids(self) -> set[int]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT id FROM e2e_writes")
            return {row[0] for row in cursor.fetchall()}


class Redis:
    """Adds members to a sorted set, and waits for one replica as a careful client does."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.connection: t.Any = None

    def connect(self) -> None:
        from shannon_library.redis import RedisClient
        from shannon_library.tls import TlsFiles, client_context

        if self.connection is not None:
            self.connection.close()
        self.connection = RedisClient(
            "localhost", 16379, "app", self.password, client_context(TlsFiles()), timeout=ANSWER_WITHIN
        )

    def write(self, number: int) -> None:
        self.connection.command(["ZADD", "e2e:writes", str(number), str(number)])
        replicas = self.connection.command(["WAIT", "1", "1000"])
        if int(replicas) < 1:
            raise RuntimeError("no replica confirmed the write")

    def ids(self) -> set[int]:
        return {int(member) for member in self.connection.command(["ZRANGE", "e2e:writes", "0", "-1"])}


class Qdrant:
    """Upserts points and waits until they are applied."""

    def __init__(self, password: str) -> None:
        from shannon_library.http_client import JsonEndpoint
        from shannon_library.tls import TlsFiles, client_context

        self.endpoint = JsonEndpoint(
            "localhost", 16333, client_context(TlsFiles()), timeout=ANSWER_WITHIN, headers={"api-key": password}
        )
        self.size = 0

    def connect(self) -> None:
        found = self.endpoint.expect("GET", "/collections/summaries")
        self.size = found["result"]["config"]["params"]["vectors"]["size"]

    def write(self, number: int) -> None:
        vector = [0.0] * self.size
        vector[number % self.size] = 1.0
        body = {"points": [{"id": number, "vector": vector, "payload": {"session_id": "e2e"}}]}
        self.endpoint.expect("PUT", "/collections/summaries/points?wait=true", body)

    def ids(self) -> set[int]:
        found: set[int] = set()
        offset: int | None = None
        while True:
            body: dict[str, t.Any] = {"limit": 1000, "with_payload": False, "with_vector": False}
            if offset is not None:
                body["offset"] = offset
            page = self.endpoint.expect("POST", "/collections/summaries/points/scroll", body, timeout=10)["result"]
            found |= {point["id"] for point in page["points"]}
            offset = page["next_page_offset"]
            if offset is None:
                return found


STORES: dict[str, t.Callable[[str], Store]] = {"postgres": Postgres, "redis": Redis, "qdrant": Qdrant}


def write_until_stopped(store: Store, log: Path, interval: float, first: int) -> None:
    """Write one record after the other; after a failure the next id is tried on a new connection."""
    running = True

    def stop(_signal: int, _frame: t.Any) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    connected = False
    number = first
    with log.open("a", buffering=1) as lines:
        while running:
            number += 1
            try:
                if not connected:
                    store.connect()
                    connected = True
                store.write(number)
                lines.write(json.dumps({"id": number, "at": time.time()}) + "\n")
            except Exception as exc:  # any failure of a client is what this measures
                connected = False
                lines.write(json.dumps({"failed": number, "at": time.time(), "error": str(exc)[:200]}) + "\n")
            time.sleep(interval)


def missing(store: Store, log: Path) -> list[int]:
    """Acknowledged ids that the store does not have."""
    acknowledged = {entry["id"] for line in log.read_text().splitlines() if "id" in (entry := json.loads(line))}
    store.connect()
    return sorted(acknowledged - store.ids())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", choices=sorted(STORES))
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--interval", type=float, default=0.05)
    parser.add_argument("--first", type=int, default=0, help="ids start above this number")
    parser.add_argument("--check", action="store_true", help="print the acknowledged ids that are missing, as JSON")
    args = parser.parse_args()
    store = STORES[args.store](args.password_file.read_text().strip())
    if args.check:
        print(json.dumps(missing(store, args.log)))
        return 0
    write_until_stopped(store, args.log, args.interval, args.first)
    return 0


if __name__ == "__main__":
    sys.exit(main())

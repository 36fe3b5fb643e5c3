# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host's PostgreSQL has of a cell: schema version, indexes, rows. A primary and a follower can say it."""

from __future__ import annotations

import json
import threading
import time
import typing as t

from shannon.resilience.errors import ResilienceError

from .settings import CellSettings, Settings
from .sql import ask

#: Tables up to this size are counted; of a larger one the estimate of the last ANALYZE is told.
COUNTED_BYTES = 64 * 2**20
#: Seconds that the questions may take in PostgreSQL, and until psql is given up.
WITHIN = 4.0
GIVEN_UP = 6.0
#: Seconds for which an answer is told again: who may ask must not be able to keep the disks busy.
FRESH = 0.5

_TABLES = """
SELECT c.oid, format('%%I.%%I', n.nspname, c.relname) AS name, c.reltuples,
       pg_total_relation_size(c.oid) <= %(counted)d AS counted, pg_stat_get_tuples_deleted(c.oid) AS deleted
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
#: query_to_xml is how one statement counts tables that it does not name.
_QUESTION = """
SET statement_timeout = %(timeout)d;
SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'version', current_setting('server_version'),
  'migrated', to_regclass('public.schema_migrations') IS NOT NULL,
  'indexes', (
    SELECT coalesce(json_object_agg(format('%%I.%%I', n.nspname, c.relname), i.indisvalid AND i.indisready), '{}')
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'),
  'tables', (
    SELECT coalesce(json_object_agg(name, json_build_object(
      'rows', CASE WHEN counted
        THEN ((xpath('/row/rows/text()', query_to_xml('SELECT count(*) AS rows FROM ' || name, false, true, '')))[1]
              ::text)::bigint
        ELSE reltuples::bigint END,
      'exact', counted, 'deleted', deleted)), '{}')
    FROM (%(tables)s) AS found))
"""
_MIGRATIONS = (
    "SELECT coalesce(json_object_agg(version, json_build_array(name, checksum)), '{}') FROM public.schema_migrations"
)


class Facts:
    """Answers for the cells of this host."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cells = {cell.name: cell for cell in settings.cells if settings.host in self._hosts()}
        self._locks = {name: threading.Lock() for name in self._cells}
        self._told: dict[str, tuple[float, dict[str, t.Any]]] = {}

    def _hosts(self) -> t.Mapping[str, str]:
        return self._settings.postgres.get(self._settings.region, {})

    def answerers(self) -> dict[str, t.Callable[[dict[str, t.Any], str], tuple[int, dict[str, t.Any]]]]:
        """Path to answerer, as the listener takes them."""
        return {f"/facts/{name}": lambda _question, _address, name=name: self._answer(name) for name in self._cells}

    def _answer(self, name: str) -> tuple[int, dict[str, t.Any]]:
        # Many that ask at once are told the same.
        with self._locks[name]:
            at, said = self._told.get(name, (float("-inf"), {}))
            if time.monotonic() - at > FRESH:
                try:
                    said = self.look(self._cells[name])
                except ResilienceError as exc:
                    return 503, {"reason": str(exc)}
                self._told[name] = (time.monotonic(), said)
        return 200, said

    def look(self, cell: CellSettings) -> dict[str, t.Any]:
        """Ask PostgreSQL.

        :raises ResilienceError: it does not run here, or did not answer in time.
        """
        tables = _TABLES % {"counted": COUNTED_BYTES}
        question = _QUESTION % {"timeout": WITHIN * 1000, "tables": tables}
        database, port = self._settings.database, cell.postgres
        found: dict[str, t.Any] = _document(ask(question, database, port, GIVEN_UP))
        migrations: dict[str, t.Any] = {}
        if found.pop("migrated", False):
            migrations = _document(ask(_MIGRATIONS, database, port, GIVEN_UP))
        return {"host": self._settings.host, **found, "migrations": migrations}


def _document(lines: list[str]) -> dict[str, t.Any]:
    try:
        value = json.loads("\n".join(lines))
    except ValueError as exc:
        raise ResilienceError(f"PostgreSQL of this host answered {' '.join(lines)[:200]!r} instead of JSON") from exc
    if not isinstance(value, dict):
        raise ResilienceError("PostgreSQL of this host did not answer with a JSON object")
    return value

"""Finish a committed batch: drop for good what it had renamed away; also after a crash in the middle of that.

A MariaDB that dies in an ALTER which copies a table loses foreign keys of the table (seen on 10.11), so what the table
has is written into the journal ahead of it, and made again.
"""

from __future__ import annotations

import pymysql
import structlog

from api.db.dialects.engine import Engine
from api.db.journal import snapshot
from api.db.journal.definition import TableDefinition, parse
from api.db.journal.link import Link, name
from api.db.journal.steady import steady
from api.db.journal.store import PREFIX, Entry, Store

log = structlog.get_logger(__name__)


def is_finished(batch: Store, engine: Engine) -> bool:
    """Finish a committed batch; say whether that was possible: what cannot be dropped now waits for the next ``up``."""
    try:
        finish(batch, engine)
    except pymysql.err.MySQLError as exc:
        log.warning("the batch stands, but what it dropped is still there under other names", reason=str(exc))
        return False
    return True


def finish(batch: Store, engine: Engine) -> None:
    """Drop what a committed batch renamed away, and close it. Raises PyMySQL's errors; it may be called again."""
    with steady(batch.link, engine, foreign_keys=True):
        entries = batch.entries()
        for entry in entries:
            if entry.kind == "finish":
                _make_keys_again(batch.link, entry)
        if any(entry.buried for entry in entries):
            _drop_tables(batch)
            _drop_columns(batch, engine, 1 + entries[0].number)
        batch.close()


def _pattern(batch: Store) -> str:
    return f"{PREFIX}{batch.id}_".replace("_", r"\_") + "%"


def _drop_tables(batch: Store) -> None:
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE %s"
    for (table,) in batch.link.rows(tables, (_pattern(batch),)):
        batch.link.execute(f"DROP TABLE IF EXISTS {name(table)}")


def _drop_columns(batch: Store, engine: Engine, number: int) -> None:
    columns = """SELECT table_name, column_name FROM information_schema.columns
                 WHERE table_schema = DATABASE() AND column_name LIKE %s ORDER BY table_name"""
    found: dict[str, list[str]] = {}
    for table, column in batch.link.rows(columns, (_pattern(batch),)):
        found.setdefault(table, []).append(f"DROP COLUMN {name(column)}")
    for at, (table, drops) in enumerate(found.items(), number):
        sql = f"ALTER TABLE {name(table)} {', '.join(drops)}"
        if engine == "mariadb" and _table(batch.link, table).foreign_keys:
            batch.write(Entry(at, "finish", sql, snapshot.definitions(batch.link, [table])))
        batch.link.execute(sql)


def _table(link: Link, table: str) -> TableDefinition:
    return parse(str(snapshot.definitions(link, [table])[table]))


def _make_keys_again(link: Link, entry: Entry) -> None:
    for table, was in entry.before.items():
        now = snapshot.definitions(link, [table])[table]
        if now is None:
            continue  # somebody dropped the table meanwhile
        standing = parse(now).foreign_keys
        lost = {key: line for key, line in parse(str(was)).foreign_keys.items() if key not in standing}
        if lost:
            link.execute(f"ALTER TABLE {name(table)} " + ", ".join(f"ADD {line}" for line in lost.values()))
            log.warning("foreign keys that the server lost were made again", table=table, keys=sorted(lost))

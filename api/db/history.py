"""The two tables that remember migrations: what stands (*migration_history*) and what was tried (*migration_attempt*).

A history row means the migration's latest state; ``success`` and ``skipped`` are final, ``failed`` is pending
still. Attempts are only ever added. Both tables are read and written through the database that is migrated.
"""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import peewee

from api.db.dialects.categories import Category
from api.db.dialects.connecting import driver_code
from api.db.dialects.engine import Engine, engine_of
from api.db.dialects.errors import classify
from api.db.lease import user_name
from api.logs import redact, storable

Status = Literal["success", "failed", "skipped"]
# MySQL's TEXT holds 65,535 bytes, and a character of utf8mb4 takes up to four.
TEXT_LENGTH = 8_000
# MySQL and MariaDB error numbers: no such table, column, index.
MISSING = (1146, 1054, 1176)
# What others wrote: a server, a migration. It may hold a secret.
SAID = ("error_message", "statement", "reason")
DONE: frozenset[str] = frozenset({"success", "skipped"})


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A migration's latest state. *reason* is why it was skipped; *applied_at* is UTC."""

    migration_name: str
    status: Status
    db_type: str
    applied_at: dt.datetime
    duration_ms: int | None = None
    error_message: str | None = None
    reason: str | None = None
    checksum: str | None = None
    applied_by: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one migration.

    *status* is ``success``, ``skipped``, ``failed``, ``rolled_back``, or ``interrupted`` for what is not undone yet.
    """

    migration_name: str
    action: str
    status: str
    db_type: str
    started_at: dt.datetime
    batch: str
    duration_ms: int | None = None
    error_message: str | None = None
    statement: str | None = None
    run_by: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Recorder:
    """Makes the rows of one batch: on which engine, in which direction, by whom and when."""

    engine: Engine
    direction: str
    batch: str

    def row(self, name: str, checksum: str | None, status: Status, **details: Any) -> HistoryRow:
        """Return the state of migration *name* as of now."""
        by = f"{user_name()}@{socket.gethostname()}"[:255]
        return HistoryRow(name, status, self.engine, utc_now(), checksum=checksum, applied_by=by, **details)

    def attempt(self, name: str, status: str, **details: Any) -> Attempt:
        """Return a try at migration *name*; *details* may name another action or batch."""
        who: dict[str, Any] = {"run_by": user_name()[:255], "host": socket.gethostname()[:255]}
        facts: dict[str, Any] = {
            "action": self.direction,
            "db_type": self.engine,
            "started_at": utc_now(),
            "batch": self.batch,
        }
        return Attempt(name, status=status, **facts | who | details)


HISTORY = peewee.Table("migration_history", [field.name for field in fields(HistoryRow)])
ATTEMPT = peewee.Table("migration_attempt", ["id", *(field.name for field in fields(Attempt))])


STATES_AND_BATCHES = """
SELECT migration_name, status, 0 FROM migration_history UNION ALL SELECT batch, state, 1 FROM migration_batch"""


def utc_now() -> dt.datetime:
    """Return the time now in UTC, without an offset: as the tables keep it."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None, microsecond=0)


def _models(database: peewee.Database) -> tuple[type[peewee.Model], type[peewee.Model]]:
    # utf8mb4 by name: on a MariaDB database that defaults to latin1 an error text could not be stored. Names are
    # compared byte by byte: the servers' own collations take "0001_a" and "0001_A" for one.
    is_mysql = isinstance(database, peewee.MySQLDatabase)
    settings = ["CHARACTER SET utf8mb4"] if is_mysql else None

    class MigrationHistory(peewee.Model):
        migration_name = peewee.CharField(unique=True, collation="utf8mb4_bin" if is_mysql else None)
        applied_at = peewee.DateTimeField()
        status = peewee.CharField(max_length=16)
        error_message = peewee.TextField(null=True)
        duration_ms = peewee.IntegerField(null=True)
        db_type = peewee.CharField(max_length=16)
        reason = peewee.TextField(null=True)
        checksum = peewee.CharField(max_length=64, null=True)
        applied_by = peewee.CharField(null=True)

        class Meta:
            legacy_table_names = False
            table_settings = settings

    MigrationHistory.add_index(
        MigrationHistory.index(MigrationHistory.migration_name, MigrationHistory.status, name="idx_migration_status")
    )

    class MigrationAttempt(peewee.Model):
        migration_name = peewee.CharField(index=True)
        action = peewee.CharField(max_length=16)
        status = peewee.CharField(max_length=16)
        started_at = peewee.DateTimeField()
        duration_ms = peewee.IntegerField(null=True)
        error_message = peewee.TextField(null=True)
        statement = peewee.TextField(null=True)
        batch = peewee.CharField(max_length=36)
        run_by = peewee.CharField(null=True)
        host = peewee.CharField(null=True)
        db_type = peewee.CharField(max_length=16)

        class Meta:
            legacy_table_names = False
            table_settings = settings

    database.bind([MigrationHistory, MigrationAttempt])
    return MigrationHistory, MigrationAttempt


def create_tables(database: peewee.Database) -> None:
    """Create both tables, and add what is missing of them: an older release's, or those of a boot that was killed.

    Call it under the migration lock: CREATE races on PostgreSQL.
    """
    if isinstance(database, peewee.MySQLDatabase) and _are_whole(database):
        return
    standing = set(database.get_tables())
    for model in _models(database):
        if model._meta.table_name not in standing:
            model.create_table(safe=False)
        else:
            _add_missing_columns(database, model)
            _add_missing_indexes(database, model)


def _are_whole(database: peewee.Database) -> bool:
    """Say whether MySQL or MariaDB finds every column and index: asked by name, which spares its catalogue."""
    for model in _models(database):
        columns = ", ".join(field.column_name for field in model._meta.sorted_fields)
        indexes = ", ".join(index._name for index in model._meta.fields_to_index())
        try:
            database.execute_sql(f"SELECT {columns} FROM {model._meta.table_name} USE INDEX ({indexes}) LIMIT 0")
        except peewee.PeeweeException as exc:
            if driver_code(exc) in MISSING:
                return False
            raise
    return True


def _add_missing_columns(database: peewee.Database, model: type[peewee.Model]) -> None:
    table = model._meta.table_name
    # Asked of the table itself: the servers' own catalogues take longer.
    standing = {column[0] for column in database.execute_sql(f"SELECT * FROM {table} LIMIT 0").description}
    for field in model._meta.sorted_fields:
        if field.column_name not in standing:
            sql, _ = database.get_sql_context().sql(field.ddl(database.get_sql_context())).query()
            database.execute_sql(f"ALTER TABLE {table} ADD COLUMN {sql}")


def _add_missing_indexes(database: peewee.Database, model: type[peewee.Model]) -> None:
    # Elsewhere the tables and their indexes come in one transaction, here each by itself.
    standing = database.get_indexes(model._meta.table_name)
    shapes = [(index.columns, index.unique) for index in standing]
    for index in model._meta.fields_to_index():
        shape = ([field.column_name for field in index._expressions], index._unique)
        if shape not in shapes and index._name not in {each.name for each in standing}:
            database.execute(index.safe(False))


def read_states(database: peewee.Database) -> dict[str, str] | None:
    """Return ``{migration_name: status}`` by one query, or ``None`` when the table does not exist yet."""
    try:
        return dict(database.execute_sql("SELECT migration_name, status FROM migration_history").fetchall())
    except peewee.DatabaseError as exc:
        if classify(exc, engine_of(database)).category is Category.MISSING_TABLE:
            return None
        raise


def look(database: peewee.Database) -> tuple[dict[str, str], bool]:
    """Return the states, and whether an interrupted batch has to be undone or finished first; by one query."""
    if not isinstance(database, peewee.MySQLDatabase):
        return read_states(database) or {}, False
    try:
        rows = database.execute_sql(STATES_AND_BATCHES).fetchall()
    except peewee.DatabaseError as exc:
        if classify(exc, engine_of(database)).category is Category.MISSING_TABLE:
            return read_states(database) or {}, False  # a release before the journal made the history
        raise
    return {name: status for name, status, is_batch in rows if not is_batch}, any(row[2] for row in rows)


def done_in(states: dict[str, str]) -> set[str]:
    """Return the names of *states* that need not run again."""
    return {name for name, status in states.items() if status in DONE}


def read_history(database: peewee.Database) -> list[HistoryRow]:
    """Return every history row in the order of the names; empty when the table does not exist yet."""
    if read_states(database) is None:
        return []
    history = HISTORY.bind(database)
    rows = history.select().order_by(history.migration_name).dicts()
    return [HistoryRow(**_with_times(row, "applied_at")) for row in rows]


def read_attempts(database: peewee.Database, limit: int | None = None) -> list[Attempt]:
    """Return the attempts, oldest first; with *limit* only the newest so many."""
    if read_states(database) is None:
        return []
    attempt = ATTEMPT.bind(database)
    columns = [getattr(attempt, field.name) for field in fields(Attempt)]
    rows = attempt.select(*columns).order_by(attempt.id.desc()).limit(limit).dicts()
    return [Attempt(**_with_times(row, "started_at")) for row in reversed(list(rows))]


def _with_times(row: dict[str, Any], name: str) -> dict[str, Any]:
    # A bare Table has no fields: SQLite hands its timestamps back as text.
    value = row[name]
    return row | {name: dt.datetime.fromisoformat(value) if isinstance(value, str) else value}


def write(database: peewee.Database, rows: Sequence[HistoryRow], attempts: Sequence[Attempt]) -> None:
    """Replace the history rows of the same names and add *attempts*, as one transaction or savepoint."""
    with database.atomic():
        if rows:
            delete(database, [row.migration_name for row in rows])
            _insert(database, "migration_history", rows)
        if attempts:
            _insert(database, "migration_attempt", attempts)


def write_failure(database: peewee.Database, rows: Sequence[HistoryRow], attempts: Sequence[Attempt]) -> None:
    """Do as ``write``, but leave a row that is done: another process has applied it since we lost the lock."""
    with database.atomic():
        if rows:
            history = HISTORY.bind(database)
            named = history.migration_name.in_([row.migration_name for row in rows])
            history.delete().where(named & history.status.not_in(sorted(DONE))).execute()
            _insert(database, "migration_history", rows, unless_there=True)
        if attempts:
            _insert(database, "migration_attempt", attempts)


def _insert(
    database: peewee.Database,
    table: str,
    rows: Sequence[HistoryRow] | Sequence[Attempt],
    unless_there: bool = False,
) -> None:
    # One statement of our own: peewee's takes longer to build for a hundred rows than the server to run.
    names = [field.name for field in fields(rows[0])]
    one = f"({', '.join([database.param] * len(names))})"
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([one] * len(rows))}"
    if unless_there:
        # The unique index decides, not a look: another session's row may be committed between the two.
        is_mysql = isinstance(database, peewee.MySQLDatabase)
        sql += f" ON DUPLICATE KEY UPDATE {names[0]} = {table}.{names[0]}" if is_mysql else " ON CONFLICT DO NOTHING"
    database.execute_sql(sql, [_kept(name, getattr(row, name)) for row in rows for name in names])


def _kept(column: str, value: Any) -> Any:
    """Return *value* as a row may hold it: without what a server said or was sent in secret, and not too long."""
    if not isinstance(value, str):
        return value
    text = storable(redact(value) if column in SAID else value)
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def delete(database: peewee.Database, names: Iterable[str]) -> None:
    """Delete the history rows of *names*; the attempts stay."""
    history = HISTORY.bind(database)
    history.delete().where(history.migration_name.in_(list(names))).execute()

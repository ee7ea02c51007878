"""See each statement before the server does, on the driver's own connection, and journal what it changes.

The hook sits on PyMySQL's ``Connection.query``, below every path that a migration can take: peewee, playhouse, a
cursor of its own. ``commit``, ``rollback`` and ``begin`` of the driver pass by: they change no schema.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import peewee
import pymysql

from api.db.dialects.engine import Engine
from api.db.journal import graves, losing, rows, shapes, snapshot, triggers
from api.db.journal.born import Born, folded, tables_of
from api.db.journal.definition import TableDefinition, parse
from api.db.journal.link import Link, Memory, name
from api.db.journal.reading import read
from api.db.journal.rights import Rights, refuse_missing_rights, require
from api.db.journal.statement import (
    Action,
    AlterTable,
    ChangeView,
    Clause,
    CreateTable,
    CreateTrigger,
    Delete,
    DropTables,
    DropTrigger,
    Free,
    Insert,
    RenameTables,
    Statement,
    TemporaryTable,
    Update,
)
from api.db.journal.store import OUR_TABLES, Entry, Store
from api.db.journal.undo import undo_since
from api.exceptions import MigrationError, StatementRefusedError

SAVEPOINT = "plinth_rows"


class Hook:
    """Take each statement of one session, journal what it changes, and send it, or what does the same reversibly."""

    def __init__(self, store: Store, engine: Engine, undo_rows: int) -> None:
        self.store = store
        self.link: Link = store.link
        self.memory = Memory(store.link)
        self.engine = engine
        self.undo_rows = undo_rows
        self.born = Born()
        self.rights = Rights(self.link)
        self._send: Callable[..., Any] = self.link.connection.query
        self._schema, self._folds = self.link.rows("SELECT DATABASE(), @@lower_case_table_names <> 0")[0]

    def query(self, sql: str | bytes, unbuffered: bool = False) -> Any:
        """Stand in for the connection's ``query``. Raises ``StatementRefusedError`` for what cannot be undone."""
        text = sql if isinstance(sql, str) else sql.decode("utf8", "surrogateescape")
        statement = read(text)
        if statement.schemas - {self._schema}:
            raise StatementRefusedError(
                f"the statement changes another database, {sorted(statement.schemas)[0]!r}: it could not be undone",
                hint="migrate that database by its own URL, or " + StatementRefusedError.default_hint,
            )
        if isinstance(statement, Free):
            return self._send(sql, unbuffered)
        statement = folded(statement) if self._folds else statement
        if ours := OUR_TABLES & set(tables_of(statement)):
            raise StatementRefusedError(
                f"{min(ours)!r} is a table of the migrations' own", hint="give yours another name"
            )
        self._journal(statement)
        # What the cursor reads next is the answer to its own statement.
        return self._last

    _last: Any = None

    def _run(self, sql: str) -> None:
        self._last = self._send(sql)

    def _journal(self, statement: Statement) -> None:
        if not isinstance(statement, Update | Delete | Insert):
            self.memory.forget()
        match statement:
            case TemporaryTable():
                self._hide(statement)
            case CreateTable():
                self._create_table(statement)
            case DropTables():
                self._drop_tables(statement)
            case RenameTables():
                self._rename_tables(statement)
            case AlterTable():
                self._alter(statement)
            case ChangeView():
                self._write_ahead(statement, snapshot.definitions(self.link, statement.views))
                self._run(statement.sql)
            case CreateTrigger() | DropTrigger():
                self._trigger(statement)
            case Update() | Delete() | Insert():
                self._rows(statement)

    def _hide(self, statement: TemporaryTable) -> None:
        if not statement.dropped:
            new = [table for table in statement.tables if table not in self.born.temporary]
            real = snapshot.standing(snapshot.definitions(self.link, new)) | self.born.touched & set(new)
            if real:
                raise StatementRefusedError(
                    f"the temporary table would hide the table {min(real)!r}", hint="give it a name of its own"
                )
        self._run(statement.sql)
        self.born.hide(statement)

    # Structure -------------------------------------------------------------------------------------------------

    def _write_ahead(self, statement: Statement, before: dict[str, str | None], **facts: Any) -> Entry:
        """Write the entry for *statement* and commit it, with whatever the migration left uncommitted."""
        self.born.refuse_hidden(before)
        self.born.touched.update(before)
        refuse_missing_rights(self.rights, statement, before)
        self.born.is_tied |= "references" in statement.names or isinstance(statement, CreateTrigger)
        explained: dict[str, Any] = {"names": tuple(sorted(statement.names)), "whole": statement.whole}
        explained["made"] = tuple(sorted(statement.made)) if isinstance(statement, AlterTable) else ()
        explained["born"] = [table for table in before if table in self.born.tables]
        if "number" not in facts:
            facts["number"] = self.store.next_number()
        entry = Entry(kind=facts.pop("kind", "tables"), statement=statement.sql, before=before, **explained | facts)
        self.store.write(entry)
        if self.link.in_transaction:
            self.link.execute("COMMIT")
        return entry

    def _create_table(self, statement: CreateTable) -> None:
        self.born.refuse_hidden([statement.table])
        before = snapshot.definitions(self.link, [statement.table])
        if before[statement.table] is not None:
            self._run(statement.sql)
            return
        copied = bool({"like", "select"} & statement.names)
        entry = self._write_ahead(statement, before, whole=copied)
        self._run(statement.sql)
        self.born.tables[statement.table] = entry

    def _drop_tables(self, statement: DropTables) -> None:
        named = [table for table in statement.tables if table not in self.born.temporary]
        before = snapshot.definitions(self.link, named)
        standing = {table: text for table, text in before.items() if text is not None and snapshot.is_table(text)}
        missing = [table for table in named if table not in standing]
        if missing and not statement.if_exists:
            self._run("DROP TABLE " + ", ".join(name(table) for table in missing))
        for definition in map(parse, standing.values()):
            _refuse_other_engine(definition)
            graves.refuse_long_names(definition)
        number = self.store.next_number()
        buried = {table: self.store.grave(number, f"t{at}") for at, table in enumerate(standing)}
        graves.refuse_referred(self.link, buried, self.engine)
        if buried:
            before = {**standing, **dict.fromkeys(buried.values())}
            self._write_ahead(statement, before, number=number, tables=list(buried.items()), whole=True, buried=True)
            self._run(graves.bury_tables(buried))
            for table, grave in buried.items():
                self.born.forget(table)
                release = graves.release(self.link, grave, self.engine)
                if release:
                    self._run(release)
        rest = [table for table in statement.tables if table in self.born.temporary]
        self._run("DROP TEMPORARY TABLE " + ", ".join(name(table) for table in rest) if rest else "DO 0")
        self.born.temporary.difference_update(rest)

    def _rename_tables(self, statement: RenameTables) -> None:
        pairs = statement.pairs
        touched = list(dict.fromkeys(table for pair in pairs for table in pair))
        before = snapshot.definitions(self.link, touched)
        standing = snapshot.standing(before)
        if snapshot.renamed(standing, pairs) == standing:
            raise StatementRefusedError(
                "the statement swaps tables: after a crash nothing would tell whether it ran",
                hint="rename them one statement after the other",
            )
        for text in before.values():
            if text is not None and snapshot.is_table(text):
                _refuse_other_engine(parse(text))
        if statement.if_exists:
            pairs = tuple(pair for pair in pairs if before[pair[0]] is not None)
        self._write_ahead(statement, before, tables=list(pairs))
        self._run(statement.sql)
        for old, new in pairs:
            self.born.rename(old, new)

    def _alter(self, statement: AlterTable) -> None:
        if statement.table in self.born.temporary:
            self.born.refuse_hidden([statement.table] if statement.new_table else [])
            self._run(statement.sql)
            return
        is_born = statement.table in self.born.tables
        if is_born:
            self._widen(statement)
        if is_born and statement.new_table is None:
            self._run(statement.sql)
            return
        before = snapshot.definitions(self.link, [statement.table])
        definition = before[statement.table]
        if definition is None or not snapshot.is_table(definition):
            self._run(statement.sql)  # the server says what is wrong with it
            return
        table = parse(definition)
        _refuse_other_engine(table)
        if is_born:
            self._alter_plainly(statement, before, table)
            return
        losing.refuse_lost(self.link, statement, table)
        buried = graves.dropped_columns(statement, table)
        changed = [clause for clause in statement.clauses if clause.action is Action.CHANGE_COLUMN]
        lossy = [clause for clause in changed if losing.is_lossy(clause, table, self.engine)]
        if buried:
            self._bury_columns(statement, definition, [column.name for column in buried])
        elif lossy:
            self._keep_beside(statement, definition, table, lossy)
        else:
            self._alter_plainly(statement, before, table)

    def _widen(self, statement: AlterTable) -> None:
        """Let the undo drop a table that this batch made with the columns that *statement* gives it."""
        entry = self.born.tables[statement.table]
        if new := statement.made - set(entry.names):
            wider = replace(entry, names=tuple(sorted({*entry.names, *new})))
            self.born.tables[statement.table] = wider
            self.store.rewrite(wider)
            if self.link.in_transaction:
                self.link.execute("COMMIT")

    def _alter_plainly(self, statement: AlterTable, before: dict[str, str | None], table: TableDefinition) -> None:
        new_table = statement.new_table
        facts: dict[str, Any] = {"columns": {statement.table: statement.old_columns}}
        if new_table and new_table != statement.table:
            before = before | snapshot.definitions(self.link, [new_table])
            facts["tables"] = [(statement.table, new_table)]
        self._write_ahead(statement, before, **facts)
        with graves.refused_for(table):
            self._run(statement.sql)
        self.born.alter(statement, table)
        if new_table:
            self.born.rename(statement.table, new_table)

    def _bury_columns(self, statement: AlterTable, definition: str, columns: list[str]) -> None:
        number = self.store.next_number()
        buried = {column: self.store.grave(number, f"c{at}") for at, column in enumerate(columns)}
        burial = graves.bury_columns(self.link, self.engine, statement, definition, buried)
        before: dict[str, str | None] = {statement.table: definition}
        facts: dict[str, Any] = {"columns": {statement.table: burial.columns}, "number": number}
        entry = self._write_ahead(
            statement, before, names=tuple(sorted(burial.names)), whole=False, buried=True, **facts
        )
        self._run(burial.sql)
        self.born.columns.pop(statement.table, None)
        if burial.rest:
            self._run_rest(burial.rest, entry)

    def _run_rest(self, sql: str, entry: Entry) -> None:
        """Send the rest of a statement; it fails as a whole, as the server would have it."""
        try:
            self._journal(read(sql))
        except (pymysql.err.MySQLError, MigrationError):
            # Newest first: the rest may have written an entry of its own, whose undo ends where this one's begins.
            undo_since(self.store, self.engine, entry.number)
            raise

    def _keep_beside(self, statement: AlterTable, definition: str, table: TableDefinition, lossy: list[Clause]) -> None:
        if len(lossy) > 1 or statement.new_table:
            raise StatementRefusedError(
                f"{statement.table!r}: one statement changes several types that can lose values",
                hint="change one column a statement",
            )
        require(self.rights, "LOCK TABLES", statement.table)
        number = self.store.next_number()
        grave = self.store.grave(number, "c0")
        add, change = losing.keep_beside(self.link, self.engine, statement, lossy[0], table, grave)
        facts: dict[str, Any] = {"columns": {statement.table: statement.old_columns}, "number": number}
        facts["kept"] = {lossy[0].name or "": grave}
        entry = self._write_ahead(statement, {statement.table: definition}, buried=True, **facts)
        try:
            self._run(add)
            self._run(change)
        except pymysql.err.MySQLError:
            undo_since(self.store, self.engine, entry.number)
            raise
        self.born.alter(statement, table)

    def _trigger(self, statement: CreateTrigger | DropTrigger) -> None:
        before = triggers.definition(self.link, statement.trigger)
        if isinstance(statement, DropTrigger):
            triggers.refuse_drop(self.link, statement.trigger)
        self._write_ahead(statement, {statement.trigger: before}, kind="trigger")
        self._run(statement.sql)

    # Rows ------------------------------------------------------------------------------------------------------

    def _rows(self, statement: Update | Delete | Insert) -> None:
        if self._is_born(statement):
            self._run(statement.sql)
            return
        refuse_missing_rights(self.rights, statement, {})
        link, own = self.link, not self.link.in_transaction
        # Refused after it ran, it is taken back also where the migration swallows the refusal.
        link.execute("BEGIN" if own else f"SAVEPOINT {SAVEPOINT}")
        try:
            scope = rows.scope_of(link, statement, self.undo_rows, self.memory)
            self._run(statement.sql)
            answer = link.answer
            changed = scope.changes(link, answer[1])
            if changed:
                number = self.store.next_number()
                self.store.write(Entry(number, "rows", statement.sql))
                self.store.write_rows(number, [change.to_json() for change in changed])
        except BaseException:
            # A deadlock has ended the transaction, and a lost connection more.
            with suppress(pymysql.err.MySQLError):
                link.execute("ROLLBACK" if own else f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            raise
        link.execute("COMMIT" if own else f"RELEASE SAVEPOINT {SAVEPOINT}")
        link.answer = answer

    def _is_born(self, statement: Update | Delete | Insert) -> bool:
        """Say whether all that *statement* changes goes with the undo of what this batch made."""
        target = statement.table if isinstance(statement, Insert) else statement.target
        if target is None or target in self.born.temporary:
            return target is not None
        if target in self.born.tables:
            return not self.born.is_tied or not shapes.reaches_further(self.memory, target, by_clock=False)
        if not isinstance(statement, Update):
            return False
        columns = {column.lower() for column in statement.columns}
        if not columns <= self.born.columns.get(target, set()):
            return False
        is_keyed = rows.is_keyed(snapshot.definitions(self.link, [target])[target], frozenset(columns))
        return not shapes.reaches_further(self.memory, target, by_clock=True, is_keyed=is_keyed)


def _refuse_other_engine(table: TableDefinition) -> None:
    if table.engine.lower() != "innodb":
        raise StatementRefusedError(
            f"table {table.name!r} is kept by {table.engine}, which undoes nothing after a crash",
            hint="ALTER TABLE … ENGINE=InnoDB in a migration with `atomic = False`",
        )


@contextmanager
def hooked(database: peewee.Database, hook: Hook) -> Iterator[None]:
    """Let *hook* see what this thread's connection is sent during the block, and hold that connection.

    Raises ``MigrationError`` in this thread when the migration opens another connection: lock and journal ended then.
    """
    thread, connect = threading.get_ident(), database.connect

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise MigrationError(
                "the migration's connection was closed, and with it went the lock and the journal",
                hint="do not close or reconnect the database inside a migration",
            )
        return connect(*args, **kwargs)

    database.connect = refuse
    try:
        with hook.link.hooked(hook.query):
            yield
    finally:
        del database.connect

"""What a batch made itself: it needs no copies of rows, for it goes with the undo of its making."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from api.db.journal.definition import TableDefinition
from api.db.journal.statement import (
    Action,
    AlterTable,
    Clause,
    Delete,
    RenameTables,
    Statement,
    TemporaryTable,
    Update,
)
from api.db.journal.store import Entry
from api.exceptions import StatementRefusedError


@dataclass(slots=True)
class Born:
    """What this batch made: the rows of such a table, and the values of such a column, go with it when it is undone.

    *tables* have the entries of their making. *is_tied* once a trigger or a foreign key was made: what is done to a
    born table may then reach others. *touched* are all names that the journal tells of.
    """

    tables: dict[str, Entry] = field(default_factory=dict)
    temporary: set[str] = field(default_factory=set)
    columns: dict[str, set[str]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    is_tied: bool = False

    def hide(self, statement: TemporaryTable) -> None:
        """Note which names temporary tables hide from now on."""
        change = self.temporary.difference_update if statement.dropped else self.temporary.update
        change(statement.tables)

    def refuse_hidden(self, tables: Iterable[str]) -> None:
        """Raise ``StatementRefusedError`` when a temporary table hides one of *tables*."""
        for table in set(tables) & self.temporary:
            raise StatementRefusedError(
                f"a temporary table has the name {table!r}", hint="drop it first, or give one of them another name"
            )

    def rename(self, old: str, new: str) -> None:
        """Follow a table that gets another name."""
        entry, columns = self.tables.get(old), self.columns.get(old, set())
        self.forget(old)
        self.forget(new)
        self.columns[new] = columns
        if entry is not None:
            self.tables[new] = entry

    def forget(self, table: str) -> None:
        """Forget what is gone: another table may get its name."""
        self.tables.pop(table, None)
        self.columns.pop(table, None)

    def alter(self, statement: AlterTable, table: TableDefinition) -> None:
        """Note the columns that *statement* added to *table*, and follow those that got another name.

        After any other change to the table its rows are copied again: they must fit when that change is undone.
        """
        born = self.columns.get(statement.table, set()) if all(map(_adds, statement.clauses)) else set()
        names = {old.lower(): new.lower() for old, new in statement.renamed_columns.items()}
        kept = (born - names.keys() - set(names.values())) | {new for old, new in names.items() if old in born}
        added = {(clause.name or "").lower() for clause in statement.clauses if clause.action is Action.ADD_COLUMN}
        self.columns[statement.table] = kept | (added - {column.name.lower() for column in table.columns})


def _adds(clause: Clause) -> bool:
    """Say whether *clause* leaves what stands as it is, but for names."""
    if clause.action in (Action.ADD_COLUMN, Action.RENAME_COLUMN, Action.RENAME_TABLE):
        return True
    return clause.action is Action.PART and clause.text.upper().startswith(("ADD", "CREATE"))


def tables_of(statement: Statement) -> Iterator[str]:
    """Give the tables and views that *statement* changes."""
    yield from getattr(statement, "views", ())
    if isinstance(statement, Update | Delete):
        yield from statement.tables if statement.target is None else (statement.target,)
        return
    yield from getattr(statement, "tables", ())
    yield from (table for pair in getattr(statement, "pairs", ()) for table in pair)
    yield from (table for each in ("table", "new_table") if (table := getattr(statement, each, None)))


def folded(statement: Statement) -> Statement:
    """Return *statement* with its tables in small letters, for a server to which their case says nothing."""
    facts: dict[str, Any] = {}
    for each in ("table", "target"):
        if getattr(statement, each, None):
            facts[each] = getattr(statement, each).lower()
    for each in ("tables", "views"):
        if hasattr(statement, each):
            facts[each] = tuple(table.lower() for table in getattr(statement, each))
    if isinstance(statement, RenameTables):
        facts["pairs"] = tuple((old.lower(), new.lower()) for old, new in statement.pairs)
    if isinstance(statement, AlterTable) and statement.new_table:
        facts["clauses"] = tuple(map(_folded_clause, statement.clauses))
    return replace(statement, **facts)


def _folded_clause(clause: Clause) -> Clause:
    renames = clause.action is Action.RENAME_TABLE
    return replace(clause, new_name=str(clause.new_name).lower()) if renames else clause

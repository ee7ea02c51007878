"""What one statement does to MySQL or MariaDB, as data: the kinds that the journal tells apart.

``reading.read`` makes them from a statement's text. Names come without their backticks and in the case that was
written; texts are slices of what was written, never rebuilt. Whatever is none of these is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from api.db.journal.link import name


class Action(StrEnum):
    """What a clause of ALTER TABLE does, as far as undo must know."""

    ADD_COLUMN = "add column"
    CHANGE_COLUMN = "change column"
    """MODIFY and CHANGE; *new_name* is set where CHANGE gives another name."""
    DROP_COLUMN = "drop column"
    RENAME_COLUMN = "rename column"
    RENAME_TABLE = "rename table"
    """*new_name* is the table's, and *name* is None."""
    DROP_INDEX = "drop index"
    DROP_FOREIGN_KEY = "drop foreign key"
    DROP_CONSTRAINT = "drop constraint"
    """DROP CONSTRAINT and DROP CHECK: the first may mean a check, a foreign key, a unique or the primary key."""
    DROP_PRIMARY_KEY = "drop primary key"
    PART = "part"
    """Anything else that touches only what it names: an index or constraint added, renamed, hidden, a default set."""
    WHOLE = "whole"
    """Touches the table as a whole: its options, its character set, its order, work on its partitions."""
    PARTITION = "partition"
    """PARTITION BY and REMOVE PARTITIONING: the whole table, too; it stands last, without a comma before it."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of an ALTER TABLE, with its *text* as written, without the comma.

    The *name* is that of the column, index or constraint, None where none is written; a primary key's is PRIMARY.
    An added or changed column has its *definition*, the text after its name, and its *position*: ``FIRST``,
    ``AFTER x``, or nothing. *conditional* tells of MariaDB's IF [NOT] EXISTS. Of ``ADD COLUMN (a INT, b INT)`` each
    element is a clause, whose text is given an ADD of its own.
    """

    text: str
    action: Action
    name: str | None = None
    new_name: str | None = None
    definition: str | None = None
    position: str = ""
    conditional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What every statement tells: its text *sql*, and the *schemas* written before the names of what it changes.

    *names* are all words of a DDL statement that could be a name, in lower case, its keywords among them; of any
    other statement there are none. A change that no name explains is not the statement's.
    """

    sql: str
    names: frozenset[str] = frozenset()
    schemas: frozenset[str] = frozenset()

    @property
    def whole(self) -> bool:
        """Whether it may change what it does not name, as a table's character set changes all columns."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Free(Read):
    """Changes nothing that lasts: it is sent as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporaryTable(Read):
    """CREATE or DROP TEMPORARY TABLE of *tables*: their names hide tables of the same name until the session ends."""

    tables: tuple[str, ...]
    dropped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTable(Read):
    """CREATE TABLE, also with LIKE or SELECT; with *if_not_exists* the table may stand already."""

    table: str
    if_not_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DropTables(Read):
    """DROP TABLE; some of *tables* may be temporary ones of this session."""

    tables: tuple[str, ...]
    if_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameTables(Read):
    """RENAME TABLE: *pairs* of old and new name, which the server takes from left to right."""

    pairs: tuple[tuple[str, str], ...]
    if_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTable(Read):
    """ALTER TABLE, and CREATE INDEX and DROP INDEX, each one clause whose text is the whole statement.

    *options* says how and not what, as clauses do: ALGORITHM, LOCK, WITH VALIDATION, joined by commas; MariaDB's
    ALTER ONLINE is ``LOCK=NONE`` there. *waiting* is its WAIT or NOWAIT, which stands after the table's name.
    """

    table: str
    clauses: tuple[Clause, ...]
    options: str = ""
    waiting: str = ""
    if_exists: bool = False

    @property
    def whole(self) -> bool:
        """Whether a clause touches the table as a whole."""
        return any(clause.action in (Action.WHOLE, Action.PARTITION) for clause in self.clauses)

    @property
    def renamed_columns(self) -> dict[str, str]:
        """Return the new name of each column that gets one, by its old name."""
        pairs = ((clause.name, clause.new_name) for clause in self.clauses if clause.action in _RENAMING)
        return {old: new for old, new in pairs if old and new}

    @property
    def old_columns(self) -> dict[str, str]:
        """Return the old name of each column that gets another one than in other letters, by its new name."""
        return {new: old for old, new in self.renamed_columns.items() if new.lower() != old.lower()}

    @property
    def made(self) -> frozenset[str]:
        """What it makes by name, in small letters; an empty name stands for something that the server names itself."""
        made: set[str] = set()
        for clause in self.clauses:
            if clause.action in (Action.ADD_COLUMN, Action.PART):
                made.add((clause.name or "").lower())
            made.add((clause.new_name or clause.name or "").lower())
            if clause.action is Action.ADD_COLUMN and _CONSTRAINED & set((clause.definition or "").lower().split()):
                made |= {"", "primary"}
        return frozenset(made)

    @property
    def new_table(self) -> str | None:
        """Return the table's new name; None if it keeps its own."""
        names = [clause.new_name for clause in self.clauses if clause.action is Action.RENAME_TABLE]
        return names[-1] if names else None

    def rebuilt(self, clauses: Iterable[str]) -> str:
        """Return an ALTER TABLE with the texts *clauses*, of its own or new, and everything else as it was."""
        texts = list(clauses)
        last = [clause.text for clause in self.clauses if clause.action is Action.PARTITION and clause.text in texts]
        listed = ", ".join(filter(None, [*(text for text in texts if text not in last), self.options]))
        return " ".join(filter(None, ["ALTER TABLE", name(self.table), self.waiting, listed, *last]))


# A column's definition that makes a key or a constraint beside it.
_CONSTRAINED = frozenset({"unique", "primary", "key", "references", "check"})
_RENAMING = frozenset({Action.RENAME_COLUMN, Action.CHANGE_COLUMN})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView(Read):
    """CREATE, ALTER or DROP VIEW of *views*."""

    views: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTrigger(Read):
    """CREATE TRIGGER *trigger* on *table*."""

    trigger: str
    table: str
    if_not_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DropTrigger(Read):
    """DROP TRIGGER."""

    trigger: str
    if_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Read):
    """UPDATE: ``SELECT … FROM <tables_text> <scope>`` finds the rows that it touches.

    *target* is the one table that it changes, None if there are several or it cannot be told, and *alias* the name
    that the statement gives it; *columns* are the assigned ones. *scope* is WHERE, ORDER BY and LIMIT as written, or
    nothing. *tables* are all that *tables_text* names outside its subqueries.
    """

    tables_text: str
    target: str | None
    alias: str
    columns: tuple[str, ...]
    scope: str
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Read):
    """DELETE, from one table or, in the form with a join, from one or more; read as Update is."""

    tables_text: str
    target: str | None
    alias: str
    scope: str
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert(Read):
    """INSERT or REPLACE into *table*; *plain* unless it may change rows that stand: REPLACE, ON DUPLICATE KEY UPDATE.

    *columns* is empty where the statement lists none; *from_select* tells of rows that a query gives.
    """

    table: str
    plain: bool
    columns: tuple[str, ...]
    from_select: bool


Statement: TypeAlias = (
    Free
    | TemporaryTable
    | CreateTable
    | DropTables
    | RenameTables
    | AlterTable
    | ChangeView
    | CreateTrigger
    | DropTrigger
    | Update
    | Delete
    | Insert
)

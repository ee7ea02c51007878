"""Destroy nothing before the batch commits: what is dropped is renamed away, what loses values keeps them beside.

A name of what is renamed away (``_plinth<batch>_<number>_…``) is unique, so that it is found and dropped after the
commit wherever later statements took it. Such a column is INVISIBLE where the server knows that: ``SELECT *`` and an
INSERT without names see the table as if the column were gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.db.dialects.column_text import ColumnText, names_in, parse_definition, tokens_of
from api.db.dialects.engine import Engine
from api.db.dialects.types import Fit, compare_types, parse_type
from api.db.journal.definition import Column, TableDefinition, parse
from api.db.journal.link import Link, name
from api.db.journal.snapshot import definitions
from api.db.journal.statement import Action, AlterTable, Clause
from api.db.journal.store import PREFIX
from api.exceptions import StatementRefusedError

# A value for each type that INSERTs get which do not know the column any more; it is never kept (MySQL 8.4 manual,
# 13.6 "Data Type Default Values").
ZEROS = {
    "date": "'1970-01-02'",
    "datetime": "'1970-01-02 00:00:00'",
    "timestamp": "'1970-01-02 00:00:00'",
    "time": "'00:00:00'",
    "year": "1970",
    "bit": "b'0'",
}
NUMBERS = frozenset(
    {"tinyint", "boolean", "smallint", "mediumint", "integer", "bigint", "decimal", "float", "double", "serial"}
)
STRINGS = frozenset({"char", "varchar", "binary", "varbinary"})
LARGE = re.compile(r"(tiny|medium|long)?(text|blob)")
DROPS = {Action.DROP_COLUMN, Action.DROP_INDEX, Action.DROP_FOREIGN_KEY, Action.DROP_CONSTRAINT}

REFERRED = """
SELECT constraint_name, table_name FROM information_schema.key_column_usage
WHERE referenced_table_schema = DATABASE() AND referenced_table_name = %s AND referenced_column_name = %s"""
REFERRING = """
SELECT table_name, constraint_name FROM information_schema.referential_constraints
WHERE constraint_schema = DATABASE() AND referenced_table_name = %s"""
REMEDY = "set `atomic = False` in the migration's file: it then runs outside the batch, without undo"


@dataclass(frozen=True, slots=True)
class Burial:
    """A dropped column's or table's replacement: the statement that renames it away, and what is left to send.

    *columns* maps the graves to the columns' own names; *rest* is the statement without what is done already.
    """

    sql: str
    columns: dict[str, str]
    rest: str | None


def dropped_columns(alter: AlterTable, table: TableDefinition) -> list[Column]:
    """Return the columns that *alter* drops and that hold values of their own."""
    wanted = {(clause.name or "").lower() for clause in alter.clauses if clause.action is Action.DROP_COLUMN}
    return [column for column in table.columns if column.name.lower() in wanted and not column.generated]


def bury_columns(link: Link, engine: Engine, alter: AlterTable, definition: str, graves: dict[str, str]) -> Burial:
    """Return how to take the columns of *graves* (by name, their graves) out of the table that *definition* makes.

    The real drop is tried on an empty copy first: it must not fail after the commit. Its result tells which indexes
    and checks shrink or go with the columns. Raises ``StatementRefusedError``, and the server's own error.
    """
    table = parse(definition)
    for column in graves:
        _refuse_tied(link, alter, table, column)
    after = parse(_rehearse(link, alter, table))
    clauses = [clause.text for clause in alter.clauses if clause.action in DROPS - {Action.DROP_COLUMN}]
    said = {(clause.name or "").lower() for clause in alter.clauses if clause.action in DROPS}
    clauses += [f"DROP INDEX {name(key)}" for key in _changed(table.keys, after.keys) if key.lower() not in said]
    # A copy's checks have names of their own.
    bodies = {_body(line) for line in after.checks.values()}
    gone = [check for check, line in table.checks.items() if _body(line) not in bodies and check.lower() not in said]
    clauses += [f"DROP CONSTRAINT {name(check)}" for check in gone]
    clauses += [f"ADD {after.keys[key]}" for key in _changed(table.keys, after.keys) if key in after.keys]
    clauses += [_burying(link, engine, table, column, grave) for column, grave in graves.items()]
    buried = {column.lower() for column in graves}
    clauses += [clause.text for clause in alter.clauses if _is_drop_of_generated(clause, buried, table)]
    return Burial(
        f"ALTER TABLE {name(alter.table)} {', '.join(clauses)}",
        {grave: column for column, grave in graves.items()},
        _rest(alter),
    )


def _is_drop_of_generated(clause: Clause, buried: set[str], table: TableDefinition) -> bool:
    names = {column.name.lower() for column in table.columns}
    dropped = (clause.name or "").lower()
    return clause.action is Action.DROP_COLUMN and dropped in names - buried


def _body(check: str) -> str:
    return check[check.upper().index(" CHECK ") :]


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [key for key, line in before.items() if after.get(key) != line]


def _rest(alter: AlterTable) -> str | None:
    left = [clause.text for clause in alter.clauses if clause.action not in DROPS]
    return alter.rebuilt(left) if left else None


def _refuse_tied(link: Link, alter: AlterTable, table: TableDefinition, column: str) -> None:
    """Refuse a column whose real drop could fail after the commit, for what an empty copy does not show."""
    where = f"column {column!r} of {alter.table!r}"
    if ("key", "PRIMARY") in table.mentions(column):
        raise StatementRefusedError(f"{where} is part of the primary key: its drop cannot be undone", hint=REMEDY)
    released = {(clause.name or "").lower() for clause in alter.clauses if clause.action in DROPS}
    for kind, key in table.mentions(column):
        if kind == "foreign key" and key.lower() not in released:
            raise StatementRefusedError(
                f"{where} is needed by the foreign key {key!r}",
                hint="drop the foreign key first, in the same migration",
            )
    for key, child in link.rows(REFERRED, (alter.table, column)):
        raise StatementRefusedError(
            f"{where} is needed by the foreign key {key!r} of {child!r}", hint="drop that foreign key first"
        )


def _rehearse(link: Link, alter: AlterTable, table: TableDefinition) -> str:
    """Drop on an empty temporary copy, which no other session sees, and return what the copy's definition becomes."""
    if table.partitions:
        raise StatementRefusedError(
            f"{alter.table!r} is partitioned: the drop of a column cannot be tried beforehand", hint=REMEDY
        )
    copy = name(f"{PREFIX}_rehearsal")
    # Foreign keys are not copied.
    keys = {key.lower() for key in table.foreign_keys}
    clauses = [c.text for c in alter.clauses if c.action in DROPS and (c.name or "").lower() not in keys]
    link.execute(f"DROP TEMPORARY TABLE IF EXISTS {copy}")
    link.execute(f"CREATE TEMPORARY TABLE {copy} LIKE {name(alter.table)}")
    try:
        link.execute(f"ALTER TABLE {copy} {', '.join(clauses)}")
        printed = str(link.rows(f"SHOW CREATE TABLE {copy}")[0][1])
    finally:
        link.execute(f"DROP TEMPORARY TABLE {copy}")
    return printed.replace("CREATE TEMPORARY TABLE", "CREATE TABLE", 1)


def _burying(link: Link, engine: Engine, table: TableDefinition, column: str, grave: str) -> str:
    text = parse_definition(_column(table, column).text, named=False, backslashes=True)
    return f"CHANGE COLUMN {name(column)} {name(grave)} {hidden(link, engine, str(_optional(text, engine)))}"


def _column(table: TableDefinition, wanted: str) -> Column:
    column = table.column(wanted)
    assert column is not None, "the caller took the name from the table"
    return column


def _optional(text: ColumnText, engine: Engine) -> ColumnText:
    """Return a definition that INSERTs need not know: a value for NOT NULL, and no CHECK of its own.

    A DEFAULT, not NULL: the rows written meanwhile then let the undo restore the NOT NULL.
    """
    required = "NOT NULL" in " ".join(text.tokens).upper()
    text = _without_check(text)
    if not required or text.default is not None:
        return text
    zero = zero_of(text, engine)
    return text.with_tail(f"DEFAULT {zero}") if zero else text.with_null(True)


def _without_check(text: ColumnText) -> ColumnText:
    tokens = list(text.tokens)
    while "CHECK" in (words := [token.upper() for token in tokens]):
        at = words.index("CHECK")
        del tokens[at : at + 2]
    return ColumnText(tuple(tokens), text.start, text.kind)


def zero_of(text: ColumnText, engine: Engine) -> str | None:
    """Return a DEFAULT for the type of *text*, ``None`` where none is known to fit."""
    kind = parse_type(_type(text), engine).kind
    if kind.startswith("enum("):
        return tokens_of(kind[5:-1], backslashes=True)[0]
    if kind in NUMBERS:
        return "0"
    if kind in STRINGS or kind.startswith("set("):
        return "''"
    if LARGE.fullmatch(kind):
        return "('')" if engine == "mysql" else "''"
    if kind == "json":
        return "('null')" if engine == "mysql" else "'null'"
    return ZEROS.get(kind)


def hidden(link: Link, engine: Engine, definition: str) -> str:
    """Return *definition* made INVISIBLE where the server can: MySQL 8.0.23, MariaDB 10.3."""
    able = link.version >= ((8, 0, 23) if engine == "mysql" else (10, 3, 0))
    return definition if not able or "INVISIBLE" in definition.upper() else f"{definition} INVISIBLE"


def refuse_lost(alter: AlterTable, table: TableDefinition) -> None:
    """Refuse what would lose values in a way that nothing here can keep them from."""
    for clause in alter.clauses:
        column = table.column(clause.name or "") if clause.action is Action.CHANGE_COLUMN else None
        words = [token.upper() for token in tokens_of(clause.definition or "", backslashes=True)]
        if column and not column.generated and {"AS", "GENERATED"} & set(words):
            raise StatementRefusedError(
                f"{column.name!r} of {alter.table!r} would become a generated column and lose its values",
                hint="add the generated column under another name, then drop this one",
            )
        if clause.name == "PRIMARY" and clause.action is Action.PART:
            group = next(token for token in tokens_of(clause.text, backslashes=True) if token.startswith("("))
            keyed = {column.lower() for column in names_in(group)}
            null = [each.name for each in table.columns if each.name.lower() in keyed and not is_required(each)]
            if null:
                raise StatementRefusedError(
                    f"{null[0]!r} of {alter.table!r} may be NULL, and a primary key would fill it without a word",
                    hint="make it NOT NULL first, in a statement of its own",
                )


def is_required(column: Column) -> bool:
    """Say whether *column* is NOT NULL."""
    return "NOT NULL" in " ".join(tokens_of(column.text, backslashes=True)).upper()


# Types that lose values ----------------------------------------------------------------------------------------


def is_lossy(clause: Clause, table: TableDefinition, engine: Engine) -> bool:
    """Say whether a changed column may lose values: its new type is not known to hold all of the old one's."""
    column = table.column(clause.name or "")
    if column is None or column.generated or clause.definition is None:
        return False
    old = parse_definition(column.text, named=False, backslashes=True)
    new = parse_definition(clause.definition, named=False, backslashes=True)
    fit = compare_types(parse_type(_type(old), engine), parse_type(_type(new), engine), engine)
    if _appends(_type(old), _type(new)):
        return False
    characters = _charset(column.collation or ""), _charset(_collation(new) or table.collation)
    if _is_unpadded(_type(old), _type(new), engine):
        fit = Fit.SHORTER
    narrowed = column.collation is not None and characters[0] != characters[1] != "utf8mb4"
    return narrowed or fit not in (Fit.SAME, Fit.SHORTER)


def _type(text: ColumnText) -> str:
    return " ".join(text.tokens[text.start : text.start + text.kind])


def _appends(old: str, new: str) -> bool:
    """Say whether *new* is the ENUM or SET *old* with more at its end."""
    is_list = re.match(r"(?i)(enum|set)\b", old) and old[:3].lower() == new[:3].lower()
    return bool(is_list) and new.rstrip(" )").replace(", ", ",").startswith(old.rstrip(" )").replace(", ", ","))


def _is_unpadded(old: str, new: str, engine: Engine) -> bool:
    """Say whether a CHAR becomes a VARCHAR that holds as much: its spaces at the end were never kept."""
    char, varchar = parse_type(old, engine), parse_type(new, engine)
    return (char.kind, varchar.kind) == ("char", "varchar") and (char.length or 1) <= (varchar.length or 0)


def _collation(text: ColumnText) -> str | None:
    """Return the collation, or else the character set, that a definition says."""
    words = [token.lower() for token in text.tokens]
    for first, offset in (("collate", 1), ("charset", 1), ("character", 2)):
        if first in words:
            return words[words.index(first) + offset]
    return None


def _charset(collation: str) -> str:
    return collation.partition("_")[0]


def keep_beside(
    link: Link, engine: Engine, alter: AlterTable, clause: Clause, table: TableDefinition, grave: str
) -> tuple[str, str]:
    """Return the two statements that change a column's type and keep its old values in *grave*.

    The first adds a stored column that the server computes from the old one, so that other sessions' writes are in
    it; the second makes it a plain column as it changes the type, in one ALTER: no write falls between.
    Raises ``StatementRefusedError`` where the server takes no such column.
    """
    column = _column(table, clause.name or "")
    where = f"changing the type of {column.name!r} in {alter.table!r} can lose values, and"
    if clause.new_name and clause.new_name.lower() != column.name.lower():
        raise StatementRefusedError(f"{where} it renames it too", hint="use two statements: the rename, then the type")
    if column.name.lower() in {each.lower() for each in table.primary_key} or "AUTO_INCREMENT" in column.text.upper():
        raise StatementRefusedError(f"{where} it is the table's key", hint=REMEDY)
    if any(kind in ("foreign key", "check", "column", "partitions") for kind, _ in table.mentions(column.name)):
        raise StatementRefusedError(f"{where} a key, a check or another column depends on it", hint=REMEDY)
    typed = type_of(column)
    computed = hidden(link, engine, f"{typed} GENERATED ALWAYS AS ({name(column.name)}) STORED")
    plain = f"MODIFY COLUMN {name(grave)} {hidden(link, engine, f'{typed} NULL')}"
    added = f"ALTER TABLE {name(alter.table)} ADD COLUMN {name(grave)} {computed}"
    return added, alter.rebuilt([*(each.text for each in alter.clauses), plain])


def type_of(column: Column) -> str:
    """Return a column's type with its character set and collation, and nothing else."""
    text = parse_definition(column.text, named=False, backslashes=True)
    collation = re.findall(r"CHARACTER SET \w+|COLLATE \w+", str(text))
    return " ".join([_type(text), *collation])


# Tables --------------------------------------------------------------------------------------------------------


def bury_tables(tables: dict[str, str]) -> str:
    """Return the one statement that renames *tables*, by name, to their graves."""
    return "RENAME TABLE " + ", ".join(f"{name(table)} TO {name(grave)}" for table, grave in tables.items())


def refuse_referred(link: Link, tables: dict[str, str]) -> None:
    """Refuse to drop a table that another one's foreign key refers to, as the server would."""
    for table in tables:
        for child, key in link.rows(REFERRING, (table,)):
            if child not in tables:
                raise StatementRefusedError(
                    f"table {table!r} cannot be dropped: the foreign key {key!r} of {child!r} refers to it",
                    hint="drop that foreign key first",
                )


def release(link: Link, grave: str, engine: Engine) -> str | None:
    """Return the statement that frees what a buried table still holds: the tables that it refers to, and names.

    Foreign keys' names are the schema's on both servers, CHECKs' on MySQL (MySQL 8.4 manual, "CHECK Constraints");
    there those that the server made up itself went with the table's name.
    """
    table = parse(str(definitions(link, [grave])[grave]))
    clauses = [f"DROP FOREIGN KEY {name(key)}" for key in table.foreign_keys]
    if engine == "mysql":
        clauses += [f"DROP CHECK {name(check)}" for check in table.checks if not check.startswith(grave)]
    return f"ALTER TABLE {name(grave)} {', '.join(clauses)}" if clauses else None


def drop_buried(link: Link, prefix: str) -> None:
    """Drop for good what a committed batch renamed away; it may be called again after a crash."""
    pattern = prefix.replace("_", r"\_") + "%"
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE %s"
    for (table,) in link.rows(tables, (pattern,)):
        link.execute(f"DROP TABLE IF EXISTS {name(table)}")
    columns = """SELECT table_name, column_name FROM information_schema.columns
                 WHERE table_schema = DATABASE() AND column_name LIKE %s ORDER BY table_name"""
    found: dict[str, list[str]] = {}
    for table, column in link.rows(columns, (pattern,)):
        found.setdefault(table, []).append(f"DROP COLUMN {name(column)}")
    for table, drops in found.items():
        link.execute(f"ALTER TABLE {name(table)} {', '.join(drops)}")

"""Changes that lose values: which they are, which are refused, and how the old values are kept beside the new ones."""

from __future__ import annotations

import re

from api.db.dialects.column_text import ColumnText, names_in, parse_definition, tokens_of
from api.db.dialects.engine import Engine
from api.db.dialects.types import Fit, compare_types, parse_type
from api.db.journal.definition import Column, TableDefinition
from api.db.journal.graves import LARGE, STRINGS, column_of, hidden, type_in
from api.db.journal.link import Link, name
from api.db.journal.statement import Action, AlterTable, Clause
from api.exceptions import StatementRefusedError


def refuse_lost(link: Link, alter: AlterTable, table: TableDefinition) -> None:
    """Refuse what would lose values in a way that nothing here can keep them from."""
    for clause in alter.clauses:
        column = table.column(clause.name or "") if clause.action is Action.CHANGE_COLUMN else None
        words = [token.upper() for token in tokens_of(clause.definition or "", backslashes=True)]
        if column and not column.generated and {"AS", "GENERATED"} & set(words):
            raise StatementRefusedError(
                f"{column.name!r} of {alter.table!r} would become a generated column and lose its values",
                hint="add the generated column under another name, then drop this one",
            )
        # MariaDB puts the current time in the place of NULL.
        if column and "TIMESTAMP" in words[:1] and _is_required(words) and not is_required(column):
            _refuse_null(link, table, column)
        if clause.name == "PRIMARY" and clause.action is Action.PART:
            # RENAME KEY and ALTER INDEX have none, and are the server's to refuse.
            groups = [token for token in tokens_of(clause.text, backslashes=True) if token.startswith("(")]
            keyed = {column.lower() for group in groups[:1] for column in names_in(group)}
            null = [each.name for each in table.columns if each.name.lower() in keyed and not is_required(each)]
            if null:
                raise StatementRefusedError(
                    f"{null[0]!r} of {alter.table!r} may be NULL, and a primary key would fill it without a word",
                    hint="make it NOT NULL first, in a statement of its own",
                )


def is_required(column: Column) -> bool:
    """Say whether *column* is NOT NULL."""
    return _is_required([token.upper() for token in tokens_of(column.text, backslashes=True)])


def _is_required(words: list[str]) -> bool:
    return "NOT NULL" in " ".join(words)


def _refuse_null(link: Link, table: TableDefinition, column: Column) -> None:
    if link.rows(f"SELECT 1 FROM {name(table.name)} WHERE {name(column.name)} IS NULL LIMIT 1"):
        raise StatementRefusedError(
            f"{column.name!r} of {table.name!r} holds NULL, which the server would turn into the current time",
            hint="UPDATE those rows first, in a statement of its own",
        )


def is_lossy(clause: Clause, table: TableDefinition, engine: Engine) -> bool:
    """Say whether a changed column may lose values: its new type is not known to hold all of the old one's."""
    column = table.column(clause.name or "")
    if column is None or column.generated or clause.definition is None:
        return False
    old = parse_definition(column.text, named=False, backslashes=True)
    new = parse_definition(clause.definition, named=False, backslashes=True)
    fit = compare_types(parse_type(type_in(old), engine), parse_type(type_in(new), engine), engine)
    if _appends(type_in(old), type_in(new)):
        return False
    characters = _charset(column.collation or ""), _charset(_collation(new) or table.collation)
    if _is_unpadded(type_in(old), type_in(new), engine):
        fit = Fit.SHORTER
    narrowed = column.collation is not None and characters[0] != characters[1] != "utf8mb4"
    return narrowed or fit not in (Fit.SAME, Fit.SHORTER)


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
    column = column_of(table, clause.name or "")
    where = f"changing the type of {column.name!r} in {alter.table!r} can lose values, and"
    if clause.new_name and clause.new_name.lower() != column.name.lower():
        raise StatementRefusedError(f"{where} it renames it too", hint="use two statements: the rename, then the type")
    if column.name.lower() in {each.lower() for each in table.primary_key} or "AUTO_INCREMENT" in column.text.upper():
        raise StatementRefusedError(f"{where} it is the table's key")
    if any(kind in ("foreign key", "check", "column", "partitions") for kind, _ in table.mentions(column.name)):
        raise StatementRefusedError(f"{where} a key, a check or another column depends on it")
    if any(other is not clause and _depends(other, column.name) for other in alter.clauses):
        raise StatementRefusedError(f"{where} the same statement adds what depends on it", hint="use two statements")
    _refuse_unrepeatable(where, _kind(column.text, engine), _kind(clause.definition or "", engine), engine)
    typed = type_of(column)
    computed = hidden(link, engine, f"{typed} GENERATED ALWAYS AS ({name(column.name)}) STORED")
    plain = f"MODIFY COLUMN {name(grave)} {hidden(link, engine, f'{typed} NULL')}"
    added = f"ALTER TABLE {name(alter.table)} ADD COLUMN {name(grave)} {computed}"
    return added, alter.rebuilt([*(each.text for each in alter.clauses), plain])


def _kind(definition: str, engine: Engine) -> str:
    return parse_type(type_in(parse_definition(definition, named=False, backslashes=True)), engine).kind


def _refuse_unrepeatable(where: str, old: str, new: str, engine: Engine) -> None:
    """Refuse a conversion that the undo could not repeat to see which rows other sessions wrote since."""
    if old == "time" and new in ("date", "datetime", "timestamp"):
        raise StatementRefusedError(f"{where} it takes the day from the clock")
    if engine == "mysql" and new == "json" and not (LARGE.fullmatch(old) or old in STRINGS):
        raise StatementRefusedError(f"{where} MySQL computes no JSON of {old}")


def _depends(clause: Clause, column: str) -> bool:
    """Say whether *clause* makes a column, a check or a foreign key of *column*; an index is no matter."""
    text = clause.definition if clause.action in (Action.ADD_COLUMN, Action.CHANGE_COLUMN) else None
    if clause.action is Action.PART and re.search(r"\b(FOREIGN|CHECK)\b", clause.text, re.IGNORECASE):
        text = clause.text
    return re.search(rf"(?<![\w$]){re.escape(column)}(?![\w$])", text or "", re.IGNORECASE) is not None


def type_of(column: Column) -> str:
    """Return a column's type with its character set and collation, and nothing else."""
    text = parse_definition(column.text, named=False, backslashes=True)
    collation = re.findall(r"CHARACTER SET \w+|COLLATE \w+", str(text))
    return " ".join([type_in(text), *collation])

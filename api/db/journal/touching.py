"""Read UPDATE, DELETE, INSERT and REPLACE: which table they change, and which rows of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.db.journal.statement import Delete, Insert, Update
from api.db.journal.words import Name, Words

_SCOPE = ("WHERE", "ORDER", "LIMIT")
_QUERY = ("SELECT", "WITH", "TABLE", "(")
_JOINS = ("JOIN", "STRAIGHT_JOIN")
# What may follow a table's name and is no alias.
_NO_ALIAS = frozenset(
    {*_SCOPE, *_JOINS, "CROSS", "FOR", "FORCE", "FULL", "IGNORE", "INNER", "LEFT", "NATURAL", "ON", "PARTITION"}
    | {"RIGHT", "SET", "USE", "USING"}
)

_NAME = r"(?:`[^`]*`|[\w$]+)"
_STRING = r"(?:_\w+\s*|[xXbBnN])?'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'"
_LITERAL = rf"(?:{_STRING}|[-+]?\d[\d.]*(?:[eE][-+]?\d+)?|NULL|DEFAULT|TRUE|FALSE)"
_ROW = rf"\(\s*{_LITERAL}(?:\s*,\s*{_LITERAL})*\s*\)"
_LITERAL_ROWS = re.compile(
    rf"\s*(?:INSERT|REPLACE)\s+(?:(?:LOW_PRIORITY|DELAYED|HIGH_PRIORITY|IGNORE)\s+)*(?:INTO\s+)?{_NAME}"
    rf"(?:\s*\.\s*{_NAME})?\s*(?:\(\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\)\s*)?VALUES?\s*({_ROW}(?:\s*,\s*{_ROW})*)",
    re.IGNORECASE | re.DOTALL,
)


def without_literal_rows(sql: str) -> str:
    """Return an INSERT with ``()`` for its rows of mere literals, a statement of any other kind as it is.

    So a thousand rows are read in the time of one. Rows that hold anything else stay.
    """
    rows = _LITERAL_ROWS.match(sql)
    return sql if rows is None else f"{sql[: rows.start(1)]}(){sql[rows.end(1) :]}"


@dataclass(frozen=True, slots=True)
class _Reference:
    """A table that a statement names, and the name that the statement *called* it; a subquery has no table."""

    table: Name | None
    called: str


# UPDATE and DELETE ------------------------------------------------------------------------------------------------


def read_update(words: Words) -> Update:
    """Read UPDATE."""
    words.expect("UPDATE")
    words.take("LOW_PRIORITY")
    words.take("IGNORE")
    assigned = words.find("SET")
    tables = words.part(words.at, assigned)
    references = _references(tables)
    words.at = assigned
    words.expect("SET")
    scope = words.find(*_SCOPE, "RETURNING")
    columns = [_assigned(part) for part in words.part(words.at, scope).parts()]
    target = _target_of_columns(references, columns)
    return Update(
        sql=words.sql,
        schemas=_schemas(references, target),
        tables_text=tables.text(),
        target=target.table.text if target and target.table else None,
        alias=target.called if target else "",
        columns=tuple(name for _, name in columns),
        scope=_scope(words, scope),
        tables=_tables(references),
    )


def read_delete(words: Words) -> Delete:
    """Read DELETE in its three forms: ``FROM t``, ``t FROM … JOIN …``, ``FROM t USING … JOIN …``."""
    words.expect("DELETE")
    if words.ahead("HISTORY"):
        raise words.refused("undo knows no row history")
    while words.take_any("LOW_PRIORITY", "QUICK", "IGNORE"):
        pass
    from_first = words.take("FROM")
    using = from_first and words.find("USING", *_SCOPE) < words.find(*_SCOPE)
    targets = _targets(words) if using or not from_first else []
    if not from_first or using:
        words.expect("USING" if using else "FROM")
    return _deleted(words, targets)


def _deleted(words: Words, targets: list[Name]) -> Delete:
    scope = words.find(*_SCOPE, "RETURNING")
    tables = words.part(words.at, scope)
    references = _references(tables)
    target = _target_of_names(references, targets) if targets else _only(references)
    return Delete(
        sql=words.sql,
        schemas=_schemas(references, target),
        tables_text=tables.text(),
        target=target.table.text if target and target.table else None,
        alias=target.called if target else "",
        scope=_scope(words, scope),
        tables=_tables(references),
    )


def _targets(words: Words) -> list[Name]:
    """Read the tables that a DELETE with a join deletes from: ``t``, ``s.t``, ``t.*``."""
    targets: list[Name] = []
    while not targets or words.take(","):
        first, second = words.name(), None
        while words.take("."):
            if words.take("*"):
                break
            second = words.name()
        targets.append(Name(None, first) if second is None else Name(first, second))
    return targets


def _assigned(words: Words) -> tuple[str | None, str]:
    """Read an assignment's column: the table's name before it, if any, and its own."""
    names = [words.name()]
    while words.take("."):
        names.append(words.name())
    words.take(":")
    words.expect("=")
    return (names[-2] if len(names) > 1 else None), names[-1]


def _scope(words: Words, start: int) -> str:
    rest = words.part(start, words.end)
    return words.text(start, rest.find("RETURNING"))


# The tables -------------------------------------------------------------------------------------------------------


def _references(words: Words) -> list[_Reference]:
    """Read the tables of a join: what begins it, and what follows each comma and JOIN."""
    if words.find("{") < words.end:
        raise words.refused("an ODBC join is not understood", "write the join without braces")
    rest = words.part(words.at, words.end)
    references = []
    while True:
        references += _factor(rest)
        rest.at = rest.find(",", *_JOINS)
        if rest.done:
            return references
        rest.skip()


def _factor(words: Words) -> list[_Reference]:
    words.take("LATERAL")
    if words.next == "(":
        inner = words.part(words.at + 1, words.closing[words.at])
        words.skip()
        while inner.next == "(" and inner.closing[inner.at] == inner.end - 1:
            inner = inner.part(inner.at + 1, inner.end - 1)
        if inner.next not in ("SELECT", "WITH", "VALUES", "TABLE"):
            return _references(inner)
        return [_Reference(None, _alias(words) or "")]
    table = words.qualified()
    if words.next == "(":
        words.skip()
        return [_Reference(None, _alias(words) or "")]
    if words.take("PARTITION"):
        words.skip()
    if words.ahead("FOR", "PORTION"):
        raise words.refused("undo knows no periods")
    return [_Reference(table, _alias(words) or table.text)]


def _alias(words: Words) -> str | None:
    if words.take("AS") or (words.next not in _NO_ALIAS and words.next not in ("", ",", ")")):
        return words.name()
    return None


def _only(references: list[_Reference]) -> _Reference | None:
    return references[0] if len(references) == 1 and references[0].table else None


def _target_of_columns(references: list[_Reference], columns: list[tuple[str | None, str]]) -> _Reference | None:
    if _only(references):
        return references[0]
    qualifiers = {qualifier for qualifier, _ in columns}
    if None in qualifiers:
        return None
    return _target_of_names(references, [Name(None, qualifier) for qualifier in qualifiers if qualifier])


def _target_of_names(references: list[_Reference], targets: list[Name]) -> _Reference | None:
    """Return the table that all of *targets* are; None if they are several, or one cannot be told."""
    found = [each for target in targets for each in references if each.called.lower() == target.text.lower()]
    return found[0] if len(found) == 1 == len(targets) and found[0].table else None


def _tables(references: list[_Reference]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.table.text for each in references if each.table))


def _schemas(references: list[_Reference], target: _Reference | None) -> frozenset[str]:
    """Return the schema of the *target*; where that cannot be told, those of all."""
    tables = [each.table for each in ([target] if target else references)]
    return frozenset(table.schema for table in tables if table and table.schema)


# INSERT and REPLACE -----------------------------------------------------------------------------------------------


def read_insert(words: Words) -> Insert:
    """Read INSERT and REPLACE."""
    replaces = words.take_any("INSERT", "REPLACE") == "REPLACE"
    while words.take_any("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE"):
        pass
    words.take("INTO")
    table = words.changed()
    if words.take("PARTITION"):
        words.skip()
    columns = _columns(words)
    from_select = words.next in _QUERY
    if words.take("SET"):
        end = words.find("ON", "AS", "RETURNING")
        columns = tuple(_assigned(part)[1] for part in words.part(words.at, end).parts())
    elif not (from_select or words.take_any("VALUES", "VALUE")):
        raise words.refused(f"{words.text()[:40]!r} was not expected after the table's name")
    updates = any(words.part(at, words.end).ahead("ON", "DUPLICATE", "KEY", "UPDATE") for at in words.top())
    return Insert(
        sql=words.sql,
        schemas=frozenset(words.schemas),
        table=table,
        plain=not (replaces or updates),
        columns=columns,
        from_select=from_select,
    )


def read_rows(words: Words) -> list[list[str]]:
    """Read the rows that INSERT or REPLACE writes, each value as written; nothing where it writes them otherwise."""
    words.at = words.find("VALUES", "VALUE", "SET")
    if words.take("SET"):
        row = list(words.part(words.at, words.find("ON", "AS", "RETURNING")).parts())
        for value in row:
            _assigned(value)
        return [[value.text() for value in row]]
    words.skip()
    rows = []
    while words.next == "(":
        values = words.part(words.at + 1, words.closing[words.at])
        rows.append([value.text() for value in values.parts()])
        words.skip()
        words.take(",")
    return rows


def _columns(words: Words) -> tuple[str, ...]:
    """Read the list of columns; nothing, with nothing read, where a query in parentheses stands."""
    if words.next != "(" or words.second in _QUERY:
        return ()
    inner = words.part(words.at + 1, words.closing[words.at])
    words.skip()
    names = []
    for part in inner.parts():
        name = part.name()
        while part.take("."):
            name = part.name()
        names.append(name)
    return tuple(names)

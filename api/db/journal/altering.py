"""Read ALTER TABLE, CREATE INDEX and DROP INDEX: which clause touches what.

The grammar is MySQL 9's and MariaDB 11's together; a form that one of them does not know is refused by that server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from api.db.journal.statement import Action, AlterTable, Clause
from api.db.journal.words import Words

PRIMARY = "PRIMARY"
_KEY = ("INDEX", "KEY")
_KIND_OF_INDEX = ("UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR")
_HOW = ("ALGORITHM", "LOCK", "WITH", "WITHOUT")
# What MariaDB means by ALTER ONLINE TABLE (its manual, "ALTER TABLE").
_ONLINE = "LOCK=NONE"
# What one of them takes apart no later statement puts together.
_LOSING_PARTITION = ("DROP", "TRUNCATE", "EXCHANGE", "DISCARD", "IMPORT", "CONVERT")
_PARTITION_WORK = ("REORGANIZE", "COALESCE", "REBUILD", "OPTIMIZE", "ANALYZE", "CHECK", "REPAIR")
# Options with a value that SHOW CREATE TABLE tells and another ALTER sets back.
_OPTIONS = re.compile(
    "AUTOEXTEND_SIZE|AUTO_INCREMENT|AVG_ROW_LENGTH|CHECKSUM|COLLATE|COMMENT|COMPRESSION|DELAY_KEY_WRITE|ENCRYPTED"
    "|ENCRYPTION|ENCRYPTION_KEY_ID|ENGINE_ATTRIBUTE|KEY_BLOCK_SIZE|MAX_ROWS|MIN_ROWS|PACK_KEYS|PAGE_CHECKSUM"
    "|PAGE_COMPRESSED|PAGE_COMPRESSION_LEVEL|ROW_FORMAT|SECONDARY_ENGINE_ATTRIBUTE|STATS_AUTO_RECALC"
    "|STATS_PERSISTENT|STATS_SAMPLE_PAGES|TABLE_CHECKSUM|TRANSACTIONAL"
)


def read_alter_table(words: Words, online: bool) -> AlterTable:
    """Read ALTER TABLE from the table's name on; *online* is MariaDB's word before it."""
    refuse_versioning(words)
    if_exists = words.take("IF", "EXISTS")
    table = words.changed()
    waiting = words.at
    if words.take("WAIT"):
        words.skip()
    words.take("NOWAIT")
    waiting_text = words.text(waiting, words.at)
    options = [_ONLINE] if online else []
    clauses: list[Clause] = []
    for part in _clauses(words):
        if part.next in _HOW:
            options.append(_read_how(part))
        else:
            clauses += _read_clause(part)
    return AlterTable(
        sql=words.sql,
        names=words.names(),
        schemas=frozenset(words.schemas),
        table=table,
        clauses=tuple(clauses),
        options=", ".join(options),
        waiting=waiting_text,
        if_exists=if_exists,
    )


def _read_how(words: Words) -> str:
    if words.end > _end_of_option(words, words.at):
        raise words.refused(f"{words.text()[:40]!r} was not expected")
    return words.text()


def read_create_index(words: Words, online: bool) -> AlterTable:
    """Read CREATE INDEX from UNIQUE, FULLTEXT or INDEX on, as an ALTER TABLE of one clause."""
    words.take_any(*_KIND_OF_INDEX)
    words.expect("INDEX")
    conditional = words.take("IF", "NOT", "EXISTS")
    name = words.name()
    words.at = words.find("ON")
    words.expect("ON")
    return _index(words, Action.PART, name, online, conditional)


def read_drop_index(words: Words, online: bool) -> AlterTable:
    """Read DROP INDEX from after that word on, as an ALTER TABLE of one clause."""
    conditional = words.take("IF", "EXISTS")
    name = words.name()
    words.expect("ON")
    action = Action.DROP_PRIMARY_KEY if name.upper() == PRIMARY else Action.DROP_INDEX
    return _index(words, action, name, online, conditional)


def _index(words: Words, action: Action, name: str, online: bool, conditional: bool) -> AlterTable:
    table = words.changed()
    options = [_ONLINE] if online else []
    options += [words.text(at, _end_of_option(words, at)) for at in words.top() if words.words[at] in _HOW]
    return AlterTable(
        sql=words.sql,
        names=words.names(),
        schemas=frozenset(words.schemas),
        table=table,
        clauses=(Clause(words.text(0, words.end), action, name, conditional=conditional),),
        options=", ".join(options),
    )


def _end_of_option(words: Words, at: int) -> int:
    return min(words.end, at + 2 + (words.words[at + 1 : at + 2] == ["="]))


def refuse_versioning(words: Words) -> None:
    """Refuse the periods and the row history of MariaDB's tables: no ALTER brings a history back."""
    for at, word in enumerate(words.words[:-1]):
        if (word, words.words[at + 1]) in (("SYSTEM", "VERSIONING"), ("PERIOD", "FOR")):
            raise words.refused("undo knows no row history and no periods")


# Taking the clauses apart -----------------------------------------------------------------------------------------


def _clauses(words: Words) -> Iterator[Words]:
    """Yield the clauses: between commas, but for lists that end the statement and partitions, which need no comma."""
    start = words.at
    while start < words.end:
        rest = words.part(start, words.end)
        end = words.end if _takes_the_rest(rest) else _end_of_clause(rest)
        if end == start:
            raise words.refused("there is a comma too many")
        yield words.part(start, end)
        start = end + (end < words.end and words.words[end] == ",")


def _takes_the_rest(words: Words) -> bool:
    if words.second == "PARTITION":
        return words.next in (*_LOSING_PARTITION, *_PARTITION_WORK, "ADD")
    return words.second == "BY" and words.next in ("ORDER", "PARTITION")


def _end_of_clause(words: Words) -> int:
    for at in words.top():
        word = words.words[at]
        if word == ",":
            return at
        if word in ("PARTITION", "REMOVE") and at > words.at:
            part = words.part(at, words.end)
            if part.ahead("PARTITION", "BY") or part.ahead("REMOVE", "PARTITIONING"):
                return at
    return words.end


def _read_clause(words: Words) -> list[Clause]:
    if words.second == "PARTITION" and words.next in _LOSING_PARTITION:
        raise words.refused(
            f"what {words.next} PARTITION takes away cannot be brought back",
            "DELETE the partition's rows, whose copies the journal keeps, and change the partitions in a migration of "
            "its own with `atomic = False`",
        )
    reader = _READERS.get(words.next, _read_whole)
    return reader(words)


def _clause(words: Words, action: Action, name: str | None = None, **more: Any) -> Clause:
    """Return the clause whose text is the whole of *words*, wherever they have been read to."""
    return Clause(words.text(), action, name, **more)


# Clauses that name what they touch --------------------------------------------------------------------------------


def _read_add(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    if rest.take("PARTITION"):
        return [_clause(words, Action.WHOLE)]
    part = _read_index_or_constraint(words, rest)
    if part is not None:
        return [part]
    rest.take("COLUMN")
    conditional = rest.take("IF", "NOT", "EXISTS")
    if rest.next != "(":
        return [_read_column(words, rest, Action.ADD_COLUMN, conditional)]
    elements = rest.part(rest.at + 1, rest.closing[rest.at]).parts()
    return [_read_element(element, conditional) for element in elements]


def _read_element(words: Words, conditional: bool) -> Clause:
    """Read a part of ``ADD (…, …)``: a column, or an index or constraint."""
    rest = words.part(words.at, words.end)
    part = _read_index_or_constraint(words, rest)
    part = part or _read_column(words, rest, Action.ADD_COLUMN, conditional)
    return replace(part, text=f"ADD {'COLUMN IF NOT EXISTS ' if conditional else ''}{part.text}")


def _read_index_or_constraint(words: Words, rest: Words) -> Clause | None:
    """Read what follows ADD if it is no column; None, with nothing read, if it is one."""
    name, constraint = None, rest.take("CONSTRAINT")
    conditional = constraint and rest.take("IF", "NOT", "EXISTS")
    if constraint and rest.next not in ("PRIMARY", "UNIQUE", "FOREIGN", "CHECK"):
        name = rest.name()
    if rest.take("PRIMARY", "KEY"):
        return _clause(words, Action.PART, PRIMARY, conditional=conditional)
    if rest.take("CHECK"):
        return _clause(words, Action.PART, name, conditional=conditional)
    foreign = rest.take("FOREIGN", "KEY")
    if foreign or _take_kind_of_index(rest):
        conditional = rest.take("IF", "NOT", "EXISTS") or conditional
        own = None if rest.next in ("(", "USING") else rest.name()
        # An index's own name wins over its constraint's; a foreign key's own name is that of its index.
        name = (name or own) if foreign else (own or name)
        return _clause(words, Action.PART, name, conditional=conditional)
    if constraint:
        raise words.refused(f"a constraint of an unknown kind: {rest.next or 'nothing'}")
    return None


def _take_kind_of_index(words: Words) -> bool:
    """Read ``UNIQUE KEY``, ``FULLTEXT``, ``INDEX`` and their like; VECTOR alone is no reserved word."""
    if words.next == "VECTOR" and words.second not in _KEY:
        return False
    kind = words.take_any(*_KIND_OF_INDEX)
    return bool(words.take_any(*_KEY) or kind)


def _read_column(words: Words, rest: Words, action: Action, conditional: bool, old: str | None = None) -> Clause:
    """Read a column's name and definition; *old* is the name it had, with CHANGE."""
    name = rest.name()
    end = _end_of_definition(rest)
    definition, position = rest.text(rest.at, end), rest.text(end, rest.end)
    if not definition:
        raise words.refused(f"column {name!r} has no definition")
    if old is None:
        return _clause(words, action, name, definition=definition, position=position, conditional=conditional)
    new_name = name if name != old else None
    return _clause(
        words, action, old, new_name=new_name, definition=definition, position=position, conditional=conditional
    )


def _end_of_definition(words: Words) -> int:
    if words.end - 1 > words.at and words.words[words.end - 1] == "FIRST":
        return words.end - 1
    if words.end - 2 > words.at and words.words[words.end - 2] == "AFTER":
        return words.end - 2
    return words.end


def _read_modify(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    rest.take("COLUMN")
    conditional = rest.take("IF", "EXISTS")
    return [_read_column(words, rest, Action.CHANGE_COLUMN, conditional)]


def _read_change(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    rest.take("COLUMN")
    conditional = rest.take("IF", "EXISTS")
    old = rest.name()
    return [_read_column(words, rest, Action.CHANGE_COLUMN, conditional, old)]


def _read_drop(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    if rest.take("PRIMARY", "KEY"):
        return [_clause(words, Action.DROP_PRIMARY_KEY, PRIMARY)]
    action = Action.DROP_COLUMN
    if rest.take("FOREIGN", "KEY"):
        action = Action.DROP_FOREIGN_KEY
    elif rest.take_any(*_KEY):
        action = Action.DROP_INDEX
    elif rest.take_any("CHECK", "CONSTRAINT"):
        action = Action.DROP_CONSTRAINT
    else:
        rest.take("COLUMN")
    conditional = rest.take("IF", "EXISTS")
    name = rest.name()
    if action is Action.DROP_INDEX and name.upper() == PRIMARY:
        action = Action.DROP_PRIMARY_KEY
    rest.take_any("RESTRICT", "CASCADE")
    _expect_end(rest)
    return [_clause(words, action, name, conditional=conditional)]


def _read_rename(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    column, index = rest.take("COLUMN"), bool(rest.take_any(*_KEY))
    if not (column or index):
        rest.take_any("TO", "AS", "=")
        new_table = rest.changed()
        _expect_end(rest)
        return [_clause(words, Action.RENAME_TABLE, new_name=new_table)]
    conditional = rest.take("IF", "EXISTS")
    old = rest.name()
    rest.expect("TO")
    new = rest.name()
    _expect_end(rest)
    action = Action.RENAME_COLUMN if column else Action.PART
    return [_clause(words, action, old, new_name=new, conditional=conditional)]


def _read_alter(words: Words) -> list[Clause]:
    rest = words.part(words.at + 1, words.end)
    rest.take_any("COLUMN", "INDEX", "KEY", "CHECK", "CONSTRAINT")
    conditional = rest.take("IF", "EXISTS")
    name = rest.name()
    known = ("SET", "DROP", "VISIBLE", "INVISIBLE", "IGNORED", "NOT", "ENFORCED")
    if rest.next not in known:
        raise words.refused(f"{rest.next or 'nothing'} was not expected after ALTER {name!r}")
    return [_clause(words, Action.PART, name, conditional=conditional)]


def _expect_end(words: Words) -> None:
    if not words.done:
        raise words.refused(f"{words.text()[:40]!r} was not expected")


# Clauses that touch the whole table -------------------------------------------------------------------------------


def _read_whole(words: Words) -> list[Clause]:
    rest = words.part(words.at, words.end)
    if words.ahead("PARTITION", "BY") or rest.take("REMOVE", "PARTITIONING"):
        return [_clause(words, Action.PARTITION)]
    if rest.take("CONVERT", "TO"):
        _read_conversion(rest)
    elif rest.take("ENABLE", "KEYS") or rest.take("DISABLE", "KEYS") or rest.take("FORCE"):
        _expect_end(rest)
    elif not _takes_the_rest(rest):
        while not rest.done:
            _read_option(rest)
    return [_clause(words, Action.WHOLE)]


def _read_conversion(words: Words) -> None:
    if not words.take("CHARSET"):
        words.take_any("CHARACTER", "CHAR")
        words.expect("SET")
    words.take("=")
    if _value(words).lower() != "utf8mb4":
        raise words.refused(
            "a conversion to any character set but utf8mb4 may lose characters for good",
            "convert to utf8mb4, or set `atomic = False` in the migration's file",
        )
    if words.take("COLLATE"):
        words.take("=")
        _value(words)
    _expect_end(words)


def _read_option(words: Words) -> None:
    words.take("DEFAULT")
    start = words.at
    if words.take("CHARSET") or (words.take_any("CHARACTER", "CHAR") and words.take("SET")):
        words.take("=")
        _value(words)
        return
    option = words.next
    words.skip()
    words.take("=")
    if option == "ENGINE":
        _read_engine(words)
    elif _OPTIONS.fullmatch(option):
        _value(words)
    else:
        raise words.refused(f"{words.text(start, start + 1)!r} is not known in ALTER TABLE, or not undoable")


def _read_engine(words: Words) -> None:
    engine = _value(words)
    if engine.lower() != "innodb":
        raise words.refused(
            f"a table of the storage engine {engine} cannot be part of a batch",
            "keep ENGINE=InnoDB, or set `atomic = False` in the migration's file",
        )


def _value(words: Words) -> str:
    """Read an option's value: a word, a string or a number."""
    if words.done or words.next in (",", "(", ")", "="):
        raise words.refused("an option has no value")
    words.at += 1
    return words.tokens[words.at - 1].text


_READERS: dict[str, Callable[[Words], list[Clause]]] = {
    "ADD": _read_add,
    "MODIFY": _read_modify,
    "CHANGE": _read_change,
    "DROP": _read_drop,
    "RENAME": _read_rename,
    "ALTER": _read_alter,
}

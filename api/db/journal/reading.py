"""Read a statement: what it does to MySQL or MariaDB, or why an atomic batch refuses it.

Only what is understood as far as undo must know is let through; every other statement is refused before it is sent.
A query is not looked into: it may call a stored function that writes, which nothing here can see.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from api.db.journal.altering import read_alter_table, read_create_index, read_drop_index, refuse_versioning
from api.db.journal.refusing import REFUSED, REFUSED_OBJECTS
from api.db.journal.statement import (
    ChangeView,
    CreateTable,
    CreateTrigger,
    DropTables,
    DropTrigger,
    Free,
    RenameTables,
    Statement,
    TemporaryTable,
)
from api.db.journal.touching import read_delete, read_insert, read_update, without_literal_rows
from api.db.journal.words import Words

# Asked most often, and free whatever follows, as long as it is one statement.
_QUESTION = re.compile(r"\s*(?:SELECT|SHOW)\b", re.IGNORECASE)
_ALL_LOCKS = "RELEASE_ALL_LOCKS"
# With these a server reads quotes in another way than `lexing` does.
_QUOTING_MODE = re.compile(r"ANSI|NO_BACKSLASH_ESCAPES|ORACLE|POSTGRESQL|MSSQL|DB2|MAXDB", re.IGNORECASE)
_WRITING = ("UPDATE", "DELETE", "INSERT", "REPLACE")
_INDEX = ("INDEX", "UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR")
_COMPOUND = ("BEGIN", "IF", "CASE", "LOOP", "REPEAT", "WHILE")


def read(sql: str) -> Statement:
    """Return what *sql* does. Raises ``StatementRefusedError`` where that is not understood or cannot be undone.

    A word costs microseconds; a query, or rows of literals, cost next to nothing.
    """
    if _QUESTION.match(sql) and not (";" in sql or "/*" in sql or _ALL_LOCKS in sql.upper()):
        return Free(sql=sql)
    short = without_literal_rows(sql)
    statement = _read(split(short))
    return statement if short is sql else replace(statement, sql=sql)


def split(sql: str) -> Words:
    """Return the words of *sql*. Raises ``StatementRefusedError`` where a server may split it otherwise."""
    # What it imports takes 60 ms: no boot pays for it that reads no statement, as on PostgreSQL and SQLite.
    from api.db.journal import lexing

    return lexing.split(sql)


def _read(words: Words) -> Statement:
    if words.next != "CREATE":
        _refuse_several(words, words.at)
    if _ALL_LOCKS in words.words:
        raise words.refused("it would give up the lock that keeps other migrators out", "release locks by their names")
    reader = _READERS.get(words.next)
    if reader is None:
        raise words.refused(*REFUSED.get(words.next, ("it is not understood", None)))
    return reader(words)


def _refuse_several(words: Words, start: int) -> None:
    if ";" in words.words[start : words.end]:
        raise words.refused("it is several statements in one", "send them one by one")


def _refuse_object(words: Words, verb: str) -> Statement:
    raise words.refused(*REFUSED_OBJECTS.get(words.next, (f"{verb} {words.next} is not understood", None)))


def _expect_end(words: Words) -> None:
    if not words.done:
        raise words.refused(f"{words.text()[:40]!r} was not expected")


# What changes nothing ---------------------------------------------------------------------------------------------


def _free(words: Words) -> Free:
    return Free(sql=words.sql)


def _read_group(words: Words) -> Free:
    while words.next == "(":
        words.at += 1
    if words.next not in ("SELECT", "WITH", "TABLE", "VALUES"):
        raise words.refused("it begins with a parenthesis and is no query")
    return _free(words)


def _read_with(words: Words) -> Free:
    verb = words.words[words.find("SELECT", *_WRITING) : words.end][:1]
    if verb and verb[0] in _WRITING:
        raise words.refused(
            f"a WITH before {verb[0]} is not understood", "write the WITH's query as a subquery of the statement"
        )
    return _free(words)


def _read_explain(words: Words) -> Free:
    words.take_any("EXPLAIN", "DESCRIBE", "DESC")
    return _read_analyze(words) if words.next == "ANALYZE" else _free(words)


def _read_analyze(words: Words) -> Free:
    """Let ANALYZE TABLE pass, and the ANALYZE that runs a query and tells of it, but not one that runs a change."""
    words.expect("ANALYZE")
    words.take_any("LOCAL", "NO_WRITE_TO_BINLOG")
    verb = words.find("SELECT", "WITH", "TABLE", "(", *_WRITING)
    if verb < words.end and words.words[verb] in _WRITING:
        raise words.refused("ANALYZE runs the statement it explains", "send the statement without ANALYZE")
    return _free(words)


def _read_table_work(words: Words) -> Free:
    words.take_any("CHECK", "CHECKSUM", "OPTIMIZE")
    words.take_any("LOCAL", "NO_WRITE_TO_BINLOG")
    if not words.take_any("TABLE", "TABLES", "VIEW"):
        words.expect("TABLE")
    return _free(words)


def _read_flush(words: Words) -> Free:
    if words.find("LOCK", "EXPORT") < words.end:
        raise words.refused("it would lock out the journal", "FLUSH without a lock")
    return _free(words)


def _read_transaction(words: Words) -> Free:
    """Read BEGIN, START TRANSACTION, COMMIT, ROLLBACK, SAVEPOINT and RELEASE SAVEPOINT."""
    verb = words.take_any("BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
    if verb == "BEGIN":
        words.take("WORK")
        if not words.done:
            raise words.refused("a block of statements is not understood", "send its statements one by one")
    elif verb == "START":
        words.expect("TRANSACTION")
    elif verb == "RELEASE":
        words.expect("SAVEPOINT")
    elif verb in ("COMMIT", "ROLLBACK"):
        release = words.find("RELEASE")
        if release < words.end and words.words[release - 1] != "NO":
            raise words.refused("RELEASE would close the connection that holds the lock", "leave RELEASE out")
    return _free(words)


def _read_set(words: Words) -> Free:
    words.expect("SET")
    if words.next in ("STATEMENT", "PASSWORD", "ROLE", "DEFAULT", "RESOURCE"):
        raise words.refused(*REFUSED_OBJECTS[words.next])
    for part in words.parts():
        _refuse_setting(part)
    return _free(words)


def _refuse_setting(words: Words) -> None:
    if words.take("@") and not words.take("@"):
        return  # a user's variable
    scope, name = "", words.tokens[words.at].text.upper() if not words.done else ""
    if name in ("GLOBAL", "PERSIST", "PERSIST_ONLY", "SESSION", "LOCAL"):
        scope = name
        words.at += 1
        words.take(".")
        name = words.tokens[words.at].text.upper() if not words.done else ""
    if scope in ("GLOBAL", "PERSIST", "PERSIST_ONLY"):
        raise words.refused("a setting of the whole server is not undone", "let an administrator set it")
    if name == "SQL_LOG_BIN":
        raise words.refused("replicas would miss what an undo takes back", "leave the binary log on")
    if name == "SQL_MODE" and _QUOTING_MODE.search(words.text()):
        raise words.refused("with that sql_mode the statements' quotes mean something else", "leave that mode out")


# CREATE -----------------------------------------------------------------------------------------------------------


def _read_create(words: Words) -> Statement:
    words.expect("CREATE")
    replaces = words.take("OR", "REPLACE")
    online = words.take("ONLINE")
    _skip_security(words)
    if words.next != "TRIGGER":
        _refuse_several(words, words.at)
    if words.ahead("TEMPORARY", "TABLE"):
        return _read_create_temporary(words)
    if words.next == "VIEW":
        return _read_view(words)
    if replaces and words.next in ("TABLE", "TRIGGER", *_INDEX):
        raise words.refused(
            f"CREATE OR REPLACE {words.next} destroys what it replaces",
            f"DROP the {words.next.lower() if words.next in ('TABLE', 'TRIGGER') else 'index'} first, then CREATE it",
        )
    if words.next in _INDEX:
        return read_create_index(words, online)
    if words.next == "TABLE":
        return _read_create_table(words)
    return _read_create_trigger(words) if words.next == "TRIGGER" else _refuse_object(words, "CREATE")


def _skip_security(words: Words) -> None:
    """Read ``ALGORITHM = …``, ``DEFINER = user@host`` and ``SQL SECURITY …``, which views and triggers may have."""
    while True:
        if words.take("SQL", "SECURITY"):
            words.skip()
        elif words.take("ALGORITHM"):
            words.take("=")
            words.skip()
        elif words.take("DEFINER"):
            _skip_definer(words)
        else:
            return


def _skip_definer(words: Words) -> None:
    words.take("=")
    words.skip()
    if words.next == "(":
        words.skip()
    if words.take("@"):
        words.skip()
        while words.take("."):
            words.skip()


def _read_create_table(words: Words) -> CreateTable:
    refuse_versioning(words)
    words.expect("TABLE")
    if_not_exists = words.take("IF", "NOT", "EXISTS")
    table = words.changed()
    return CreateTable(sql=words.sql, **_mentions(words), table=table, if_not_exists=if_not_exists)


def _read_create_temporary(words: Words) -> TemporaryTable:
    words.expect("TEMPORARY", "TABLE")
    words.take("IF", "NOT", "EXISTS")
    table = words.changed()
    return TemporaryTable(sql=words.sql, **_mentions(words), tables=(table,), dropped=False)


def _read_view(words: Words) -> ChangeView:
    words.expect("VIEW")
    words.take("IF", "NOT", "EXISTS")
    view = words.changed()
    return ChangeView(sql=words.sql, **_mentions(words), views=(view,))


def _read_create_trigger(words: Words) -> CreateTrigger:
    words.expect("TRIGGER")
    if_not_exists = words.take("IF", "NOT", "EXISTS")
    trigger = words.changed()
    words.at = words.find("ON")
    words.expect("ON")
    table = words.changed()
    words.expect("FOR", "EACH", "ROW")
    if words.take_any("FOLLOWS", "PRECEDES"):
        words.name()
    body = words.part(words.at, words.end)
    # Whether a block is whole the server knows; what follows one is not run, but refused, by a connection like ours.
    label = body.second == ":"
    compound = label or body.next in _COMPOUND
    if not (compound and "END" in words.words[words.end - 2 : words.end]):
        _refuse_several(body, body.at)
    return CreateTrigger(sql=words.sql, **_mentions(words), trigger=trigger, table=table, if_not_exists=if_not_exists)


# ALTER, DROP, RENAME ----------------------------------------------------------------------------------------------


def _read_alter(words: Words) -> Statement:
    words.expect("ALTER")
    online = words.take("ONLINE")
    if words.ahead("IGNORE"):
        raise words.refused(
            "ALTER IGNORE deletes the rows that stand in its way",
            "DELETE those rows first, then ALTER without IGNORE",
        )
    _skip_security(words)
    if words.next == "VIEW":
        return _read_view(words)
    if words.take("TABLE"):
        return read_alter_table(words, online)
    return _refuse_object(words, "ALTER")


def _read_drop(words: Words) -> Statement:
    words.expect("DROP")
    temporary = words.take("TEMPORARY")
    if temporary and words.next not in ("TABLE", "TABLES"):
        return _refuse_object(words, "DROP TEMPORARY")
    if words.take_any("TABLE", "TABLES"):
        return _read_drop_tables(words, temporary)
    if words.take_any("VIEW", "VIEWS"):
        words.take("IF", "EXISTS")
        views = _dropped(words)
        return ChangeView(sql=words.sql, **_mentions(words), views=views)
    if words.take("TRIGGER"):
        if_exists = words.take("IF", "EXISTS")
        trigger = words.changed()
        _expect_end(words)
        return DropTrigger(sql=words.sql, **_mentions(words), trigger=trigger, if_exists=if_exists)
    online = words.take("ONLINE")
    if words.take("INDEX"):
        return read_drop_index(words, online)
    return _refuse_object(words, "DROP")


def _read_drop_tables(words: Words, temporary: bool) -> Statement:
    if_exists = words.take("IF", "EXISTS")
    tables = _dropped(words)
    if temporary:
        return TemporaryTable(sql=words.sql, **_mentions(words), tables=tables, dropped=True)
    return DropTables(sql=words.sql, **_mentions(words), tables=tables, if_exists=if_exists)


def _dropped(words: Words) -> tuple[str, ...]:
    names = [words.changed()]
    while words.take(","):
        names.append(words.changed())
    _skip_waiting(words)
    words.take_any("RESTRICT", "CASCADE")
    _expect_end(words)
    return tuple(names)


def _skip_waiting(words: Words) -> None:
    if words.take("WAIT"):
        words.skip()
    words.take("NOWAIT")


def _read_rename(words: Words) -> Statement:
    words.expect("RENAME")
    if not words.take_any("TABLE", "TABLES"):
        return _refuse_object(words, "RENAME")
    if_exists = words.take("IF", "EXISTS")
    pairs = [_renamed(part) for part in words.parts()]
    if not pairs:
        raise words.refused("it names no table")
    return RenameTables(sql=words.sql, **_mentions(words), pairs=tuple(pairs), if_exists=if_exists)


def _renamed(words: Words) -> tuple[str, str]:
    old = words.changed()
    _skip_waiting(words)
    words.expect("TO")
    new = words.changed()
    _expect_end(words)
    return old, new


def _mentions(words: Words) -> dict[str, frozenset[str]]:
    return {"names": words.names(), "schemas": frozenset(words.schemas)}


_READERS: dict[str, Callable[[Words], Statement]] = {
    "": _free,
    "(": _read_group,
    **dict.fromkeys(("SELECT", "SHOW", "DO", "HELP", "TABLE", "VALUES"), _free),
    "WITH": _read_with,
    **dict.fromkeys(("EXPLAIN", "DESCRIBE", "DESC"), _read_explain),
    "ANALYZE": _read_analyze,
    **dict.fromkeys(("CHECK", "CHECKSUM", "OPTIMIZE"), _read_table_work),
    "FLUSH": _read_flush,
    **dict.fromkeys(("BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"), _read_transaction),
    "SET": _read_set,
    "CREATE": _read_create,
    "ALTER": _read_alter,
    "DROP": _read_drop,
    "RENAME": _read_rename,
    "UPDATE": read_update,
    "DELETE": read_delete,
    "INSERT": read_insert,
    "REPLACE": read_insert,
}

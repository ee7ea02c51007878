"""What an atomic batch refuses, by the word it begins with or the kind of object it is about: the reason, the remedy.

A remedy of None is the error's own: a migration with ``atomic = False``.
"""

from __future__ import annotations

from typing import TypeAlias

Refusal: TypeAlias = tuple[str, str | None]

_ADMINISTRATOR = "let an administrator do it, outside of migrations"
_ITSELF = "send the statement itself"
_ACCOUNTS: Refusal = ("accounts and their rights are not undone", _ADMINISTRATOR)
_SERVER: Refusal = ("it is about the server, not the schema", _ADMINISTRATOR)
_PREPARED: Refusal = ("a prepared statement hides what it does", _ITSELF)
_LOCKS: Refusal = ("table locks would lock out the journal", "leave them out: one migrator runs at a time")
_STORED: Refusal = ("stored programs are not undone", None)
_SCHEMA: Refusal = ("a whole database is neither kept nor brought back", _ADMINISTRATOR)
_SPACE: Refusal = ("tablespaces are not undone", _ADMINISTRATOR)

REFUSED: dict[str, Refusal] = {
    "TRUNCATE": ("TRUNCATE destroys rows without a copy", "use DELETE, whose rows the journal keeps for an undo"),
    "CALL": ("what a procedure does cannot be seen", "send the procedure's statements from the migration"),
    "LOAD": ("what a file brings cannot be told apart from what stood", "INSERT the rows from the migration"),
    "HANDLER": ("HANDLER reads past transactions", "use SELECT"),
    **dict.fromkeys(("PREPARE", "EXECUTE", "DEALLOCATE"), _PREPARED),
    "XA": ("a batch has its own transactions", "use BEGIN and COMMIT, or none"),
    **dict.fromkeys(("LOCK", "UNLOCK"), _LOCKS),
    "USE": ("the journal is about one database", "connect the migration to the other database"),
    **dict.fromkeys(("GRANT", "REVOKE"), _ACCOUNTS),
    **dict.fromkeys(
        ("KILL", "RESET", "PURGE", "CHANGE", "STOP", "INSTALL", "UNINSTALL", "SHUTDOWN", "RESTART", "CLONE", "CACHE"),
        _SERVER,
    ),
    "IMPORT": ("a table from a file is not undone", None),
    "REPAIR": ("InnoDB repairs nothing on demand", "leave it out"),
    **dict.fromkeys(("IF", "CASE", "LOOP", "WHILE", "REPEAT", "DECLARE", "FOR"), (_STORED[0], "send its statements")),
}

REFUSED_OBJECTS: dict[str, Refusal] = {
    **dict.fromkeys(("DATABASE", "SCHEMA"), _SCHEMA),
    **dict.fromkeys(("PROCEDURE", "FUNCTION", "EVENT", "PACKAGE", "AGGREGATE", "LIBRARY"), _STORED),
    **dict.fromkeys(("USER", "ROLE", "PASSWORD", "DEFAULT"), _ACCOUNTS),
    **dict.fromkeys(("SERVER", "RESOURCE", "INSTANCE", "LOGFILE"), _SERVER),
    **dict.fromkeys(("TABLESPACE", "UNDO"), _SPACE),
    "SEQUENCE": ("sequences are not undone", None),
    "PREPARE": _PREPARED,
    "STATEMENT": ("SET STATEMENT … FOR hides the statement behind it", "SET the variable first, then send it"),
}

"""The rights that only an undo needs: without them a statement goes through and can never be taken back.

SHOW GRANTS also tells the rights of the roles that are active, on both servers; information_schema does not.
"""

from __future__ import annotations

import re

import pymysql

from api.db.journal.link import Link, Memory
from api.db.journal.snapshot import is_table
from api.db.journal.statement import (
    Action,
    AlterTable,
    ChangeView,
    CreateTable,
    Delete,
    Insert,
    Statement,
)
from api.exceptions import StatementRefusedError

GRANT = re.compile(r"GRANT (?P<rights>.+?) ON (?P<scope>\*\.\*|`(?:[^`]|``)+`\.(?:\*|`(?:[^`]|``)+`)) TO ")
SCOPE = re.compile(r"`((?:[^`]|``)+)`\.(?:\*|`((?:[^`]|``)+)`)")
REVOKE = re.compile(r"REVOKE (?P<rights>.+?) ON `(?P<schema>(?:[^`]|``)+)`\.\* FROM ")
DEFINER = re.compile(r"\bDEFINER=(`(?:[^`]|``)*`)@(`(?:[^`]|``)*`)")
ALL = "ALL PRIVILEGES"
# Asked of the server itself when its grants do not say it; neither changes anything.
PROBES = {
    "DROP": ("DROP TABLE IF EXISTS _plinth_probe",),
    "LOCK TABLES": ("LOCK TABLES migration_batch READ", "UNLOCK TABLES"),
}
# Any of these makes a view that belongs to another account.
OTHERS = ("SUPER", "SET USER", "SET_USER_ID", "SET_ANY_DEFINER")
# MySQL and MariaDB error numbers: no such right on the table, on the database.
DENIED = (1142, 1044)


class Grants:
    """What this session's account may do in its database, by what was granted to it and to its active roles."""

    def __init__(self, link: Link | Memory) -> None:
        self.user, self.schema = (str(each) for each in link.rows("SELECT CURRENT_USER(), DATABASE()")[0])
        self._grants = [str(line) for (line,) in link.rows("SHOW GRANTS")]

    def granted(self, right: str, table: str | None) -> bool:
        """Say whether a grant gives *right* on *table*; of None, on the whole server."""
        if any(self._takes(line, right) for line in self._grants):
            return any(self._gives(line, right, table) and " ON *.*" not in line for line in self._grants)
        return any(self._gives(line, right, table) for line in self._grants)

    def _gives(self, line: str, right: str, table: str | None) -> bool:
        found = GRANT.match(line)
        if not found or not {right, ALL} & set(_list(found["rights"])):
            return False
        if table is None or found["scope"] == "*.*":
            return found["scope"] == "*.*"
        scope = SCOPE.match(found["scope"])
        assert scope is not None, "the grant was read by the same pattern"
        schema, own = (each and each.replace("``", "`") for each in scope.groups())
        return _is_like(self.schema, str(schema)) and own in (None, table)

    def _takes(self, line: str, right: str) -> bool:
        # MySQL's partial revokes.
        found = REVOKE.match(line)
        return found is not None and found["schema"] == self.schema and right in _list(found["rights"])


class Rights(Grants):
    """What this session's account may do in its database, also by asking the server for it; read once a batch."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.link = link
        self._probed: dict[str, bool] = {}

    def has(self, right: str, table: str) -> bool:
        """Say whether the account has *right* on *table*. No probe is made within a transaction, which it would end."""
        if self.granted(right, table):
            return True
        if right not in PROBES or self.link.in_transaction:
            return False
        if right not in self._probed:
            self._probed[right] = self._probe(*PROBES[right])
        return self._probed[right]

    def _probe(self, *statements: str) -> bool:
        try:
            for sql in statements:
                self.link.execute(sql)
        except pymysql.err.MySQLError as exc:
            if exc.args[0] in DENIED:
                return False
            raise
        return True


def _list(rights: str) -> list[str]:
    return re.split(r",\s*", rights)


def _is_like(schema: str, pattern: str) -> bool:
    r"""Say whether *schema* is one that a grant on *pattern* is about: _ and % stand for any, \_ for itself."""
    wild = {"_": ".", "%": ".*"}
    parts = re.findall(r"\\.|.", pattern)
    return re.fullmatch("".join(wild.get(part) or re.escape(part[-1]) for part in parts), schema, re.I) is not None


def refuse_missing_rights(rights: Rights, statement: Statement, before: dict[str, str | None]) -> None:
    """Raise ``StatementRefusedError`` when this account could do *statement* but not undo it.

    *before* are the definitions of what the statement changes, where it changes any. Call it before the transaction of
    a statement that changes rows.
    """
    match statement:
        case CreateTable(table=table):
            require(rights, "DROP", table)
        case AlterTable(table=table, clauses=clauses):
            require(rights, "ALTER", table)
            if any(clause.action is Action.DROP_FOREIGN_KEY for clause in clauses):
                require(rights, "REFERENCES", table)
        case Insert(table=table):
            require(rights, "DELETE", table)
        case Delete(target=table) if table is not None:
            require(rights, "INSERT", table)
        case ChangeView():
            for view, was in before.items():
                _refuse_view(rights, view, was)


def require(rights: Rights, right: str, table: str) -> None:
    """Raise ``StatementRefusedError`` when the account lacks *right* on *table*."""
    if not rights.has(right, table):
        raise StatementRefusedError(
            f"the undo would take the right {right} on {table!r}, which {rights.user} does not have",
            hint=f"GRANT {right} ON `{rights.schema}`.* to it, or set `atomic = False` in the migration's file",
        )


def _refuse_view(rights: Rights, view: str, was: str | None) -> None:
    require(rights, "DROP", view)
    if was is None or is_table(was):
        return
    require(rights, "CREATE VIEW", view)
    found = DEFINER.search(was)
    definer = "@".join(part[1:-1].replace("``", "`") for part in found.groups()) if found else rights.user
    if definer != rights.user and not any(rights.granted(right, None) for right in OTHERS):
        raise StatementRefusedError(
            f"the change of view {view!r} could not be undone: it belongs to {definer}, and this account is "
            f"{rights.user}",
            hint="let its owner change it, or set `atomic = False` in the migration's file",
        )

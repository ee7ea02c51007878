"""Triggers: what makes one, and when dropping one could not be undone."""

from __future__ import annotations

import json
import re

import pymysql

from api.db.journal.link import Link, name
from api.db.journal.steady import settings
from api.exceptions import StatementRefusedError

# MySQL and MariaDB error number.
NO_SUCH_TRIGGER = 1360

PLACE = """
SELECT t.event_object_table, t.definer,
       (SELECT COUNT(*) FROM information_schema.triggers o
        WHERE o.event_object_schema = t.event_object_schema AND o.event_object_table = t.event_object_table
          AND o.action_timing = t.action_timing AND o.event_manipulation = t.event_manipulation)
FROM information_schema.triggers t WHERE t.trigger_schema = DATABASE() AND t.trigger_name = %s"""
# With a binary log, making a trigger takes SUPER unless the server trusts its users (MySQL 8.4 manual, 27.8).
MAY_CREATE = """
SELECT CURRENT_USER(), @@log_bin = 0 OR @@log_bin_trust_function_creators = 1 OR EXISTS (
    SELECT 1 FROM information_schema.user_privileges
    WHERE privilege_type = 'SUPER' AND grantee = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), ''''))"""


def definition(link: Link, trigger: str) -> str | None:
    """Return what makes *trigger* again, as JSON: *statement*, *sql_mode*, and the character sets it was made under."""
    try:
        row = link.rows(f"SHOW CREATE TRIGGER {name(trigger)}")[0]
    except pymysql.err.MySQLError as exc:
        if exc.args[0] == NO_SUCH_TRIGGER:
            return None
        raise
    return json.dumps({"sql_mode": row[1], "statement": row[2], "client": row[3], "connection": row[4]})


def is_made_by(text: str, sql: str) -> bool:
    """Say whether the trigger that *text*, a ``definition``, tells of is what the statement *sql* made or dropped."""
    bodies = [
        re.split(r"(?i)\bFOR\s+EACH\s+ROW\b", each, maxsplit=1)[1:] for each in (json.loads(text)["statement"], sql)
    ]
    return not bodies[1] or [body.strip(" ;\n") for body in bodies[0]] == [body.strip(" ;\n") for body in bodies[1]]


def make(link: Link, text: str) -> None:
    """Make the trigger that *text*, a ``definition``, tells of."""
    wanted = json.loads(text)
    made_under = {
        "sql_mode": wanted["sql_mode"],
        "character_set_client": wanted["client"],
        "collation_connection": wanted["connection"],
    }
    with settings(link, made_under):
        link.execute(wanted["statement"])


def refuse_drop(link: Link, trigger: str) -> None:
    """Raise ``StatementRefusedError`` when this account could not make *trigger* again as it is."""
    (user, may_create), places = link.rows(MAY_CREATE)[0], link.rows(PLACE, (trigger,))
    for table, definer, beside in places:
        reason = None
        if definer != user:
            reason = f"it belongs to {definer}, and this account is {user}"
        elif not may_create:
            reason = "this account may not create triggers (log_bin_trust_function_creators is off)"
        elif beside > 1:
            reason = f"other triggers of {table!r} run at the same event, and their order would be lost"
        if reason:
            raise StatementRefusedError(f"the drop of trigger {trigger!r} could not be undone: {reason}")

"""What the older entries of a batch are going to take away: the tables and columns that the batch made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.db.journal.definition import parse
from api.db.journal.snapshot import is_table
from api.db.journal.store import Entry


@dataclass(frozen=True, slots=True)
class Going:
    """The *older* entries of the one that is being undone, newest first."""

    older: Sequence[Entry] = ()

    def takes(self, table: str, columns: Sequence[str]) -> bool:
        """Say whether *table*, or one of its *columns*, was made by the batch and goes with its undo.

        They are followed back through the renames: a table that only got its name from the batch stays.
        """
        own = list(columns)
        for entry in self.older:
            if entry.kind != "tables":
                continue
            for old, new in reversed(entry.tables):
                table = old if table == new else table
            if table not in entry.before:
                continue
            was = entry.before[table]
            if was is None:
                return True
            names = entry.columns.get(table, {})
            own = [names.get(column, column) for column in own]
            if is_table(was) and any(parse(was).column(column) is None for column in own):
                return True
        return False

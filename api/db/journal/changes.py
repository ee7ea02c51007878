"""The ALTER TABLE statements that bring a table from what it is to what it was, computed from the two definitions.

Found by undoing thousands of random statements (``test/fuzz_ddl.py``) on MariaDB 10.11 and MySQL 9.7:

- A foreign key cannot be dropped and added under one name in one statement (1826), and is checked against the columns
  as they were before it (1825): foreign keys are added in a statement of their own.
- A foreign key without an index makes one, which the server silently drops as soon as another serves: it is made again
  the same way, so that the server may drop it again.
- A column may be named in one clause only (1054): definition, name and place go together.
- A generated column cannot change between VIRTUAL and STORED, nor any column between an own value and VIRTUAL (1907,
  3106): it is dropped and added, and its keys with it.
- MODIFY gives a column that has no default at all ``DEFAULT NULL``, MariaDB a COMPRESSED one ``DEFAULT ''``: it is
  taken away in a statement of its own.
- MySQL drops a column INSTANT by a longer name, which it cuts within a character, and then fails (3507): copied.
- MySQL renames a column of a foreign key, also of another table's, in place only, and does not copy then (1846): what
  can be renamed is renamed first.
- MySQL changes a name's case by CHANGE also where RENAME COLUMN is refused (3108, 3855).
- MySQL makes one FULLTEXT key in one statement (1795): each further one gets a statement of its own.
- MySQL keeps a KEY_BLOCK_SIZE with the keys of a partitioned table, and sees no difference to a key without: copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from api.db.journal.definition import Column, Kind, TableDefinition, compare, lines_of, moved, parse, place, renames
from api.db.journal.link import name as quoted
from api.db.journal.printed import canonical, columns_in, partitions_meaning
from api.exceptions import MigrationError

# What an option is set to, to be without it. A statement that sets any other cannot be undone.
WITHOUT = {
    "`PAGE_COMPRESSED`": "DEFAULT",
    "`PAGE_COMPRESSION_LEVEL`": "DEFAULT",
    "AUTOEXTEND_SIZE": "0",
    "AVG_ROW_LENGTH": "0",
    "CHECKSUM": "0",
    "COMMENT": "''",
    "COMPRESSION": "''",
    "DELAY_KEY_WRITE": "0",
    "ENCRYPTION": "'N'",
    "KEY_BLOCK_SIZE": "0",
    "MAX_ROWS": "0",
    "MIN_ROWS": "0",
    "PACK_KEYS": "DEFAULT",
    "ROW_FORMAT": "DEFAULT",
    "STATS_AUTO_RECALC": "DEFAULT",
    "STATS_PERSISTENT": "DEFAULT",
    "STATS_SAMPLE_PAGES": "DEFAULT",
}
# How much of a name MySQL keeps behind ``!hidden!_dropped_v1_p4_``, two digits of either number allowed for.
BYTES_KEPT = 64 - 25
# What is switched on and off where it stands, by how it is printed: on, and off.
SWITCHES = {
    " /*!80000 INVISIBLE */": ("ALTER INDEX {} INVISIBLE", "ALTER INDEX {} VISIBLE"),
    " IGNORED": ("ALTER INDEX {} IGNORED", "ALTER INDEX {} NOT IGNORED"),
    " /*!80016 NOT ENFORCED */": ("ALTER CHECK {} NOT ENFORCED", "ALTER CHECK {} ENFORCED"),
}


def changes(current: str, wanted: str, renamed: Mapping[str, str] | None = None) -> list[str]:
    """Return the statements that bring the table from *current* to *wanted*, both as SHOW CREATE TABLE prints them.

    *renamed* says which column of *current* is which of *wanted*; what does not fit the two texts is passed over. Send
    the statements as they are, without parameters and with ``foreign_key_checks`` off, then read the definition
    again: what one run cannot bring about the next one does, so that a crash in between costs nothing. Empty when
    there is nothing to do. Raises ``MigrationError`` for a definition that cannot be read or an option that cannot be
    taken back.
    """
    now, then = parse(current), parse(wanted)
    if not compare(now, then):
        return []
    names = renames(now, then, renamed or {})
    first = {old: new for old, new in names.items() if _can_be_renamed_first(now, old, new)}
    later = {new: old for old, new in names.items() if old not in first}
    clauses = [f"RENAME COLUMN {quoted(old)} TO {quoted(new)}" for old, new in first.items()]
    statements = [f"ALTER TABLE {quoted(then.name)} {', '.join(clauses)}"] if clauses else []
    return statements + _Way(now.with_renamed(names), then, later).statements()


def _can_be_renamed_first(now: TableDefinition, old: str, new: str) -> bool:
    """Say whether the name is free, and nobody has it that MySQL would not let follow a column's new name."""
    taken = {name.lower() for name in now.column_names}
    return new.lower() not in taken and {kind for kind, _ in now.mentions(old)} <= {"key", "foreign key"}


class _Way:
    """From *now*, its columns called as in *then*, to *then*; *old_names* are what its columns are still called."""

    def __init__(self, now: TableDefinition, then: TableDefinition, old_names: Mapping[str, str]) -> None:
        self.now, self.then, self.old_names = now, then, old_names
        self.made_anew = self._with_dependents({a.name for a, b in self._in_both() if a.generation != b.generation})
        self.own_index = {
            name for name in then.foreign_keys if _makes_index(then, name) and self._is_changed("key", name)
        }
        self.renamed_keys = dict(self._renamed_keys())

    def statements(self) -> list[str]:
        """Return the statements, in the order in which they are sent."""
        adds = list(self._adds())
        more_words = [add for add in adds if add.startswith("ADD FULLTEXT ")][1:]
        adds = [add for add in adds if add not in more_words]
        clauses = [*self._drops(), *self._columns(), *adds, *self._options()]
        clauses += ["ALGORITHM=COPY"] if self._must_copy() else []
        old, new = self.now.partitions, self.then.partitions
        repartitioned = partitions_meaning(old) != partitions_meaning(new) or self._names_made_anew("partitions", "")
        # The old partitions may not fit the new columns, nor the other way about.
        removed = repartitioned and bool(old) and (bool(clauses) or not new)
        steps = [
            ["REMOVE PARTITIONING"] if removed else [],
            clauses,
            *([add] for add in more_words),
            [new] if repartitioned and new else [],
            *([clause] for clause in self._default_drops()),
            [f"ADD {line}" for line in self._to_add("foreign key").values()],
        ]
        return [f"ALTER TABLE {quoted(self.then.name)} {', '.join(step)}" for step in steps if step]

    def _in_both(self) -> Iterator[tuple[Column, Column]]:
        by_name = {column.name: column for column in self.now.columns}
        for column in self.then.columns:
            if column.name in by_name:
                yield by_name[column.name], column

    def _with_dependents(self, names: set[str]) -> set[str]:
        """Return *names* and the columns in both that are computed from them, from those, and so on."""
        both = {one.name for one, _ in self._in_both()}
        more = {name for column in names for kind, name in self.now.mentions(column) if kind == "column"} & both
        return names if more <= names else self._with_dependents(names | more)

    def _must_copy(self) -> bool:
        """Say whether the server has to be told to copy the table, where it thinks that it need not, and errs."""
        blocks = re.compile(r" KEY_BLOCK_SIZE=\d+")
        lines = ((self.now.keys[name], line) for name, line in self._to_add("key").items() if name in self.now.keys)
        same_but_blocks = any(blocks.sub("", one) == blocks.sub("", other) for one, other in lines)
        return same_but_blocks or any(map(is_cut, self._dropped()))

    # Keys, foreign keys and checks --------------------------------------------------------------------------------

    def _is_changed(self, kind: Kind, name: str) -> bool:
        one, other = lines_of(self.now, kind).get(name, ""), lines_of(self.then, kind).get(name, "")
        return canonical(one) != canonical(other) or self._names_made_anew(kind, name)

    def _names_made_anew(self, kind: Kind, name: str) -> bool:
        return any((kind, name) in self.now.mentions(column) for column in self.made_anew)

    def _is_replaced(self, kind: Kind, name: str) -> bool:
        """Say whether what is called *name* goes, or comes, or both."""
        if kind == "foreign key" and name in self.own_index:
            return True
        return self._is_changed(kind, name) and self._switch(kind, name) is None

    def _to_drop(self, kind: Kind) -> list[str]:
        return [name for name in lines_of(self.now, kind) if self._is_replaced(kind, name)]

    def _to_add(self, kind: Kind) -> dict[str, str]:
        return {name: line for name, line in lines_of(self.then, kind).items() if self._is_replaced(kind, name)}

    def _switch(self, kind: Kind, name: str) -> str | None:
        """Return the clause that switches a mark of *name* on or off, when nothing else about it differs."""
        one, other = lines_of(self.now, kind).get(name), lines_of(self.then, kind).get(name)
        if one is None or other is None or self._names_made_anew(kind, name):
            return None
        for mark, (on, off) in SWITCHES.items():
            if canonical(one) == canonical(other + mark):
                return off.format(quoted(name))
            if canonical(one + mark) == canonical(other):
                return on.format(quoted(name))
        return None

    def _renamed_keys(self) -> Iterator[tuple[str, str]]:
        """Yield the keys of *now* that stand in *then* under another name, each with it."""
        extra = [name for name in self.now.keys if name not in self.then.keys and self._is_kept_key(name)]
        missing = [name for name in self.then.keys if name not in self.now.keys and name not in self.own_index]
        for new in missing:
            old = next((name for name in extra if _named(self.now.keys[name], new) == self.then.keys[new]), None)
            if old:
                extra.remove(old)
                yield old, new

    def _is_kept_key(self, name: str) -> bool:
        return name != "PRIMARY" and not self._names_made_anew("key", name)

    def _drops(self) -> Iterator[str]:
        for name in self._to_drop("foreign key"):
            yield f"DROP FOREIGN KEY {quoted(name)}"
        for name in self._to_drop("check"):
            yield f"DROP CONSTRAINT {quoted(name)}"
        for name in self._to_drop("key"):
            if name not in self.renamed_keys:
                yield "DROP PRIMARY KEY" if name == "PRIMARY" else f"DROP KEY {quoted(name)}"

    def _adds(self) -> Iterator[str]:
        for old, new in self.renamed_keys.items():
            yield f"RENAME KEY {quoted(old)} TO {quoted(new)}"
        for name, line in self._to_add("key").items():
            if name not in self.own_index and name not in self.renamed_keys.values():
                yield f"ADD {line}"
        for line in self._to_add("check").values():
            yield f"ADD {line}"
        for kind in ("key", "check"):
            switches = (self._switch(kind, name) for name in lines_of(self.then, kind) if self._is_changed(kind, name))
            yield from filter(None, switches)

    # Columns and options ------------------------------------------------------------------------------------------

    def _dropped(self) -> list[str]:
        gone = (name for name in self.now.column_names if name not in self.then.column_names or name in self.made_anew)
        return [self.old_names.get(name, name) for name in gone]

    def _columns(self) -> Iterator[str]:
        for name in self._dropped():
            yield f"DROP COLUMN {quoted(name)}"
        standing = {one.name: one for one, _ in self._in_both() if one.name not in self.made_anew}
        moving = moved([name for name in self.now.column_names if name in standing], self.then.column_names)
        for column in self.then.columns:
            position = f" {place(self.then, column.name)}"
            if column.name in standing:
                yield from self._column(standing[column.name], column, position if column.name in moving else "")
            else:
                yield f"ADD COLUMN {quoted(column.name)} {column.text}{position}"

    def _default_drops(self) -> Iterator[str]:
        """Yield what takes the default away from each column that only has one too much.

        MariaDB passes over the plain clause (10.11), unless the column is also put somewhere, which MySQL refuses.
        """
        for one, other in self._in_both():
            if one.without_default().meaning == other.meaning != one.meaning:
                put = f"/*M! MODIFY COLUMN {quoted(one.name)} {other.text} {place(self.then, one.name)}, */ "
                yield f"{'' if put.count('*/') > 1 else put}ALTER COLUMN {quoted(one.name)} DROP DEFAULT"

    def _column(self, one: Column, other: Column, position: str) -> Iterator[str]:
        """Yield the one clause that column *one* needs to be *other*, if it needs any."""
        new, old = quoted(other.name), quoted(self.old_names.get(other.name, other.name))
        if position or other.meaning not in (one.meaning, one.without_default().meaning):
            head = f"MODIFY COLUMN {new}" if old == new else f"CHANGE COLUMN {old} {new}"
            yield f"{head} {other.text}{position}"
        elif old.lower() == new.lower() and old != new:
            yield f"CHANGE COLUMN {old} {new} {other.text}"
        elif old != new:
            yield f"RENAME COLUMN {old} TO {new}"

    def _options(self) -> Iterator[str]:
        if self.then.charset and self.now.charset != self.then.charset:
            yield f"DEFAULT CHARSET={self.then.charset}"
        old, new = self.now.options_but_charset, self.then.options_but_charset
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{name}={new[name] if name in new else _without(name)}"


def is_cut(name: str) -> bool:
    """Say whether MySQL would cut *name* within a character as it drops that column."""
    return not name.isascii() and len(name.encode()) > BYTES_KEPT


def _makes_index(table: TableDefinition, name: str) -> bool:
    """Say whether the key called as the foreign key *name* is the one that it makes when no other serves it.

    A key that somebody made by hand, with that very name and no need, looks the same.
    """
    columns = columns_in(table.foreign_keys[name])
    if table.keys.get(name) != f"KEY {quoted(name)} ({','.join(map(quoted, columns))})":
        return False
    others = (table.columns_of_key(other) for other in table.keys if other != name)
    return not any(other[: len(columns)] == columns for other in others)


def _named(line: str, name: str) -> str:
    """Return the key *line* with another name."""
    return re.sub(r"KEY `(?:[^`]|``)*`", lambda _: f"KEY {quoted(name)}", line, count=1)


def _without(option: str) -> str:
    if option not in WITHOUT:
        raise MigrationError(
            f"the journal cannot take the table option {option} away again",
            hint="change it in a migration of its own, with `atomic = False`",
        )
    return WITHOUT[option]

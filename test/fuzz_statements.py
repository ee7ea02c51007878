"""Random statements of a batch, of every kind that the journal undoes, made of the tables that stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz_alterations import Alterations
from fuzz_columns import NAMES

from api.db.journal.definition import Column, TableDefinition
from api.db.journal.link import name as quoted

ROWS = 10
PARENT, TABLE, CHILD, LONE = "p", "t", "child", "lone"
FIRST = (
    f"CREATE TABLE {PARENT} (id int NOT NULL PRIMARY KEY, code varchar(40) UNIQUE, n bigint, KEY n (n))",
    f"INSERT INTO {PARENT} VALUES (1, 'a', 1), (2, 'b', 2), (7, '7', 7), (42, 'it''s', 42)",
    f"""CREATE TABLE {LONE} (k varchar(20) NOT NULL, id int, at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
        ON UPDATE CURRENT_TIMESTAMP(3), ratio float, PRIMARY KEY (k))""",
    f"INSERT INTO {LONE} (k, id, ratio) VALUES ('a', 1, 0.1), ('B', NULL, 1e10), ('ü', 2, NULL), ('100 %', 7, 3)",
)
# Each kind with its share. Two words where another form of the same statement takes another way through the journal.
SHARES = {
    "alter": 50,
    "create index": 4,
    "drop index": 3,
    "rename table": 5,
    "drop table": 5,
    "create table": 4,
    "create like": 3,
    "create select": 3,
    "update": 8,
    "update join": 2,
    "delete": 5,
    "delete join": 2,
    "insert": 6,
    "insert select": 3,
    "insert or update": 3,
    "replace": 3,
    "transaction": 2,
}


@dataclass(frozen=True, slots=True)
class Random:
    """A random statement, and its *kind*, a key of SHARES."""

    kind: str
    sql: str


class Statements(Alterations):
    """Random tables to begin with, their rows, and statements; the same seed gives the same ones."""

    # To begin with ------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """Return the statement that makes the table that most is about."""
        names = self.random.sample(NAMES, self.random.randint(2, 6))
        items = [f"{quoted(name)} {self.column_text(name, ())}" for name in names]
        keys = ("AUTO_INCREMENT PRIMARY KEY", "AUTO_INCREMENT PRIMARY KEY", "PRIMARY KEY", "PRIMARY KEY", "", "UNIQUE")
        items.insert(self.random.randint(0, len(items)), f"id int NOT NULL {self.random.choice(keys)}")
        return f"CREATE TABLE {TABLE} ({', '.join(items)}) {self.option()}"

    def child(self) -> list[str]:
        """Return what makes a table that refers to that one, and its rows; refused where that has no such key."""
        actions = self.random.choice(("", "", " ON DELETE CASCADE", " ON UPDATE CASCADE"))
        key = self.random.choice(("", "n int AUTO_INCREMENT PRIMARY KEY, "))
        create = f"CREATE TABLE {CHILD} ({key}up int, FOREIGN KEY (up) REFERENCES {TABLE} (id){actions})"
        return [create, f"INSERT INTO {CHILD} (up) VALUES (1)", f"INSERT INTO {CHILD} (up) VALUES (2), (3)"]

    def rows(self, definition: TableDefinition) -> list[str]:
        """Return an INSERT for each of the first rows; a check or a key may refuse it."""
        return [self._insert(definition, "INSERT INTO", [number]) for number in range(1, ROWS + 1)]

    # A batch ------------------------------------------------------------------------------------------------------

    def statement(self, standing: dict[str, TableDefinition]) -> Random:
        """Return a random statement about the tables *standing*."""
        if not standing:
            return Random("create table", f"CREATE TABLE {LONE} (id int PRIMARY KEY, a varchar(9))")
        self.targets = tuple(
            (table.name, column.name, column.text.split("(")[0].split()[0])
            for table in standing.values()
            for key in table.keys
            for column in filter(None, [table.column(name) for name in table.columns_of_key(key)[:1]])
        )
        kind = self.random.choices([*SHARES], [*SHARES.values()])[0]
        names = [*standing] + [TABLE] * 3 * (TABLE in standing)
        definition = standing[self.random.choice(names)]
        maker: Callable[[TableDefinition, dict[str, TableDefinition]], str] = getattr(
            self, "_make_" + kind.replace(" ", "_")
        )
        return Random(kind, maker(definition, standing))

    def _make_alter(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        if self.chance(0.04):
            return f"ALTER TABLE {quoted(definition.name)} RENAME TO {quoted(self._free(standing))}"
        if self.chance(0.03):
            new = quoted(self.new_name(definition.column_names))
            return (
                f"ALTER TABLE {quoted(definition.name)} ADD COLUMN {new} int, RENAME TO {quoted(self._free(standing))}"
            )
        return self.alteration(definition)

    def _make_create_index(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        kind, name, rest = self.key(definition)
        return f"CREATE {kind.replace('KEY', 'INDEX')} {quoted(name)} ON {quoted(definition.name)} {rest}"

    def _make_drop_index(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        return f"DROP INDEX {quoted(self.any(definition.keys))} ON {quoted(definition.name)}"

    def _make_rename_table(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        new = self._free(standing)
        pairs = [(definition.name, new)]
        if self.chance(0.3):
            # Another takes its place, or the same one goes on.
            other = self.random.choice([*standing])
            pairs.append((other, definition.name) if other != definition.name else (new, self._free(standing)))
        return "RENAME TABLE " + ", ".join(f"{quoted(one)} TO {quoted(two)}" for one, two in pairs)

    def _make_drop_table(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        names = [definition.name]
        if self.chance(0.3):
            names = list(dict.fromkeys([*names, self.random.choice([*standing])]))
        words = self.random.choice(("", "IF EXISTS "))
        return f"DROP TABLE {words}{', '.join(map(quoted, names))}"

    def _make_create_table(self, _: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        new = self._free(standing)
        words = ""
        if self.chance(0.15):
            new, words = self.random.choice([*standing]), "IF NOT EXISTS "
        items = ["id int NOT NULL PRIMARY KEY", f"a {self.column_text('a', ())}"]
        if self.targets and self.chance(0.4):
            table, column, _kind = self.random.choice(self.targets)
            items += ["up int", f"FOREIGN KEY (up) REFERENCES {quoted(table)} ({quoted(column)})"]
        return f"CREATE TABLE {words}{quoted(new)} ({', '.join(items)}) {self.option()}"

    def _make_create_like(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        return f"CREATE TABLE {quoted(self._free(standing))} LIKE {quoted(definition.name)}"

    def _make_create_select(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        word = self.random.choice(("AS SELECT", "SELECT", "(KEY (id)) AS SELECT"))
        return f"CREATE TABLE {quoted(self._free(standing))} {word} * FROM {quoted(definition.name)}"

    def _make_transaction(self, _: TableDefinition, __: dict[str, TableDefinition]) -> str:
        return self.random.choice(("BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK"))

    def _free(self, standing: dict[str, TableDefinition]) -> str:
        free = [name for name in (TABLE, PARENT, LONE, "made", "Other", "we`ird", "ä" * 64) if name not in standing]
        self.number += 1
        return self.random.choice([*free, f"x{self.number}"])

    # Rows ---------------------------------------------------------------------------------------------------------

    def _make_insert(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        numbers = self.random.sample(range(1, 5 * ROWS), self.random.randint(1, 3))
        return self._insert(
            definition, self.random.choice(("INSERT INTO", "INSERT INTO", "INSERT IGNORE INTO")), numbers
        )

    def _make_replace(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        return self._insert(definition, "REPLACE INTO", self.random.sample(range(1, 2 * ROWS), 2))

    def _make_insert_or_update(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        insert = self._insert(definition, "INSERT INTO", self.random.sample(range(1, 2 * ROWS), 2))
        return f"{insert} ON DUPLICATE KEY UPDATE {self._assignment(definition)}"

    def _insert(self, definition: TableDefinition, verb: str, numbers: list[int]) -> str:
        columns = [column for column in definition.columns if not column.generated]
        if self.chance(0.2):
            columns = [column for column in columns if column.name == "id" or self.chance(0.8)] or columns
        if self.chance(0.2):
            columns = [column for column in columns if "AUTO_INCREMENT" not in column.text] or columns
        if any(column.text.lower().startswith(("point", "geometry")) for column in definition.columns):
            # IGNORE makes '' of a shape that is missing, which no statement can write again.
            verb = verb.replace(" IGNORE", "")
        rows = ", ".join(f"({', '.join(self._own(column, number) for column in columns)})" for number in numbers)
        return f"{verb} {quoted(definition.name)} ({', '.join(quoted(c.name) for c in columns)}) VALUES {rows}"

    def _own(self, column: Column, number: int) -> str:
        return str(number) if column.name == "id" else self.value(column)

    def _make_insert_select(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        other = self.random.choice([*standing.values()])
        columns = [column for column in definition.columns if not column.generated]
        values = [self._selected(column, other) for column in columns]
        verb = self.random.choice(("INSERT INTO", "INSERT INTO", "REPLACE INTO"))
        listed = ", ".join(quoted(column.name) for column in columns)
        # In whatever order else: a REPLACE that meets the same row twice keeps the last.
        order = ", ".join(map(quoted, other.column_names))
        query = f"SELECT {', '.join(values)} FROM {quoted(other.name)} ORDER BY {order}"
        return f"{verb} {quoted(definition.name)} ({listed}) {query}"

    def _selected(self, column: Column, other: TableDefinition) -> str:
        if column.name == "id" and other.column("id"):
            return f"id + {self.random.choice((0, 5, 100))}"
        same = other.column(column.name)
        return quoted(same.name) if same else self.value(column)

    def _assignment(self, definition: TableDefinition) -> str:
        column = self.random.choice(
            [column for column in definition.columns if not column.generated] or definition.columns
        )
        if column.name == "id" and self.chance(0.5):
            return f"id = id + {self.random.choice((1, 100))}"
        if self.chance(0.2):
            return f"{quoted(column.name)} = {quoted(self.column(definition).name)}"
        return f"{quoted(column.name)} = {self.value(column)}"

    def _condition(self, definition: TableDefinition) -> str:
        column = self.column(definition)
        name = quoted(column.name)
        ways = [f"{name} IS NULL", f"{name} IS NOT NULL", f"{name} = {self.value(column)}", "1"]
        if definition.column("id"):
            ways += ["id % 3 = 1", "id > 4", "id = 3", "id IN (2, 3, 5)", f"id IN (SELECT id FROM {PARENT})"]
        condition = f" WHERE {self.random.choice(ways)}" if self.chance(0.85) else ""
        if self.chance(0.15) and definition.primary_key:
            condition += f" ORDER BY {', '.join(map(quoted, definition.primary_key))} LIMIT 3"
        return condition

    def _make_update(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        assigned = ", ".join(self._assignment(definition) for _ in range(self.random.choice((1, 1, 2))))
        return f"UPDATE {quoted(definition.name)} SET {assigned}{self._condition(definition)}"

    def _make_delete(self, definition: TableDefinition, _: dict[str, TableDefinition]) -> str:
        return f"DELETE FROM {quoted(definition.name)}{self._condition(definition)}"

    def _make_update_join(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        other = self.random.choice([*standing])
        assignment = f"a.{self._assignment(definition)}".replace("= id", "= a.id")
        return f"UPDATE {quoted(definition.name)} AS a JOIN {quoted(other)} AS b ON a.id = b.id SET {assignment}"

    def _make_delete_join(self, definition: TableDefinition, standing: dict[str, TableDefinition]) -> str:
        other = self.random.choice([*standing])
        return f"DELETE a FROM {quoted(definition.name)} AS a JOIN {quoted(other)} AS b ON a.id = b.id"

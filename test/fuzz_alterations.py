"""Random ALTER TABLE statements, made of the definition that stands; the server may refuse them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fuzz_columns import COMMENTS, NAMES, Columns, is_number, string

from api.db.journal.definition import Column, TableDefinition
from api.db.journal.link import name as quoted

KEYS = ("KEY", "KEY", "KEY", "UNIQUE KEY", "FULLTEXT KEY", "SPATIAL KEY")
ACTIONS = ("", " ON DELETE CASCADE", " ON DELETE SET NULL ON UPDATE CASCADE", " ON DELETE RESTRICT")
OPTIONS = (
    *(f"COMMENT={string(comment)}" for comment in (*COMMENTS, "")),
    *("ROW_FORMAT=COMPACT", "ROW_FORMAT=DYNAMIC", "ROW_FORMAT=DEFAULT", "ROW_FORMAT=REDUNDANT"),
    *("STATS_PERSISTENT=1", "STATS_AUTO_RECALC=0", "STATS_SAMPLE_PAGES=20", "MAX_ROWS=1000", "AVG_ROW_LENGTH=50"),
    *("DEFAULT CHARSET=latin1", "DEFAULT CHARSET=utf8mb4", "DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"),
    *(
        "COLLATE=utf8mb4_unicode_ci",
        "AUTO_INCREMENT=1000",
        "KEY_BLOCK_SIZE=8",
        "ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4",
    ),
    *(
        "ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4",
        "ENGINE=InnoDB",
        "CHECKSUM=1",
        "PACK_KEYS=1",
        "DELAY_KEY_WRITE=1",
        "MIN_ROWS=2",
    ),
)
CONVERSIONS = ("latin1", "utf8mb4", "utf8mb4 COLLATE utf8mb4_bin", "ascii")


class Alterations(Columns):
    """Random alterations; *targets* are what a foreign key may refer to: tables, columns and what those hold."""

    targets: tuple[tuple[str, str, str], ...] = ()

    def alteration(self, definition: TableDefinition) -> str:
        """Return a random statement that alters *definition*."""
        if self.chance(0.06):
            return f"ALTER TABLE {quoted(definition.name)} {self._partitioning(definition)}"
        count = self.random.choice((1, 1, 1, 1, 2, 2, 3))
        clauses = [self._clause(definition) for _ in range(count)]
        # The key may go with the column, and MariaDB looks for it before that: the journal after.
        if any(clause.startswith("DROP COLUMN") for clause in clauses):
            clauses = [clause for clause in clauses if not clause.startswith("RENAME KEY")]
        return f"ALTER TABLE {quoted(definition.name)} {', '.join(clauses)}"

    def _clause(self, definition: TableDefinition) -> str:
        makers: list[tuple[int, Callable[[TableDefinition], str]]] = [
            *((10, self._add_column), (8, self._drop_column), (6, self._rename_column), (8, self._modify_column)),
            *((4, self._change_column), (3, self._set_default), (10, self._add_key), (5, self._drop_key)),
            *((2, self._rename_key), (2, self._hide_key), (3, self._primary_key), (5, self._add_foreign_key)),
            *((2, self._drop_foreign_key), (4, self._add_check), (2, self._drop_check), (1, self._enforce_check)),
            *((5, self._option), (2, self._move_column), (2, self._change_generated), (1, self._recase)),
        ]
        maker = self.random.choices([each for _, each in makers], [weight for weight, _ in makers])[0]
        return maker(definition)

    # Columns ------------------------------------------------------------------------------------------------------

    def _add_column(self, definition: TableDefinition) -> str:
        name = self.new_name(definition.column_names)
        text = self.column_text(name, definition.columns)
        return f"ADD COLUMN {quoted(name)} {text}{self._position(definition)}"

    def _position(self, definition: TableDefinition, but: str = "") -> str:
        if self.chance(0.6):
            return ""
        others = [name for name in definition.column_names if name != but]
        return self.random.choice([" FIRST", *(f" AFTER {quoted(name)}" for name in others)])

    def _drop_column(self, definition: TableDefinition) -> str:
        return f"DROP COLUMN {quoted(self.column(definition).name)}"

    def _rename_column(self, definition: TableDefinition) -> str:
        old, new = self.column(definition).name, self.new_name(definition.column_names)
        return f"RENAME COLUMN {quoted(old)} TO {quoted(new)}"

    def _recase(self, definition: TableDefinition) -> str:
        old = self.column(definition)
        return f"CHANGE COLUMN {quoted(old.name)} {quoted(old.name.swapcase())} {old.text}"

    def _modify_column(self, definition: TableDefinition) -> str:
        column = self.column(definition)
        text = self.column_text(column.name, ())
        return f"MODIFY COLUMN {quoted(column.name)} {text}{self._position(definition, column.name)}"

    def _change_column(self, definition: TableDefinition) -> str:
        column, new = self.column(definition), self.new_name(definition.column_names)
        text = _renamed(column, new) if self.chance(0.5) else self.column_text(new, ())
        place = self._position(definition, column.name)
        return f"CHANGE COLUMN {quoted(column.name)} {quoted(new)} {text}{place}"

    def _move_column(self, definition: TableDefinition) -> str:
        column = self.column(definition)
        return f"MODIFY COLUMN {quoted(column.name)} {column.text}{self._position(definition, column.name)}"

    def _change_generated(self, definition: TableDefinition) -> str:
        column = self.column(definition)
        others = tuple(other for other in definition.columns if other is not column) or definition.columns
        text = self.generated_text(others)
        if column.generated and self.chance(0.5):
            text = f"{text.split()[0]} GENERATED ALWAYS AS ({self.expression(others)[1]}) {column.generation}"
        return f"MODIFY COLUMN {quoted(column.name)} {text}"

    def _set_default(self, definition: TableDefinition) -> str:
        column = self.column(definition)
        if self.chance(0.3):
            return f"ALTER COLUMN {quoted(column.name)} DROP DEFAULT"
        return f"ALTER COLUMN {quoted(column.name)} SET DEFAULT {self.value(column)}"

    # Keys, foreign keys and checks --------------------------------------------------------------------------------

    def _add_key(self, definition: TableDefinition) -> str:
        kind, name, rest = self.key(definition)
        return f"ADD {kind} {quoted(name)} {rest}"

    def key(self, definition: TableDefinition) -> tuple[str, str, str]:
        """Return a new key: its kind, its name, and its columns with what follows them."""
        kind = self.random.choice(KEYS)
        columns = self.random.sample(definition.columns, self.random.randint(1, min(3, len(definition.columns))))
        if kind == "SPATIAL KEY":
            shapes = [each for each in definition.columns if each.text.startswith(("point", "geometry"))]
            columns = shapes[:1] or columns
        parts = ", ".join(self._key_part(column, plain=kind[0] in "FS") for column in columns)
        if kind == "KEY" and self.engine == "mysql" and self.chance(0.2):
            parts = f"({self.expression(definition.columns)[1]})"
        comment = f" COMMENT {string(self.random.choice(COMMENTS))}" if self.chance(0.15) else ""
        hidden = {"mariadb": " IGNORED", "mysql": " INVISIBLE"}[self.engine] if self.chance(0.1) else ""
        return kind, self._new_key(definition), f"({parts}){comment}{hidden}"

    def _key_part(self, column: Column, *, plain: bool) -> str:
        if plain:
            return quoted(column.name)
        kind = next((each for each in self.types if column.text.lower().startswith(each.text.lower())), None)
        prefix = kind.prefix if kind else ""
        if not prefix and column.text.startswith("varchar") and self.chance(0.3):
            prefix = "(5)"
        return f"{quoted(column.name)}{prefix}{self.random.choice(('', '', ' DESC'))}"

    def _new_key(self, definition: TableDefinition) -> str:
        self.number += 1
        taken = {name.lower() for name in definition.keys}
        free = [name for name in NAMES if name.lower() not in taken]
        return self.random.choice([*free[:4], f"k{self.number}"])

    def _drop_key(self, definition: TableDefinition) -> str:
        return f"DROP KEY {quoted(self.any(definition.keys))}"

    def _rename_key(self, definition: TableDefinition) -> str:
        return f"RENAME KEY {quoted(self.any(definition.keys))} TO {quoted(self._new_key(definition))}"

    def _hide_key(self, definition: TableDefinition) -> str:
        words = {"mariadb": ("IGNORED", "NOT IGNORED"), "mysql": ("INVISIBLE", "VISIBLE")}[self.engine]
        return f"ALTER INDEX {quoted(self.any(definition.keys))} {self.random.choice(words)}"

    def _primary_key(self, definition: TableDefinition) -> str:
        columns = self.random.sample(definition.columns, self.random.randint(1, min(2, len(definition.columns))))
        if self.chance(0.5):
            columns = [column for column in definition.columns if column.name == "id"] or columns
        add = f"ADD PRIMARY KEY ({', '.join(self._key_part(column, plain=False) for column in columns)})"
        if not definition.primary_key:
            return add
        return "DROP PRIMARY KEY" if self.chance(0.5) else f"DROP PRIMARY KEY, {add}"

    def _add_foreign_key(self, definition: TableDefinition) -> str:
        self.number += 1
        own = (definition.name, "id", "int")
        target, other, wanted = self.random.choice((*self.targets, *self.targets, own))
        fitting = [each for each in definition.columns if each.text.split("(")[0].split()[0] == wanted]
        if target == definition.name:
            # Of a column that refers to itself the server takes no row that is inserted later.
            fitting = [each for each in fitting if each.name != other]
            if not fitting:
                return self._add_check(definition)
        column = self.random.choice(fitting or definition.columns)
        constraint = f"CONSTRAINT {quoted(f'f{self.number}')} " if self.chance(0.7) else ""
        reference = f"REFERENCES {quoted(target)} ({quoted(other)}){self.random.choice(ACTIONS)}"
        return f"ADD {constraint}FOREIGN KEY ({quoted(column.name)}) {reference}"

    def _drop_foreign_key(self, definition: TableDefinition) -> str:
        return f"DROP FOREIGN KEY {quoted(self.any(definition.foreign_keys))}"

    def _add_check(self, definition: TableDefinition) -> str:
        self.number += 1
        column = self.column(definition)
        name = quoted(column.name)
        if is_number(column):
            conditions = (f"{name} > -(5)", f"{name} < 1e300 and {name} > - 12.5", f"{name} is not null or 1")
        else:
            conditions = (f"length({name}) < 5000", f"{name} <> 'it''s' or -(3) < 1", f"length({name}) > -(1)")
        constraint = f"CONSTRAINT {quoted(f'c{self.number} `x')} " if self.chance(0.7) else ""
        unenforced = " NOT ENFORCED" if self.engine == "mysql" and self.chance(0.2) else ""
        return f"ADD {constraint}CHECK ({self.random.choice(conditions)}){unenforced}"

    def _drop_check(self, definition: TableDefinition) -> str:
        return f"DROP CONSTRAINT {quoted(self.any(definition.checks))}"

    def _enforce_check(self, definition: TableDefinition) -> str:
        return f"ALTER CHECK {quoted(self.any(definition.checks))} {self.random.choice(('NOT ENFORCED', 'ENFORCED'))}"

    # The table as a whole -----------------------------------------------------------------------------------------

    def _option(self, definition: TableDefinition) -> str:
        if self.chance(0.25):
            return f"CONVERT TO CHARACTER SET {self.random.choice(CONVERSIONS)}"
        return self.option()

    def option(self) -> str:
        """Return a table option."""
        return self.random.choice(OPTIONS)

    def _partitioning(self, definition: TableDefinition) -> str:
        column = next((each for each in definition.columns if each.name == "id"), None) or self.column(definition)
        name = quoted(column.name)
        part, whole = "(PARTITION p VALUES LESS THAN", "VALUES LESS THAN MAXVALUE"
        ways = [
            f"PARTITION BY HASH ({name}) PARTITIONS {self.random.randint(1, 4)}",
            f"PARTITION BY KEY ({name}) PARTITIONS 2",
            f"PARTITION BY RANGE ({name}) {part} (5) COMMENT = 'it''s', PARTITION `p 1` {whole})",
            f"PARTITION BY RANGE COLUMNS ({name}) {part} (7), PARTITION q VALUES LESS THAN (99))",
            f"PARTITION BY LIST ({name} % 3) (PARTITION a VALUES IN (0, 1), PARTITION b VALUES IN (2))",
            f"PARTITION BY LINEAR HASH ({name} + 1) PARTITIONS 3",
            f"PARTITION BY RANGE ({name}) SUBPARTITION BY HASH ({name}) SUBPARTITIONS 2 (PARTITION p {whole})",
        ]
        if definition.partitions:
            ways += ["REMOVE PARTITIONING"] * 3 + ["COALESCE PARTITION 1", "ADD PARTITION PARTITIONS 2"] * 2
        return self.random.choice(ways)

    def any(self, names: Mapping[str, object]) -> str:
        """Return one of *names*; one that does not stand if there are none."""
        return self.random.choice([*names] or ["none"])


def _renamed(column: Column, new: str) -> str:
    return column.text.replace(quoted(column.name), quoted(new))

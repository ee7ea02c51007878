"""Questions put to a real server, one set of statements a capability.

A capability is there when every statement of its probe passes: one that begins with ``!`` has to be refused,
and a SELECT has to answer with something true. Statements under ``*`` are for engines without their own.
"""

from __future__ import annotations

from collections.abc import Callable

_NUMBERS = "CREATE TABLE probe (id INTEGER NOT NULL PRIMARY KEY, a INTEGER)"
_ROW = "INSERT INTO probe VALUES (1, 1)"
_MYSQL_FULL_TEXT = (
    "CREATE TABLE probe (a VARCHAR(50), FULLTEXT (a))",
    "INSERT INTO probe VALUES ('many cats')",
    "SELECT MATCH (a) AGAINST ('cats' IN BOOLEAN MODE) > 0 FROM probe",
)
_MYSQL_INSTANT = (
    _NUMBERS,
    _ROW,
    "ALTER TABLE probe ADD COLUMN b INTEGER NOT NULL DEFAULT 7, ALGORITHM=INSTANT",
)
_MYSQL_ONLINE = (_NUMBERS, "ALTER TABLE probe ADD INDEX probe_a (a), ALGORITHM=INPLACE, LOCK=NONE")
_MYSQL_UPSERT = (_NUMBERS, _ROW, "INSERT INTO probe VALUES (1, 2) ON DUPLICATE KEY UPDATE a = 2")
_MYSQL_COMMENT = (
    "CREATE TABLE probe (a INTEGER COMMENT 'the first')",
    "SELECT column_comment = 'the first' FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = 'probe'",
)
_CHILD = "CREATE TABLE child (p INTEGER, FOREIGN KEY (p) REFERENCES probe (id)"

PROBES: dict[str, dict[str, tuple[str, ...]]] = {
    "full_text_search": {
        "postgres": ("SELECT to_tsvector('english', 'many cats') @@ to_tsquery('english', 'cat')",),
        "mysql": _MYSQL_FULL_TEXT,
        "mariadb": _MYSQL_FULL_TEXT,
        "sqlite": (
            "CREATE VIRTUAL TABLE probe USING fts5(a)",
            "INSERT INTO probe VALUES ('many cats')",
            "SELECT COUNT(*) FROM probe WHERE probe MATCH 'cats'",
        ),
    },
    "json_functions": {
        "postgres": ("""SELECT CAST('{"a": 5}' AS jsonb) -> 'a' = '5'""",),
        "*": ("""SELECT JSON_EXTRACT('{"a": 5}', '$.a') = 5""",),
    },
    "json_validated": {
        "*": (
            "CREATE TABLE probe (a JSON)",
            "INSERT INTO probe VALUES ('{}')",
            "! INSERT INTO probe VALUES ('{no')",
        ),
    },
    "native_json": {
        "postgres": (
            "CREATE TABLE probe (a JSONB)",
            """INSERT INTO probe VALUES ('{"b":1,   "a":2}')""",
            """SELECT a::text <> '{"b":1,   "a":2}' FROM probe""",
        ),
        "*": (
            "CREATE TABLE probe (a JSON)",
            """INSERT INTO probe VALUES ('{"b":1,   "a":2}')""",
            """SELECT CAST(a AS CHAR) <> '{"b":1,   "a":2}' FROM probe""",
        ),
    },
    "auto_increment": {
        "postgres": (
            "CREATE TABLE probe (id SERIAL PRIMARY KEY, a INTEGER)",
            "INSERT INTO probe (a) VALUES (5)",
            "SELECT id FROM probe",
        ),
        "sqlite": (
            "CREATE TABLE probe (id INTEGER PRIMARY KEY, a INTEGER)",
            "INSERT INTO probe (a) VALUES (5)",
            "SELECT id FROM probe",
        ),
        "*": (
            "CREATE TABLE probe (id INTEGER AUTO_INCREMENT PRIMARY KEY, a INTEGER)",
            "INSERT INTO probe (a) VALUES (5)",
            "SELECT id FROM probe",
        ),
    },
    "sequence_support": {"*": ("CREATE SEQUENCE probe",)},
    "type_casting": {
        "postgres": ("SELECT CAST('12' AS INTEGER) = 12",),
        "*": ("SELECT CAST('12' AS SIGNED) + 0 = 12",),
    },
    "cast_on_type_change": {
        "*": (
            "CREATE TABLE probe (a VARCHAR(10))",
            "INSERT INTO probe VALUES ('7 apples')",
            "ALTER TABLE probe ALTER COLUMN a TYPE INTEGER USING CAST(SUBSTR(a, 1, 1) AS INTEGER)",
            "SELECT a = 7 FROM probe",
        ),
    },
    "alter_column_type": {
        "postgres": (_NUMBERS, "ALTER TABLE probe ALTER COLUMN a TYPE BIGINT"),
        "*": (_NUMBERS, "ALTER TABLE probe MODIFY a BIGINT"),
    },
    "transactional_ddl": {"*": ("BEGIN", _NUMBERS, "ROLLBACK", _NUMBERS)},
    "savepoints": {
        "*": (
            _NUMBERS,
            "BEGIN",
            _ROW,
            "SAVEPOINT s",
            "INSERT INTO probe VALUES (2, 2)",
            "ROLLBACK TO SAVEPOINT s",
            "COMMIT",
            "SELECT COUNT(*) = 1 FROM probe",
        ),
    },
    "check_constraints": {
        "*": ("CREATE TABLE probe (a INTEGER CHECK (a > 0))", "! INSERT INTO probe VALUES (-1)"),
    },
    "add_constraint": {
        "*": (
            _NUMBERS,
            "ALTER TABLE probe ADD CONSTRAINT positive CHECK (a > 0)",
            "! INSERT INTO probe VALUES (1, -1)",
        ),
    },
    "not_valid_constraints": {
        "*": (
            _NUMBERS,
            "INSERT INTO probe VALUES (1, -1)",
            "ALTER TABLE probe ADD CONSTRAINT positive CHECK (a > 0) NOT VALID",
            "! INSERT INTO probe VALUES (2, -1)",
        ),
    },
    "foreign_keys": {"*": (_NUMBERS, _CHILD + ")", "! INSERT INTO child VALUES (9)")},
    "deferrable_constraints": {
        "*": (
            _NUMBERS,
            _CHILD + " DEFERRABLE INITIALLY DEFERRED)",
            "BEGIN",
            "INSERT INTO child VALUES (1)",
            _ROW,
            "COMMIT",
        ),
    },
    "partial_indexes": {"*": (_NUMBERS, "CREATE INDEX probe_a ON probe (a) WHERE a > 0")},
    "expression_indexes": {"*": (_NUMBERS, "CREATE INDEX probe_a ON probe ((a + 1))")},
    "concurrent_index": {
        "mysql": _MYSQL_ONLINE,
        "mariadb": _MYSQL_ONLINE,
        "*": (_NUMBERS, "CREATE INDEX CONCURRENTLY probe_a ON probe (a)"),
    },
    "returning_clause": {"*": (_NUMBERS, _ROW + " RETURNING id")},
    "update_returning": {"*": (_NUMBERS, _ROW, "UPDATE probe SET a = 2 RETURNING a")},
    "upsert": {
        "mysql": (*_MYSQL_UPSERT, "SELECT a = 2 FROM probe"),
        "mariadb": (*_MYSQL_UPSERT, "SELECT a = 2 FROM probe"),
        "*": (
            _NUMBERS,
            _ROW,
            "INSERT INTO probe VALUES (1, 2) ON CONFLICT (id) DO UPDATE SET a = 2",
            "SELECT a = 2 FROM probe",
        ),
    },
    "window_functions": {"*": (_NUMBERS, _ROW, "SELECT ROW_NUMBER() OVER (ORDER BY a) FROM probe")},
    "common_table_expressions": {
        "*": (
            "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT COUNT(*) = 3 FROM n",
        ),
    },
    "generated_columns": {
        "*": (
            "CREATE TABLE probe (a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1) STORED)",
            "INSERT INTO probe (a) VALUES (1)",
            "SELECT b = 2 FROM probe",
        ),
    },
    "virtual_generated_columns": {
        "*": (
            "CREATE TABLE probe (a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1) VIRTUAL)",
            "INSERT INTO probe (a) VALUES (1)",
            "SELECT b = 2 FROM probe",
        ),
    },
    "rename_column": {"*": (_NUMBERS, _ROW, "ALTER TABLE probe RENAME COLUMN a TO b", "SELECT b FROM probe")},
    "drop_column": {"*": (_NUMBERS, "ALTER TABLE probe DROP COLUMN a", "! SELECT a FROM probe")},
    "add_column_if_not_exists": {"*": (_NUMBERS, "ALTER TABLE probe ADD COLUMN IF NOT EXISTS a INTEGER")},
    "instant_add_column": {
        "postgres": (
            _NUMBERS,
            _ROW,
            "CREATE TABLE seen AS SELECT pg_relation_filenode('probe') AS file",
            "ALTER TABLE probe ADD COLUMN b INTEGER NOT NULL DEFAULT 7",
            "SELECT b = 7 AND file = pg_relation_filenode('probe') FROM probe, seen",
        ),
        "mysql": _MYSQL_INSTANT,
        "mariadb": _MYSQL_INSTANT,
        "sqlite": (
            _NUMBERS,
            _ROW,
            "CREATE TABLE seen AS SELECT SUM(payload) AS bytes FROM dbstat WHERE name = 'probe'",
            "ALTER TABLE probe ADD COLUMN b TEXT NOT NULL DEFAULT 'eight of them'",
            "SELECT SUM(payload) = (SELECT bytes FROM seen) FROM dbstat WHERE name = 'probe'",
        ),
    },
    "text_default": {
        "*": (
            "CREATE TABLE probe (id INTEGER, a TEXT DEFAULT 'x')",
            "INSERT INTO probe (id) VALUES (1)",
            "SELECT a = 'x' FROM probe",
        ),
    },
    "text_expression_default": {
        "*": (
            "CREATE TABLE probe (id INTEGER, a TEXT DEFAULT ('x'))",
            "INSERT INTO probe (id) VALUES (1)",
            "SELECT a = 'x' FROM probe",
        ),
    },
    "comments": {
        "mysql": _MYSQL_COMMENT,
        "mariadb": _MYSQL_COMMENT,
        "*": (_NUMBERS, "COMMENT ON COLUMN probe.a IS 'the first'"),
    },
    "arrays": {"*": ("SELECT (ARRAY[5, 6])[2] = 6",)},
    "native_uuid": {
        "*": (
            "CREATE TABLE probe (a UUID)",
            "INSERT INTO probe VALUES ('0190a1b2-0000-7000-8000-000000000001')",
            "! INSERT INTO probe VALUES ('none')",
        ),
    },
    "native_boolean": {
        "*": (
            "CREATE TABLE probe (a BOOLEAN)",
            "INSERT INTO probe VALUES (TRUE)",
            "! INSERT INTO probe VALUES (2)",
        ),
    },
    "unsigned_integers": {
        "*": (
            "CREATE TABLE probe (a INTEGER UNSIGNED)",
            "INSERT INTO probe VALUES (4294967295)",
            "! INSERT INTO probe VALUES (-1)",
        ),
    },
    "skip_locked": {"*": (_NUMBERS, _ROW, "SELECT a FROM probe FOR UPDATE SKIP LOCKED")},
    "advisory_locks": {
        "postgres": ("SELECT pg_try_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"),
        "*": ("SELECT GET_LOCK('probe', 0)", "SELECT RELEASE_LOCK('probe')"),
    },
}
"""Capability -> engine (or ``*``) -> statements."""


def _columns(engine: str, size: int) -> list[str]:
    smallest = "TINYINT" if engine in ("mysql", "mariadb") else "SMALLINT"
    return [f"CREATE TABLE probe ({', '.join(f'c{number} {smallest}' for number in range(size))})"]


def _index_key(engine: str, size: int) -> list[str]:
    if engine in ("mysql", "mariadb"):  # MariaDB shortens a longer key to a prefix and only notes it
        return [
            f"CREATE TABLE probe (a VARBINARY({size}), INDEX (a))",
            "SELECT sub_part IS NULL FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND table_name = 'probe'",
        ]
    made = ["CREATE TABLE probe (a TEXT)", "CREATE INDEX probe_a ON probe (a)"]
    if engine == "sqlite":
        return [*made, f"INSERT INTO probe VALUES ('{'x' * size}')"]
    # PostgreSQL's row in an index: 8 bytes of header, 4 of the length, the text, which may not be compressed.
    made.insert(1, "ALTER TABLE probe ALTER COLUMN a SET STORAGE PLAIN")
    return [*made, f"INSERT INTO probe VALUES ('{'x' * (size - 12)}')"]


def _row(engine: str, size: int) -> list[str]:
    if engine == "sqlite":
        return [f"SELECT LENGTH(ZEROBLOB({size}))"]
    if engine == "postgres":  # 24 bytes of header, 4 of the length, the rest in a value that stays in its row
        return [
            "CREATE TABLE probe (a TEXT)",
            "ALTER TABLE probe ALTER COLUMN a SET STORAGE PLAIN",
            f"INSERT INTO probe VALUES ('{'x' * (size - 28)}')",
        ]
    return [f"CREATE TABLE probe (a VARBINARY(30000) NOT NULL, b VARBINARY({size - 30_004}) NOT NULL)"]


def _identifier(engine: str, size: int) -> list[str]:
    name = "n" * size
    made = f"CREATE TABLE {name} (a INTEGER)"
    if engine != "postgres":
        return [made]
    # PostgreSQL shortens a longer name and only notes it.
    return [made, f"SELECT COUNT(*) FROM pg_class WHERE CAST(relname AS TEXT) = CAST('{name}' AS TEXT)"]


def _fraction(engine: str, size: int) -> list[str]:
    if engine != "postgres":
        return [f"CREATE TABLE probe (a DATETIME({size}))"]
    # PostgreSQL lowers a higher precision to 6 and only warns.
    return [
        f"CREATE TABLE probe (a TIMESTAMP({size}))",
        f"SELECT atttypmod = {size} FROM pg_attribute WHERE attrelid = CAST('probe' AS regclass) AND attname = 'a'",
    ]


def _character(kind: str) -> Callable[[str, int], list[str]]:
    def probe(engine: str, size: int) -> list[str]:
        charset = " CHARACTER SET utf8mb4" if engine in ("mysql", "mariadb") else ""
        return [f"CREATE TABLE probe (a {kind}({size}){charset})"]

    return probe


LIMIT_PROBES: dict[str, Callable[[str, int], list[str]]] = {
    "max_char": _character("CHAR"),
    "max_varchar": _character("VARCHAR"),
    "max_decimal_digits": lambda engine, size: [f"CREATE TABLE probe (a DECIMAL({size}, 0))"],
    "max_decimal_scale": lambda engine, size: [f"CREATE TABLE probe (a DECIMAL({max(size, 60)}, {size}))"],
    "max_fraction_digits": _fraction,
    "max_identifier_length": _identifier,
    "max_index_bytes": _index_key,
    "max_row_bytes": _row,
    "max_columns": _columns,
}
"""Limit -> what writes, for an engine and a size, statements that pass up to the limit and fail beyond it."""

"""Facts about PostgreSQL, from its manual and measured on version 15."""

from __future__ import annotations

from api.db.dialects.categories import Category, Code, Meaning
from api.db.dialects.fact import Fact, Since

# --- capabilities: page -> https://www.postgresql.org/docs/15/PAGE.html ---

CAPABILITIES: dict[str, Fact] = {
    "full_text_search": Fact(True, "textsearch-intro"),
    "json_functions": Fact(True, "functions-json"),
    "json_validated": Fact(True, "datatype-json"),
    "native_json": Fact(True, "datatype-json"),
    "auto_increment": Fact(True, "datatype-numeric"),
    "sequence_support": Fact(True, "sql-createsequence"),
    "type_casting": Fact(True, "sql-expressions"),
    "cast_on_type_change": Fact(True, "sql-altertable"),
    "alter_column_type": Fact(True, "sql-altertable"),
    "add_constraint": Fact(True, "sql-altertable"),
    "not_valid_constraints": Fact(True, "sql-altertable"),
    "rename_column": Fact(True, "sql-altertable"),
    "drop_column": Fact(True, "sql-altertable"),
    "add_column_if_not_exists": Fact(True, "sql-altertable"),
    "instant_add_column": Fact(Since((11,)), "sql-altertable"),
    "transactional_ddl": Fact(True, "sql-begin"),
    "savepoints": Fact(True, "sql-savepoint"),
    "check_constraints": Fact(True, "ddl-constraints"),
    "foreign_keys": Fact(True, "ddl-constraints"),
    "deferrable_constraints": Fact(True, "sql-set-constraints"),
    "partial_indexes": Fact(True, "indexes-partial"),
    "expression_indexes": Fact(True, "indexes-expressional"),
    "concurrent_index": Fact(True, "sql-createindex"),
    "returning_clause": Fact(True, "dml-returning"),
    "update_returning": Fact(True, "dml-returning"),
    "upsert": Fact(True, "sql-insert"),
    "window_functions": Fact(True, "functions-window"),
    "common_table_expressions": Fact(True, "queries-with"),
    "generated_columns": Fact(Since((12,)), "ddl-generated-columns"),
    "virtual_generated_columns": Fact(Since((18,)), "ddl-generated-columns"),
    "text_default": Fact(True, "ddl-default"),
    "text_expression_default": Fact(True, "ddl-default"),
    "comments": Fact(True, "sql-comment"),
    "arrays": Fact(True, "arrays"),
    "native_uuid": Fact(True, "datatype-uuid"),
    "native_boolean": Fact(True, "datatype-boolean"),
    "unsigned_integers": Fact(False, "datatype-numeric"),
    "skip_locked": Fact(True, "sql-select"),
    "advisory_locks": Fact(True, "explicit-locking"),
    "max_char": Fact(10_485_760, "datatype-character"),
    "max_varchar": Fact(10_485_760, "datatype-character"),
    "max_decimal_digits": Fact(1_000, "datatype-numeric"),
    "max_decimal_scale": Fact(1_000, "datatype-numeric"),
    "max_fraction_digits": Fact(6, "datatype-datetime"),
    "max_identifier_length": Fact(63, "sql-syntax-lexical"),
    "max_index_bytes": Fact(2_704, "btree-intro"),
    "max_row_bytes": Fact(8_160, "storage-toast"),
    "max_columns": Fact(1_600, "limits"),
}
"""Index and row limits are in bytes, for the usual page of 8 kB; a text may be stored outside of its row."""

# --- column types: https://www.postgresql.org/docs/15/datatype.html ---

TYPE_NAMES: dict[str, str] = {
    "smallint": "smallint",
    "int2": "smallint",
    "smallserial": "smallint",
    "serial2": "smallint",
    "int": "integer",
    "int4": "integer",
    "integer": "integer",
    "serial": "integer",
    "serial4": "integer",
    "bigint": "bigint",
    "int8": "bigint",
    "bigserial": "bigint",
    "serial8": "bigint",
    "bool": "boolean",
    "boolean": "boolean",
    "real": "float",
    "float4": "float",
    "float": "double",
    "float8": "double",
    "double precision": "double",
    "numeric": "decimal",
    "decimal": "decimal",
    "dec": "decimal",
    "char": "char",
    "character": "char",
    "nchar": "char",
    "bpchar": "char",
    "varchar": "varchar",
    "character varying": "varchar",
    "text": "text",
    "bytea": "blob",
    "date": "date",
    "time": "time",
    "time without time zone": "time",
    "timetz": "timetz",
    "time with time zone": "timetz",
    "timestamp": "timestamp",
    "timestamp without time zone": "timestamp",
    "timestamptz": "timestamptz",
    "timestamp with time zone": "timestamptz",
    "json": "json",
    "jsonb": "jsonb",
    "uuid": "uuid",
    "interval": "interval",
    "hstore": "hstore",
    "tsvector": "tsvector",
}
"""What a type may be called -> its kind, in lower case; ``format_type`` and peewee's DDL use these."""

TYPE_DEFAULTS: dict[str, tuple[int | None, int | None]] = {
    "char": (1, None),
    "time": (6, None),
    "timetz": (6, None),
    "timestamp": (6, None),
    "timestamptz": (6, None),
}
"""Kind -> the length and scale of a type whose text says none."""

COLUMN_TYPES: dict[str, str] = {
    "boolean": "BOOLEAN",
    "smallint": "SMALLINT",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "float": "REAL",
    "double": "DOUBLE PRECISION",
    "decimal": "NUMERIC",
    "char": "CHAR",
    "varchar": "VARCHAR",
    "text": "TEXT",
    "blob": "BYTEA",
    "date": "DATE",
    "time": "TIME",
    "datetime": "TIMESTAMP",
    "instant": "TIMESTAMPTZ",
    "json": "JSONB",
    "uuid": "UUID",
}
"""What a migration writes for a kind that every engine keeps."""

# --- errors: https://www.postgresql.org/docs/15/errcodes-appendix.html ---

ERROR_CODES: dict[Category, tuple[str, ...]] = {
    Category.DUPLICATE_COLUMN: ("42701",),
    Category.DUPLICATE_TABLE: ("42P07",),
    Category.DUPLICATE_INDEX: ("42P07",),
    Category.DUPLICATE_CONSTRAINT: ("42710", "42P16"),
    Category.MISSING_COLUMN: ("42703",),
    Category.MISSING_TABLE: ("42P01",),
    Category.MISSING_INDEX: ("42704", "42P01"),
    Category.MISSING_CONSTRAINT: ("42704",),
    Category.INCOMPATIBLE_TYPE: ("42804", "42846", "22P02", "22001", "22003", "22007", "22008"),
    Category.NOT_NULL_VIOLATION: ("23502",),
    Category.UNIQUE_VIOLATION: ("23505", "23P01"),
    Category.FOREIGN_KEY_VIOLATION: ("23503",),
    Category.CHECK_VIOLATION: ("23514",),
    Category.DEPENDENT_OBJECT: ("2BP01", "0A000"),
    Category.LIMIT_EXCEEDED: ("54000", "54001", "54011", "54023"),
    Category.UNSUPPORTED: ("0A000",),
    Category.SYNTAX_ERROR: ("42601",),
    Category.INSIDE_TRANSACTION: ("25001",),
    Category.TRANSACTION_ENDED: ("25P01", "25P02", "3B001"),
    Category.LOCK_TIMEOUT: ("55P03",),
    Category.DEADLOCK: ("40P01", "40001"),
    Category.CANCELLED: ("57014",),
    Category.PERMISSION_DENIED: ("42501",),
    Category.READ_ONLY_SERVER: ("25006",),
    Category.DISK_FULL: ("53100",),
    Category.ACCESS_DENIED: ("28000", "28P01"),
    Category.MISSING_DATABASE: ("3D000", "3F000"),
    Category.LOST_CONNECTION: ("57P01", "57P02", "57P05", "25P03", "08000", "08003", "08006"),
    Category.CONNECTION_REFUSED: ("08001", "08004"),
    Category.SERVER_STARTING: ("57P03",),
    Category.TOO_MANY_CONNECTIONS: ("53300",),
}
"""Category -> SQLSTATEs. A state that stands in several categories is decided by ``SHARED_CODES``."""

SHARED_CODES: dict[Code, tuple[Meaning, ...]] = {
    # The text is the same for a table and an index; the server's own function that raised it is not.
    "42P07": (Meaning(r"^index_create$", Category.DUPLICATE_INDEX), Meaning("", Category.DUPLICATE_TABLE)),
    "42P01": (Meaning(r"^(drop|alter) index\b", Category.MISSING_INDEX), Meaning("", Category.MISSING_TABLE)),
    "42704": (
        Meaning(r'^index "', Category.MISSING_INDEX),
        Meaning(r'^constraint "', Category.MISSING_CONSTRAINT),
        Meaning("", Category.UNKNOWN),
    ),
    "42710": (Meaning(r'^constraint "', Category.DUPLICATE_CONSTRAINT), Meaning("", Category.UNKNOWN)),
    "0A000": (
        Meaning(r"^cannot alter type of a column used by", Category.DEPENDENT_OBJECT),
        Meaning("", Category.UNSUPPORTED),
    ),
    "42P16": (Meaning(r"^multiple primary keys", Category.DUPLICATE_CONSTRAINT), Meaning("", Category.UNKNOWN)),
}
"""A state with several meanings -> the first whose words occur; the empty words at the end match the rest."""

ERROR_MESSAGES: dict[Category, tuple[str, ...]] = {
    Category.ACCESS_DENIED: (
        r"password authentication failed",
        r'role "[^"]*" does not exist',
        r"no password supplied",
        r"no pg_hba\.conf entry",
        r"role \"[^\"]*\" is not permitted to log in",
    ),
    Category.PERMISSION_DENIED: (r"permission denied for database",),
    Category.MISSING_DATABASE: (r'database "[^"]*" does not exist',),
    Category.TOO_MANY_CONNECTIONS: (
        r"sorry, too many clients already",
        r"remaining connection slots are reserved",
        r"too many connections for",
    ),
    Category.SERVER_STARTING: (
        r"the database system is (starting up|shutting down|in recovery mode|not (yet )?accepting connections)",
    ),
    Category.LOST_CONNECTION: (
        r"server closed the connection unexpectedly",
        r"(connection|cursor) already closed",
        r"could not (receive data from|send data to) server",
        r"SSL (connection has been closed|SYSCALL error)",
        r"terminating connection",
        r"no connection to the server",
    ),
    Category.CONNECTION_REFUSED: (
        r"connection refused",
        r"could not translate host name",
        r"timeout expired",
        r"no route to host",
        r"network is unreachable",
        r'on socket "[^"]*" failed',
    ),
    Category.SYNTAX_ERROR: (r"can't execute an empty query",),
}
"""Category -> words, in this order: without a connection libpq gives no SQLSTATE (psycopg2 2.9, libpq 17).

A host name with two addresses yields two messages in one: what a server said goes before "connection refused".
"""

"""Facts about SQLite, from its manual and measured on version 3.40."""

from __future__ import annotations

import sqlite3

from api.db.dialects.categories import Category, Code, Meaning
from api.db.dialects.fact import Fact, Since

# --- capabilities: page -> https://www.sqlite.org/PAGE.html ---

CAPABILITIES: dict[str, Fact] = {
    "full_text_search": Fact(True, "fts5"),
    "json_functions": Fact(Since((3, 38)), "json1"),
    "json_validated": Fact(False, "json1"),
    "native_json": Fact(False, "datatype3"),
    "auto_increment": Fact(True, "autoinc"),
    "sequence_support": Fact(False, "lang"),
    "type_casting": Fact(True, "lang_expr"),
    "cast_on_type_change": Fact(False, "lang_altertable"),
    "alter_column_type": Fact(False, "lang_altertable"),
    "add_constraint": Fact(False, "lang_altertable"),
    "not_valid_constraints": Fact(False, "lang_altertable"),
    "rename_column": Fact(Since((3, 25)), "lang_altertable"),
    "drop_column": Fact(Since((3, 35)), "lang_altertable"),
    "add_column_if_not_exists": Fact(False, "lang_altertable"),
    "instant_add_column": Fact(True, "lang_altertable"),
    "transactional_ddl": Fact(True, "lang_transaction"),
    "savepoints": Fact(True, "lang_savepoint"),
    "check_constraints": Fact(True, "lang_createtable"),
    "foreign_keys": Fact(True, "foreignkeys"),
    "deferrable_constraints": Fact(True, "foreignkeys"),
    "partial_indexes": Fact(True, "partialindex"),
    "expression_indexes": Fact(True, "expridx"),
    "concurrent_index": Fact(False, "lang_createindex"),
    "returning_clause": Fact(Since((3, 35)), "lang_returning"),
    "update_returning": Fact(Since((3, 35)), "lang_returning"),
    "upsert": Fact(Since((3, 24)), "lang_upsert"),
    "window_functions": Fact(Since((3, 25)), "windowfunctions"),
    "common_table_expressions": Fact(Since((3, 8, 3)), "lang_with"),
    "generated_columns": Fact(Since((3, 31)), "gencol"),
    "virtual_generated_columns": Fact(Since((3, 31)), "gencol"),
    "text_default": Fact(True, "lang_createtable"),
    "text_expression_default": Fact(True, "lang_createtable"),
    "comments": Fact(False, "lang"),
    "arrays": Fact(False, "datatype3"),
    "native_uuid": Fact(False, "datatype3"),
    "native_boolean": Fact(False, "datatype3"),
    "unsigned_integers": Fact(False, "datatype3"),
    "skip_locked": Fact(False, "lang_select"),
    "advisory_locks": Fact(False, "lang"),
    "max_char": Fact(None, "datatype3"),
    "max_varchar": Fact(None, "datatype3"),
    "max_decimal_digits": Fact(None, "datatype3"),
    "max_decimal_scale": Fact(None, "datatype3"),
    "max_fraction_digits": Fact(None, "datatype3"),
    "max_identifier_length": Fact(None, "limits"),
    "max_index_bytes": Fact(None, "limits"),
    "max_row_bytes": Fact(1_000_000_000, "limits"),
    "max_columns": Fact(2_000, "limits"),
}
"""None: a declared length binds nothing, so it has no limit. The row's is that of one value."""

# --- column types: https://www.sqlite.org/datatype3.html (any name is allowed; it decides the affinity) ---

TYPE_NAMES: dict[str, str] = {
    "bool": "boolean",
    "boolean": "boolean",
    "tinyint": "tinyint",
    "smallint": "smallint",
    "int2": "smallint",
    "mediumint": "mediumint",
    "int": "integer",
    "integer": "integer",
    "bigint": "bigint",
    "int8": "bigint",
    "float": "float",
    "real": "double",
    "double": "double",
    "double precision": "double",
    "numeric": "decimal",
    "decimal": "decimal",
    "char": "char",
    "character": "char",
    "varchar": "varchar",
    "varying character": "varchar",
    "character varying": "varchar",
    "nvarchar": "varchar",
    "text": "text",
    "clob": "text",
    "blob": "blob",
    "date": "date",
    "time": "time",
    "datetime": "datetime",
    "timestamp": "datetime",
    "timestamptz": "timestamptz",
    "json": "json",
    "jsonb": "jsonb",
    "uuid": "uuid",
}
"""What a declaration may say -> its kind, in lower case."""

TYPE_DEFAULTS: dict[str, tuple[int | None, int | None]] = {}
"""Empty: SQLite adds no length to a declaration."""

COLUMN_TYPES: dict[str, str] = {
    "boolean": "BOOLEAN",
    "bigint": "INTEGER",
    "double": "REAL",
    "decimal": "DECIMAL",
    "char": "CHAR",
    "varchar": "VARCHAR",
    "text": "TEXT",
    "blob": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "datetime": "DATETIME",
    "instant": "TIMESTAMPTZ",
    "json": "TEXT",
    "uuid": "TEXT",
}
"""What a migration writes for a kind that every engine keeps; columns named JSON or UUID would keep numbers."""

# --- errors: https://www.sqlite.org/rescode.html (numbers, as ``sqlite_errorcode`` has them) ---

_CONSTRAINT_DATATYPE = 3091  # a STRICT table's; SQLite 3.37 has it, Python 3.11 has no name for it

ERROR_CODES: dict[Category, tuple[int, ...]] = {
    Category.DUPLICATE_COLUMN: (sqlite3.SQLITE_ERROR,),
    Category.DUPLICATE_TABLE: (sqlite3.SQLITE_ERROR,),
    Category.DUPLICATE_INDEX: (sqlite3.SQLITE_ERROR,),
    Category.DUPLICATE_CONSTRAINT: (sqlite3.SQLITE_ERROR,),
    Category.MISSING_COLUMN: (sqlite3.SQLITE_ERROR,),
    Category.MISSING_TABLE: (sqlite3.SQLITE_ERROR,),
    Category.MISSING_INDEX: (sqlite3.SQLITE_ERROR,),
    Category.INCOMPATIBLE_TYPE: (_CONSTRAINT_DATATYPE, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_ERROR),
    Category.NOT_NULL_VIOLATION: (sqlite3.SQLITE_CONSTRAINT_NOTNULL, sqlite3.SQLITE_ERROR),
    Category.UNIQUE_VIOLATION: (
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
    ),
    Category.FOREIGN_KEY_VIOLATION: (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,),
    Category.CHECK_VIOLATION: (sqlite3.SQLITE_CONSTRAINT_CHECK,),
    Category.DEPENDENT_OBJECT: (sqlite3.SQLITE_ERROR,),
    Category.LIMIT_EXCEEDED: (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR),
    Category.UNSUPPORTED: (sqlite3.SQLITE_ERROR,),
    Category.SYNTAX_ERROR: (sqlite3.SQLITE_ERROR,),
    Category.INSIDE_TRANSACTION: (sqlite3.SQLITE_ERROR,),
    Category.TRANSACTION_ENDED: (sqlite3.SQLITE_ERROR,),
    Category.LOCK_TIMEOUT: (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    Category.DEADLOCK: (sqlite3.SQLITE_BUSY_SNAPSHOT,),
    Category.CANCELLED: (sqlite3.SQLITE_INTERRUPT,),
    Category.PERMISSION_DENIED: (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PERM),
    Category.READ_ONLY_SERVER: (sqlite3.SQLITE_READONLY,),
    Category.DISK_FULL: (sqlite3.SQLITE_FULL,),
    Category.MISSING_DATABASE: (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB),
}
"""Category -> extended result codes; where only the primary code is listed, all of its extensions are meant."""

SHARED_CODES: dict[Code, tuple[Meaning, ...]] = {
    sqlite3.SQLITE_ERROR: (
        Meaning(r"^(error in .* after rename: )?duplicate column name: ", Category.DUPLICATE_COLUMN),
        Meaning(r"^error in .* after (drop column|rename)", Category.DEPENDENT_OBJECT),
        Meaning(r"^cannot drop .*column|^index associated with UNIQUE", Category.DEPENDENT_OBJECT),
        Meaning(r"^there is already an index named|^index .* already exists", Category.DUPLICATE_INDEX),
        Meaning(r"^table .* already exists|^there is already (a|another) table", Category.DUPLICATE_TABLE),
        Meaning(r"^table .* has more than one primary key", Category.DUPLICATE_CONSTRAINT),
        Meaning(r"^no such column: |^table .* has no column named", Category.MISSING_COLUMN),
        Meaning(r"^no such table: ", Category.MISSING_TABLE),
        Meaning(r"^no such index: ", Category.MISSING_INDEX),
        Meaning(r"^cannot add a NOT NULL column", Category.NOT_NULL_VIOLATION),
        Meaning(r"^foreign key mismatch", Category.INCOMPATIBLE_TYPE),
        Meaning(r"^too many ", Category.LIMIT_EXCEEDED),
        Meaning(r"^cannot add a|may not be altered$", Category.UNSUPPORTED),
        Meaning(r": syntax error$|^incomplete input$|^unrecognized token: ", Category.SYNTAX_ERROR),
        Meaning(r"^no such savepoint: |no transaction is active$", Category.TRANSACTION_ENDED),
        Meaning(r"(within|inside) a transaction", Category.INSIDE_TRANSACTION),
        Meaning("", Category.UNKNOWN),
    ),
}
"""SQLITE_ERROR says only that the statement is wrong -> the first meaning whose words occur.

The order matters: the view that stops a DROP COLUMN is reported as a missing column inside that view.
"""

ERROR_MESSAGES: dict[Category, tuple[str, ...]] = {
    Category.LOST_CONNECTION: (r"cannot operate on a closed (database|cursor)",),
}
"""Category -> words, where Python's own module complains before SQLite is asked."""

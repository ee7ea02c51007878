"""Facts about MySQL and MariaDB, told apart where they differ; measured on MySQL 9.7 and MariaDB 10.11."""

from __future__ import annotations

from api.db.dialects.categories import Category, Code, Meaning
from api.db.dialects.fact import Fact, Since

# --- capabilities: page -> https://dev.mysql.com/doc/refman/8.4/en/PAGE.html ---

CAPABILITIES: dict[str, Fact] = {
    "full_text_search": Fact(True, "fulltext-search"),
    "json_functions": Fact(True, "json-functions"),
    "json_validated": Fact(True, "json"),
    "native_json": Fact(True, "json"),
    "auto_increment": Fact(True, "example-auto-increment"),
    "sequence_support": Fact(False, "sql-data-definition-statements"),
    "type_casting": Fact(True, "cast-functions"),
    "cast_on_type_change": Fact(False, "alter-table"),
    "alter_column_type": Fact(True, "alter-table"),
    "add_constraint": Fact(True, "alter-table"),
    "not_valid_constraints": Fact(False, "alter-table"),
    "rename_column": Fact(Since((8, 0, 3)), "alter-table"),
    "drop_column": Fact(True, "alter-table"),
    "add_column_if_not_exists": Fact(False, "alter-table"),
    "instant_add_column": Fact(Since((8, 0, 12)), "innodb-online-ddl-operations"),
    "transactional_ddl": Fact(False, "implicit-commit"),
    "savepoints": Fact(True, "savepoint"),
    "check_constraints": Fact(Since((8, 0, 16)), "create-table-check-constraints"),
    "foreign_keys": Fact(True, "create-table-foreign-keys"),
    "deferrable_constraints": Fact(False, "create-table-foreign-keys"),
    "partial_indexes": Fact(False, "create-index"),
    "expression_indexes": Fact(Since((8, 0, 13)), "create-index"),
    "concurrent_index": Fact(True, "innodb-online-ddl-operations"),
    "returning_clause": Fact(False, "insert"),
    "update_returning": Fact(False, "update"),
    "upsert": Fact(True, "insert-on-duplicate"),
    "window_functions": Fact(Since((8, 0, 2)), "window-functions"),
    "common_table_expressions": Fact(Since((8, 0, 1)), "with"),
    "generated_columns": Fact(True, "create-table-generated-columns"),
    "virtual_generated_columns": Fact(True, "create-table-generated-columns"),
    "text_default": Fact(False, "data-type-defaults"),
    "text_expression_default": Fact(Since((8, 0, 13)), "data-type-defaults"),
    "comments": Fact(True, "create-table"),
    "arrays": Fact(False, "data-types"),
    "native_uuid": Fact(False, "data-types"),
    "native_boolean": Fact(False, "numeric-type-syntax"),
    "unsigned_integers": Fact(True, "numeric-type-syntax"),
    "skip_locked": Fact(Since((8, 0, 1)), "innodb-locking-reads"),
    "advisory_locks": Fact(True, "locking-functions"),
    "max_char": Fact(255, "char"),
    "max_varchar": Fact(16_383, "char"),
    "max_decimal_digits": Fact(65, "fixed-point-types"),
    "max_decimal_scale": Fact(30, "fixed-point-types"),
    "max_fraction_digits": Fact(6, "fractional-seconds"),
    "max_identifier_length": Fact(64, "identifier-length"),
    "max_index_bytes": Fact(3_072, "innodb-limits"),
    "max_row_bytes": Fact(65_535, "column-count-limit"),
    "max_columns": Fact(1_017, "innodb-limits"),
}
"""Lengths are characters of utf8mb4, for InnoDB's usual page of 16 kB; TEXT and BLOB lie outside of the row."""

# --- capabilities: page -> https://mariadb.com/kb/en/PAGE/ ---

MARIADB_CAPABILITIES: dict[str, Fact] = {
    "full_text_search": Fact(True, "full-text-indexes"),
    "json_functions": Fact(Since((10, 2, 3)), "json-functions"),
    "json_validated": Fact(Since((10, 4, 3)), "json-data-type"),
    "native_json": Fact(False, "json-data-type"),
    "auto_increment": Fact(True, "auto_increment"),
    "sequence_support": Fact(Since((10, 3)), "create-sequence"),
    "type_casting": Fact(True, "cast"),
    "cast_on_type_change": Fact(False, "alter-table"),
    "alter_column_type": Fact(True, "alter-table"),
    "add_constraint": Fact(True, "alter-table"),
    "not_valid_constraints": Fact(False, "alter-table"),
    "rename_column": Fact(Since((10, 5, 2)), "alter-table"),
    "drop_column": Fact(True, "alter-table"),
    "add_column_if_not_exists": Fact(True, "alter-table"),
    "instant_add_column": Fact(Since((10, 3, 2)), "instant-add-column-for-innodb"),
    "transactional_ddl": Fact(False, "sql-statements-that-cause-an-implicit-commit"),
    "savepoints": Fact(True, "savepoint"),
    "check_constraints": Fact(Since((10, 2, 1)), "constraint"),
    "foreign_keys": Fact(True, "foreign-keys"),
    "deferrable_constraints": Fact(False, "foreign-keys"),
    "partial_indexes": Fact(False, "create-index"),
    "expression_indexes": Fact(False, "create-index"),
    "concurrent_index": Fact(True, "innodb-online-ddl-overview"),
    "returning_clause": Fact(Since((10, 5)), "insertreturning"),
    "update_returning": Fact(False, "update"),
    "upsert": Fact(True, "insert-on-duplicate-key-update"),
    "window_functions": Fact(Since((10, 2)), "window-functions-overview"),
    "common_table_expressions": Fact(Since((10, 2, 2)), "recursive-common-table-expressions-overview"),
    "generated_columns": Fact(Since((10, 2, 1)), "generated-columns"),
    "virtual_generated_columns": Fact(True, "generated-columns"),
    "text_default": Fact(Since((10, 2, 1)), "text"),
    "text_expression_default": Fact(Since((10, 2, 1)), "text"),
    "comments": Fact(True, "create-table"),
    "arrays": Fact(False, "data-types"),
    "native_uuid": Fact(Since((10, 7)), "uuid-data-type"),
    "native_boolean": Fact(False, "boolean"),
    "unsigned_integers": Fact(True, "numeric-data-type-overview"),
    "skip_locked": Fact(Since((10, 6)), "select"),
    "advisory_locks": Fact(True, "get_lock"),
    "max_char": Fact(255, "char"),
    "max_varchar": Fact(16_383, "varchar"),
    "max_decimal_digits": Fact(65, "decimal"),
    "max_decimal_scale": Fact(38, "decimal"),
    "max_fraction_digits": Fact(6, "microseconds-in-mariadb"),
    "max_identifier_length": Fact(64, "identifier-names"),
    "max_index_bytes": Fact(3_072, "innodb-limitations"),
    "max_row_bytes": Fact(65_535, "innodb-limitations"),
    "max_columns": Fact(1_017, "innodb-limitations"),
}
"""As for MySQL: characters of utf8mb4, InnoDB, pages of 16 kB."""

# --- column types: https://dev.mysql.com/doc/refman/8.4/en/data-types.html, MariaDB's "Data Types" ---

TYPE_NAMES: dict[str, str] = {
    "bool": "boolean",
    "boolean": "boolean",
    "tinyint": "tinyint",
    "int1": "tinyint",
    "smallint": "smallint",
    "int2": "smallint",
    "mediumint": "mediumint",
    "middleint": "mediumint",
    "int3": "mediumint",
    "int": "integer",
    "int4": "integer",
    "integer": "integer",
    "bigint": "bigint",
    "int8": "bigint",
    "serial": "bigint",
    "float": "float",
    "float4": "float",
    "real": "double",
    "float8": "double",
    "double": "double",
    "double precision": "double",
    "numeric": "decimal",
    "decimal": "decimal",
    "dec": "decimal",
    "fixed": "decimal",
    "char": "char",
    "character": "char",
    "nchar": "char",
    "national char": "char",
    "varchar": "varchar",
    "character varying": "varchar",
    "nvarchar": "varchar",
    "national varchar": "varchar",
    "tinytext": "tinytext",
    "text": "text",
    "mediumtext": "mediumtext",
    "long varchar": "mediumtext",
    "longtext": "longtext",
    "binary": "binary",
    "varbinary": "varbinary",
    "tinyblob": "tinyblob",
    "blob": "blob",
    "mediumblob": "mediumblob",
    "long varbinary": "mediumblob",
    "longblob": "longblob",
    "date": "date",
    "time": "time",
    "year": "year",
    "datetime": "datetime",
    "timestamp": "timestamp",
    "json": "json",
}
"""What a type may be called -> its kind, lower case. REAL is DOUBLE unless ``sql_mode`` says REAL_AS_FLOAT."""

MARIADB_TYPE_NAMES: dict[str, str] = TYPE_NAMES | {"uuid": "uuid", "inet4": "inet4", "inet6": "inet6"}
"""What MariaDB knows beyond: UUID since 10.7, INET4 since 10.10, INET6 since 10.5."""

TYPE_DEFAULTS: dict[str, tuple[int | None, int | None]] = {
    "decimal": (10, 0),
    "char": (1, None),
    "binary": (1, None),
    "time": (0, None),
    "datetime": (0, None),
    "timestamp": (0, None),
}
"""Kind -> the length and scale of a type whose text says none; a DATETIME keeps no fractions of a second."""

COLUMN_TYPES: dict[str, str] = {
    "boolean": "BOOL",
    "tinyint": "TINYINT",
    "smallint": "SMALLINT",
    "mediumint": "MEDIUMINT",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE PRECISION",
    "decimal": "NUMERIC",
    "char": "CHAR",
    "varchar": "VARCHAR",
    "tinytext": "TINYTEXT",
    "text": "TEXT",
    "mediumtext": "MEDIUMTEXT",
    "longtext": "LONGTEXT",
    "binary": "BINARY",
    "varbinary": "VARBINARY",
    "tinyblob": "TINYBLOB",
    "blob": "BLOB",
    "mediumblob": "MEDIUMBLOB",
    "longblob": "LONGBLOB",
    "date": "DATE",
    "time": "TIME",
    "datetime": "DATETIME",
    "instant": "TIMESTAMP",
    "json": "JSON",
    "uuid": "VARCHAR(40)",
}
"""What a migration writes for a kind that every engine keeps; UUID as peewee has it, on MariaDB too."""

# --- errors: https://dev.mysql.com/doc/mysql-errors/9.x/en/ and MariaDB's "Error Codes" ---
# Up to about 1850 a number means the same on both; above, it may mean another thing.

_COMMON_CODES: dict[Category, tuple[int, ...]] = {
    Category.DUPLICATE_COLUMN: (1060,),
    Category.DUPLICATE_TABLE: (1050,),
    Category.DUPLICATE_INDEX: (1061,),
    Category.DUPLICATE_CONSTRAINT: (1826, 1068),
    Category.MISSING_COLUMN: (1054, 1072, 1091),
    Category.MISSING_TABLE: (1146, 1051, 1824),
    Category.MISSING_INDEX: (1176, 1091),
    Category.MISSING_CONSTRAINT: (1091,),
    Category.INCOMPATIBLE_TYPE: (1265, 1366, 1292, 1264, 1406, 1067),
    Category.NOT_NULL_VIOLATION: (1048, 1138, 1364, 1265),
    Category.UNIQUE_VIOLATION: (1062, 1586, 1022),
    Category.FOREIGN_KEY_VIOLATION: (1451, 1452, 1216, 1217),
    Category.DEPENDENT_OBJECT: (1553, 1828, 1829, 1832, 1833, 1025),
    Category.LIMIT_EXCEEDED: (1059, 1069, 1070, 1071, 1074, 1117, 1118),
    Category.UNSUPPORTED: (1235, 1845, 1846, 1286),
    Category.SYNTAX_ERROR: (1064, 1065, 1149),
    Category.TRANSACTION_ENDED: (1305,),
    Category.LOCK_TIMEOUT: (1205,),
    Category.DEADLOCK: (1213, 1614),
    Category.CANCELLED: (1317,),
    Category.PERMISSION_DENIED: (1044, 1142, 1143, 1227, 1370, 1290),
    Category.READ_ONLY_SERVER: (1290, 1792, 1836),
    Category.DISK_FULL: (1114,),
    Category.ACCESS_DENIED: (1045, 1698, 1130),
    Category.MISSING_DATABASE: (1049, 1008),
    Category.LOST_CONNECTION: (0, 1053, 2006, 2013),
    Category.CONNECTION_REFUSED: (2002, 2003, 2005),
    Category.TOO_MANY_CONNECTIONS: (1040, 1203, 1226),
}

_MYSQL_CODES: dict[Category, tuple[int, ...]] = {
    Category.DUPLICATE_CONSTRAINT: (3822,),
    Category.MISSING_COLUMN: (3734,),
    Category.MISSING_CONSTRAINT: (3821, 3940),
    Category.INCOMPATIBLE_TYPE: (3780,),
    Category.CHECK_VIOLATION: (3819,),
    Category.DEPENDENT_OBJECT: (3108, 3730, 3959),
    Category.LOCK_TIMEOUT: (3572,),
    Category.CANCELLED: (3024,),
    Category.ACCESS_DENIED: (3118,),
    Category.LOST_CONNECTION: (4031,),
}

_MARIADB_CODES: dict[Category, tuple[int, ...]] = {
    Category.DUPLICATE_CONSTRAINT: (1005,),
    Category.INCOMPATIBLE_TYPE: (1005,),
    Category.CHECK_VIOLATION: (4025,),
    Category.DEPENDENT_OBJECT: (1054,),
    Category.DEADLOCK: (1020,),
    Category.CANCELLED: (1969,),
    Category.DISK_FULL: (1021,),
    Category.ACCESS_DENIED: (4151,),
    Category.LOST_CONNECTION: (1927,),
}


def _merged(own: dict[Category, tuple[int, ...]]) -> dict[Category, tuple[int, ...]]:
    both = {category: _COMMON_CODES.get(category, ()) + own.get(category, ()) for category in Category}
    return {category: codes for category, codes in both.items() if codes}


ERROR_CODES = _merged(_MYSQL_CODES)
"""Category -> MySQL's error numbers; ``SHARED_CODES`` decides for a number that stands in several."""

MARIADB_ERROR_CODES = _merged(_MARIADB_CODES)
"""The same for MariaDB."""

SHARED_CODES: dict[Code, tuple[Meaning, ...]] = {
    # MariaDB names what it cannot drop; MySQL 9.7 says "column/key", so that only the statement tells.
    1091: (
        Meaning(r"\bdrop (constraint|foreign key|check|primary)\b|'PRIMARY'", Category.MISSING_CONSTRAINT),
        Meaning(r"\bdrop (index|key)\b", Category.MISSING_INDEX),
        Meaning("", Category.MISSING_COLUMN),
    ),
    # MariaDB 10.11, and MySQL with ALGORITHM=COPY, call a NULL truncated where the column becomes NOT NULL.
    1265: (
        Meaning(r"\b(modify|change)\b[^,]*\bnot null\b", Category.NOT_NULL_VIOLATION),
        Meaning("", Category.INCOMPATIBLE_TYPE),
    ),
    1290: (Meaning(r"read.only", Category.READ_ONLY_SERVER), Meaning("", Category.PERMISSION_DENIED)),
    1305: (Meaning(r"^savepoint ", Category.TRANSACTION_ENDED), Meaning("", Category.UNKNOWN)),
    1025: (Meaning(r"errno: 150\b", Category.DEPENDENT_OBJECT), Meaning("", Category.UNKNOWN)),
}
"""A number with several meanings -> the first whose words occur; the empty words at the end match the rest."""

MARIADB_SHARED_CODES: dict[Code, tuple[Meaning, ...]] = SHARED_CODES | {
    1005: (
        Meaning(r"errno: 121\b", Category.DUPLICATE_CONSTRAINT),
        Meaning(r"errno: 150\b", Category.INCOMPATIBLE_TYPE),
        Meaning("", Category.UNKNOWN),
    ),
    # Dropping what a generated column or a CHECK still uses; a misspelt name in one of them reads the same.
    1054: (
        Meaning(r"\bdrop\b.*\bin '(GENERATED ALWAYS AS|CHECK)'", Category.DEPENDENT_OBJECT),
        Meaning("", Category.MISSING_COLUMN),
    ),
}

ERROR_MESSAGES: dict[Category, tuple[str, ...]] = {
    Category.LOST_CONNECTION: (r"already closed", r"packet sequence number wrong"),
}
"""Category -> words, where PyMySQL complains by itself and gives no number."""

"""The schema and rows that stand before the batch, as ordinary statements of each engine."""

from __future__ import annotations

from api.db.dialects.engine import Engine

KEY: dict[Engine, str] = {
    "postgres": "id SERIAL PRIMARY KEY",
    "sqlite": "id INTEGER NOT NULL PRIMARY KEY",
    "mariadb": "id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY",
    "mysql": "id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY",
}
UPPER = "CREATE TRIGGER supplier_upper BEFORE INSERT ON supplier FOR EACH ROW SET NEW.name = UPPER(NEW.name)"
TRIGGERS: dict[Engine, tuple[str, ...]] = {"mariadb": (UPPER,), "mysql": (UPPER,)}
# {key} is the engine's primary key.
TABLES = (
    "region ({key}, name VARCHAR(40) NOT NULL)",
    "warehouse ({key}, city VARCHAR(40) NOT NULL, region_id INTEGER, grade INTEGER NOT NULL,"
    " CONSTRAINT warehouse_region FOREIGN KEY (region_id) REFERENCES region (id))",
    "customer ({key}, name VARCHAR(40) NOT NULL, email VARCHAR(60) NOT NULL UNIQUE, phone VARCHAR(20) NOT NULL,"
    " score INTEGER NOT NULL DEFAULT 0, note TEXT)",
    "product ({key}, sku VARCHAR(20) NOT NULL, title VARCHAR(80) NOT NULL, price DECIMAL(10, 4) NOT NULL,"
    " lot VARCHAR(10) NOT NULL, weight INTEGER NOT NULL)",
    "purchase ({key}, customer_id INTEGER NOT NULL, state VARCHAR(10) NOT NULL DEFAULT 'new', placed VARCHAR(10),"
    " CONSTRAINT purchase_customer FOREIGN KEY (customer_id) REFERENCES customer (id))",
    "purchase_line ({key}, purchase_id INTEGER NOT NULL, product_id INTEGER NOT NULL, amount INTEGER NOT NULL,"
    " discount INTEGER NOT NULL,"
    " CONSTRAINT line_purchase FOREIGN KEY (purchase_id) REFERENCES purchase (id))",
    "stock (product_id INTEGER NOT NULL, warehouse_id INTEGER NOT NULL, amount INTEGER NOT NULL,"
    " PRIMARY KEY (product_id, warehouse_id))",
    "supplier ({key}, name VARCHAR(40) NOT NULL, region_id INTEGER NOT NULL,"
    " CONSTRAINT supplier_region FOREIGN KEY (region_id) REFERENCES region (id))",
    "tag ({key}, word VARCHAR(30) NOT NULL)",
    "audit ({key}, message VARCHAR(80) NOT NULL)",
)
INDEXES = (
    "CREATE INDEX customer_phone ON customer (phone)",
    "CREATE INDEX product_lot_weight ON product (lot, weight)",
    "CREATE INDEX purchase_line_amount_discount ON purchase_line (amount, discount)",
    "CREATE INDEX warehouse_grade ON warehouse (grade)",
    "CREATE VIEW open_purchase AS SELECT id, customer_id FROM purchase WHERE state = 'new'",
)
ROWS = (
    "region VALUES (1, 'north'), (2, 'south'), (3, 'east')",
    "warehouse VALUES (1, 'Oslo', 1, 3), (2, 'Rome', 2, 1), (3, 'Bonn', NULL, 2)",
    "customer VALUES (1, 'Ann', 'ann@x', '11', 5, 'it''s 100 %'), (2, 'Bob', 'bob@x', '22', 0, NULL),"
    " (3, 'Çelik', 'cel@x', '33', 7, 'a\nb'), (4, 'Dee', 'dee@x', '44', 1, '')",
    "product VALUES (1, 'p-1', 'Nail', 1.2345, 'L1', 10), (2, 'p-2', 'Saw', 20.5001, 'L1', 900),"
    " (3, 'p-3', 'Glue', 3.9999, 'L2', 250)",
    "purchase VALUES (1, 1, 'new', '2024-01-01'), (2, 1, 'paid', NULL), (3, 3, 'void', '2024-02-02'),"
    " (4, 4, 'void', NULL)",
    "purchase_line VALUES (1, 1, 1, 100, 0), (2, 1, 2, 1, 5), (3, 2, 3, 2, 10)",
    "stock VALUES (1, 1, 500), (1, 2, 20), (2, 1, 3), (3, 3, 0)",
    "supplier VALUES (1, 'ACME', 1), (2, 'BOLT', 2)",
    "tag VALUES (1, 'sharp'), (2, 'wet')",
    "audit (message) VALUES ('opened')",
)


def statements(engine: Engine) -> list[str]:
    """Return what builds the start on an empty database of *engine*."""
    tables = [f"CREATE TABLE {each.format(key=KEY[engine])}" for each in TABLES]
    return [*tables, *INDEXES, *(f"INSERT INTO {each}" for each in ROWS), *TRIGGERS.get(engine, ())]

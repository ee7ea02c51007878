"""Update, delete and insert rows of tables that stood before: by raw SQL, by the driver's own cursor."""

from api.db.dialects.engine import engine_of

ADD_UP = {
    "mysql": "ON DUPLICATE KEY UPDATE pieces = pieces + 100",
    "mariadb": "ON DUPLICATE KEY UPDATE pieces = pieces + 100",
    "postgres": "ON CONFLICT (product_id, warehouse_id) DO UPDATE SET pieces = stock.pieces + 100",
    "sqlite": "ON CONFLICT (product_id, warehouse_id) DO UPDATE SET pieces = stock.pieces + 100",
}


def up(migrator, db):
    db.execute_sql("UPDATE customer SET score = score + 10 WHERE score > 0")
    cursor = db.connection().cursor()
    cursor.execute("DELETE FROM purchase WHERE state = 'void'")
    cursor.execute("INSERT INTO audit (message) VALUES ('void purchases deleted'), ('scores raised')")
    cursor.close()
    db.execute_sql("INSERT INTO region (id, name) SELECT id + 10, name FROM region WHERE id < 3")
    db.execute_sql("DELETE FROM stock WHERE product_id = 3")
    db.execute_sql(
        f"INSERT INTO stock (product_id, warehouse_id, pieces) VALUES (1, 1, 0), (2, 3, 7) {ADD_UP[engine_of(db)]}"
    )
    db.execute_sql("UPDATE stock SET warehouse_id = 2 WHERE product_id = 2 AND warehouse_id = 1")


def down(migrator, db):
    db.execute_sql("UPDATE stock SET warehouse_id = 1 WHERE product_id = 2 AND warehouse_id = 2")
    db.execute_sql("DELETE FROM stock WHERE product_id = 2 AND warehouse_id = 3")
    db.execute_sql("UPDATE stock SET pieces = pieces - 100 WHERE product_id = 1 AND warehouse_id = 1")
    db.execute_sql("INSERT INTO stock (product_id, warehouse_id, pieces) VALUES (3, 3, 0)")
    db.execute_sql("DELETE FROM region WHERE id > 10")
    db.execute_sql("DELETE FROM audit WHERE message <> 'opened'")
    db.execute_sql("INSERT INTO purchase (id, customer_id, state, placed) VALUES (3, 3, 'void', '2024-02-02')")
    db.execute_sql("INSERT INTO purchase (id, customer_id, state) VALUES (4, 4, 'void')")
    db.execute_sql("UPDATE customer SET score = score - 10 WHERE score > 0")

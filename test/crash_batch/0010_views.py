"""Drop a view, create another."""


def up(migrator, db):
    db.execute_sql("DROP VIEW open_purchase")
    db.execute_sql("CREATE VIEW customer_card AS SELECT id, full_name, level FROM customer")


def down(migrator, db):
    db.execute_sql("DROP VIEW customer_card")
    db.execute_sql("CREATE VIEW open_purchase AS SELECT id, customer_id FROM purchase WHERE state = 'new'")

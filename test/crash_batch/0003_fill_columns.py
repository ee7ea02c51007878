"""Fill the new columns: by peewee, by raw SQL, by the driver's own cursor; then set NOT NULL."""

from api.db.migrations import alter_db_add_not_null

TOTALS = """UPDATE purchase SET total = (
    SELECT COALESCE(SUM(line.amount), 0) FROM purchase_line AS line WHERE line.purchase_id = purchase.id)"""


def up(migrator, db):
    db.execute_sql("UPDATE customer SET city = 'Oslo' WHERE id <= 2")
    db.execute_sql(f"UPDATE customer SET city = {db.param}, level = {db.param} WHERE city IS NULL", ("none", "gold"))
    db.execute_sql(TOTALS)
    cursor = db.connection().cursor()
    cursor.execute("UPDATE product SET category_id = 1 WHERE weight < 500")
    cursor.close()
    alter_db_add_not_null(migrator, "customer", "city")


def down(migrator, db):
    migrator.migrate(migrator.drop_not_null("customer", "city"))
    db.execute_sql("UPDATE product SET category_id = NULL")
    db.execute_sql("UPDATE purchase SET total = 0")
    db.execute_sql("UPDATE customer SET city = NULL, level = 'basic'")

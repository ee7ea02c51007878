"""Add an index, a unique one and a foreign key to a column that stands; drop an index."""

import peewee

from api.db.dialects.engine import engine_of
from api.db.migrations import alter_db_add_column, alter_db_add_index, alter_db_drop_index


class Product(peewee.Model):
    class Meta:
        table_name = "product"


def up(migrator, db):
    alter_db_add_index(migrator, "purchase", ["state", "placed"])
    alter_db_add_index(migrator, "product", "sku", unique=True)
    alter_db_drop_index(migrator, "warehouse", "warehouse_grade")
    alter_db_add_column(migrator, "purchase_line", "product_id", peewee.ForeignKeyField(Product))
    db.execute_sql("CREATE INDEX label_caption ON label (caption)")


def down(migrator, db):
    alter_db_drop_index(migrator, "label", "label_caption")
    if engine_of(db) != "sqlite":  # there a foreign key goes only with its column
        migrator.migrate(migrator.drop_foreign_key_constraint("purchase_line", "product_id"))
    alter_db_drop_index(migrator, "purchase_line", ["product_id"])
    alter_db_add_index(migrator, "warehouse", "grade")
    alter_db_drop_index(migrator, "product", ["sku"])
    alter_db_drop_index(migrator, "purchase", ["state", "placed"])

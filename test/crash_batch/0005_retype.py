"""Change types: wider, and with loss."""

import peewee

from api.db.migrations import alter_db_column_type


def up(migrator, db):
    alter_db_column_type(migrator, "product", "title", peewee.CharField(max_length=200))
    alter_db_column_type(migrator, "product", "price", peewee.IntegerField())
    alter_db_column_type(migrator, "purchase_line", "amount", peewee.BigIntegerField())


def down(migrator, db):
    migrator.migrate(
        migrator.alter_column_type("purchase_line", "amount", peewee.IntegerField()),
        migrator.alter_column_type("product", "price", peewee.DecimalField(max_digits=10, decimal_places=4)),
        migrator.alter_column_type("product", "title", peewee.CharField(max_length=80)),
    )

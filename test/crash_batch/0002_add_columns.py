"""Add columns: nullable, NOT NULL with a default, indexed, unique, with a foreign key."""

import peewee

from api.db.migrations import alter_db_add_column, alter_db_drop_column


class Category(peewee.Model):
    class Meta:
        table_name = "category"


def up(migrator, db):
    alter_db_add_column(migrator, "customer", "city", peewee.CharField(max_length=40, null=True))
    alter_db_add_column(migrator, "customer", "level", peewee.CharField(max_length=10, default="basic", index=True))
    alter_db_add_column(migrator, "customer", "token", peewee.CharField(max_length=20, null=True, unique=True))
    alter_db_add_column(migrator, "purchase", "total", peewee.IntegerField(default=0))
    category = peewee.ForeignKeyField(Category, null=True, on_delete="SET NULL")
    alter_db_add_column(migrator, "product", "category_id", category)


def down(migrator, db):
    alter_db_drop_column(migrator, "product", "category_id")
    alter_db_drop_column(migrator, "purchase", "total")
    for column in ("token", "level", "city"):
        alter_db_drop_column(migrator, "customer", column)

"""Drop columns: NOT NULL and indexed, in a composite index, with a foreign key."""

import peewee

from api.db.dialects.engine import engine_of
from api.db.migrations import alter_db_add_column, alter_db_add_index, alter_db_drop_column


class Region(peewee.Model):
    class Meta:
        table_name = "region"


def up(migrator, db):
    alter_db_drop_column(migrator, "customer", "phone")
    alter_db_drop_column(migrator, "product", "lot")
    alter_db_drop_column(migrator, "warehouse", "region_id")
    if engine_of(db) == "sqlite":  # there an indexed column goes only by a rebuild
        alter_db_drop_column(migrator, "purchase_line", "discount")
    else:
        db.execute_sql("ALTER TABLE purchase_line DROP COLUMN discount")


def down(migrator, db):
    alter_db_add_column(migrator, "purchase_line", "discount", peewee.IntegerField(default=0))
    alter_db_add_column(migrator, "warehouse", "region_id", peewee.ForeignKeyField(Region, null=True))
    alter_db_add_column(migrator, "product", "lot", peewee.CharField(max_length=10, default=""))
    alter_db_add_index(migrator, "product", ["lot", "weight"])
    alter_db_add_column(migrator, "customer", "phone", peewee.CharField(max_length=20, default="", index=True))

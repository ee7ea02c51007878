"""Rename columns and a table."""

from api.db.migrations import alter_db_rename_column


def up(migrator, db):
    alter_db_rename_column(migrator, "customer", "name", "full_name")
    migrator.migrate(migrator.rename_table("tag", "label"))
    alter_db_rename_column(migrator, "label", "word", "caption")
    db.execute_sql("ALTER TABLE stock RENAME COLUMN amount TO pieces")


def down(migrator, db):
    db.execute_sql("ALTER TABLE stock RENAME COLUMN pieces TO amount")
    alter_db_rename_column(migrator, "label", "caption", "word")
    migrator.migrate(migrator.rename_table("label", "tag"))
    alter_db_rename_column(migrator, "customer", "full_name", "name")

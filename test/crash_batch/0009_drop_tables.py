"""Drop tables with rows: one with a foreign key and, on MySQL and MariaDB, a trigger."""

import peewee


def up(migrator, db):
    migrator.migrate(migrator.drop_table("supplier"))
    db.execute_sql("DROP TABLE label")


def down(migrator, db):
    class Region(peewee.Model):
        class Meta:
            database = db

    class Supplier(peewee.Model):
        name = peewee.CharField(max_length=40)
        region = peewee.ForeignKeyField(Region)

        class Meta:
            database = db

    class Label(peewee.Model):
        caption = peewee.CharField(max_length=30)

        class Meta:
            database = db

    db.create_tables([Supplier, Label], safe=False)
    db.execute_sql("CREATE INDEX label_caption ON label (caption)")

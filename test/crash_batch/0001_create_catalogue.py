"""Create tables, one that refers to the other, with rows."""

import peewee


def models(db):
    class Category(peewee.Model):
        name = peewee.CharField(max_length=40, unique=True)

        class Meta:
            database = db

    class Review(peewee.Model):
        category = peewee.ForeignKeyField(Category, on_delete="CASCADE")
        stars = peewee.IntegerField(index=True)
        text = peewee.TextField(null=True)

        class Meta:
            database = db

    return Category, Review


def up(migrator, db):
    Category, Review = models(db)
    db.create_tables([Category, Review], safe=False)
    Category.insert_many([{"id": 1, "name": "tools"}, {"id": 2, "name": "glue"}]).execute()
    Review.insert(id=1, category=2, stars=4, text="sticks at 100 %").execute()


def down(migrator, db):
    db.drop_tables(reversed(models(db)))

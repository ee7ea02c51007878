"""The database that a batch finds, for the tests of how batches end."""

from __future__ import annotations

import peewee
import pytest
from test_journal import START, running

from api.db.migrations import migrate_db


@pytest.fixture
def start(db: peewee.Database) -> peewee.Database:
    """Give the database the tables and rows of START, and a first migration that ran."""
    for sql in START:
        db.execute_sql(sql)
    migrate_db([("0001_a", running())], database=db)
    return db

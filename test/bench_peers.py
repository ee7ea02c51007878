"""The pools that ``bench_pool.py`` runs side by side: each with the same limits, each used as its own manual shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import peewee
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase

from api.db import pool_private as private
from api.db.connection import PoolDiagnostics, open_database

OURS, BARE, KEPT = "plinth", "bare playhouse", "no pool, kept"
SIZE, TIMEOUT_S, LIFETIME_S = 20, 10, 1800
ASK = "SELECT 1"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A pool: *cycle* borrows, asks ``SELECT 1`` and returns; *borrow* and *give* do it without asking.

    *looks* is the processor time that the thread which watches ours had used after each of its looks.
    """

    cycle: Callable[[], object]
    borrow: Callable[[], Any]
    give: Callable[[Any], object]
    close: Callable[[], object]
    looks: list[float] = field(default_factory=list)


@contextmanager
def entered(url: str, *, size: int = SIZE, peers: bool = False) -> Iterator[dict[str, Contestant]]:
    """Give the pools of *size* connections to *url*: ours, bare playhouse's, *peers*; and what no pool can reach."""
    database = open_database(url, pool_max=size)
    makers: dict[str, Callable[[], Contestant]] = {
        OURS: partial(plinth, database),
        BARE: partial(playhouse, database, size),
    }
    if peers:
        makers |= _peers(database, size)
    makers[KEPT] = partial(driver, database)
    with ExitStack() as stack:
        contestants = {}
        for name, make in makers.items():
            contestants[name] = make()
            stack.callback(contestants[name].close)
        yield contestants


def plinth(database: peewee.Database) -> Contestant:
    """Return ours as the service has it: watched, with every default of ``open_database``."""
    looks: list[float] = []
    PoolDiagnostics.start_health_monitoring(database, on_sample=lambda _: looks.append(time.thread_time()))
    return _peewee(database, looks)


def playhouse(ours: peewee.Database, size: int = SIZE) -> Contestant:
    """Return playhouse's own pool with the parameters of *ours*."""
    kind = PooledPostgresqlDatabase if isinstance(ours, peewee.PostgresqlDatabase) else PooledMySQLDatabase
    limits = {"max_connections": size, "timeout": TIMEOUT_S, "stale_timeout": LIFETIME_S}
    return _peewee(kind(ours.database, **limits, **ours.connect_params), [])


def driver(ours: peewee.Database) -> Contestant:
    """Return no pool: each thread keeps a connection of *ours*' driver. Nothing can be faster than that."""
    free: list[Any] = []
    mine = threading.local()

    def cycle() -> None:
        try:
            kept = mine.kept
        except AttributeError:
            kept = mine.kept = _Kept(free, ours)
        cursor = kept.connection.cursor()
        cursor.execute(ASK)
        cursor.fetchone()

    def close() -> None:
        vars(mine).clear()
        while free:
            free.pop().close()

    return Contestant(cycle, lambda: free.append(private.dial(ours)), lambda _: None, close)


class _Kept:
    """A connection for as long as a thread lives, then for another one: dialling is not what is measured."""

    def __init__(self, free: list[Any], ours: peewee.Database) -> None:
        self._free = free
        self.connection = free.pop() if free else private.dial(ours)

    def __del__(self) -> None:
        self._free.append(self.connection)


def _peewee(database: peewee.Database, looks: list[float]) -> Contestant:
    def cycle() -> None:
        database.connect()
        database.execute_sql(ASK).fetchone()
        database.close()

    def close() -> None:
        PoolDiagnostics.stop_health_monitoring(database)
        database.close_all()

    return Contestant(cycle, database.connect, lambda _: database.close(), close, looks)


def _peers(ours: peewee.Database, size: int) -> dict[str, Callable[[], Contestant]]:
    """Return what makes the others. All commit by themselves, as peewee does."""
    sqlalchemy = {
        "SQLAlchemy, pre-ping": partial(_sqlalchemy, ours, size),
        "SQLAlchemy, raw": partial(_sqlalchemy_raw, ours, size),
    }
    if not isinstance(ours, peewee.PostgresqlDatabase):
        return dict(sqlalchemy)
    return {
        "psycopg_pool": partial(_psycopg, ours, size, check=False),
        "psycopg_pool, check": partial(_psycopg, ours, size, check=True),
        **sqlalchemy,
    }


def _psycopg(ours: peewee.Database, size: int, *, check: bool) -> Contestant:
    # By name: a type checker need not have what only --peers asks for.
    kind = import_module("psycopg_pool").ConnectionPool
    parameters = {**ours.connect_params, "dbname": ours.database, "autocommit": True}
    limits = {"min_size": 1, "max_size": size, "timeout": TIMEOUT_S, "max_lifetime": LIFETIME_S}
    pool = kind(kwargs=parameters, check=kind.check_connection if check else None, open=True, **limits)

    def cycle() -> None:
        with pool.connection() as connection:
            connection.execute(ASK).fetchone()

    return Contestant(cycle, pool.getconn, pool.putconn, pool.close)


def _engine(ours: peewee.Database, size: int, *, pre_ping: bool) -> Any:
    is_postgres = isinstance(ours, peewee.PostgresqlDatabase)
    return import_module("sqlalchemy").create_engine(
        "postgresql+psycopg2://" if is_postgres else "mysql+pymysql://",
        connect_args={**ours.connect_params, "dbname" if is_postgres else "database": ours.database},
        isolation_level="AUTOCOMMIT",
        pool_size=size,
        max_overflow=0,
        pool_timeout=TIMEOUT_S,
        pool_recycle=LIFETIME_S,
        pool_pre_ping=pre_ping,
    )


def _sqlalchemy(ours: peewee.Database, size: int) -> Contestant:
    engine = _engine(ours, size, pre_ping=True)

    def cycle() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(ASK).fetchone()

    return Contestant(cycle, engine.connect, lambda connection: connection.close(), engine.dispose)


def _sqlalchemy_raw(ours: peewee.Database, size: int) -> Contestant:
    engine = _engine(ours, size, pre_ping=False)

    def cycle() -> None:
        connection = engine.raw_connection()
        cursor = connection.cursor()
        cursor.execute(ASK)
        cursor.fetchone()
        connection.close()

    return Contestant(cycle, engine.raw_connection, lambda connection: connection.close(), engine.dispose)

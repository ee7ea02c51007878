"""Logs: one way out for every library, with the correlation id, without secrets."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from api.logs import bind_correlation_id, carry_context, configure_logging, current_correlation_id, redact

SECRET = "hunter2"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Leave the root logger, structlog and the context as they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    structlog.contextvars.clear_contextvars()
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger().setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    """Return where JSON lines of level INFO go."""
    stream = io.StringIO()
    configure_logging("INFO", "json", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return what was logged, a dict a line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_holds_what_machines_look_for(stream: io.StringIO) -> None:
    """One object a line, the same keys first, the time in UTC."""
    bind_correlation_id("request-1")
    structlog.get_logger("api.x").info("task stored", task="t1", cost=3)

    (line,) = lines(stream)

    assert list(line) == ["timestamp", "level", "logger", "event", "correlation_id", "task", "cost"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["logger"], line["event"]) == ("info", "api.x", "task stored")
    assert (line["correlation_id"], line["cost"]) == ("request-1", 3)


@pytest.mark.parametrize("name", ["peewee.pool", "werkzeug", "gunicorn.error", "somebody.else"])
def test_a_librarys_line_goes_the_same_way(stream: io.StringIO, name: str) -> None:
    """What logs through the standard library gets the same form and the correlation id."""
    bind_correlation_id("request-1")
    logging.getLogger(name).warning("%s happened", "something")

    (line,) = lines(stream)

    assert (line["logger"], line["event"]) == (name, "something happened")
    assert (line["level"], line["correlation_id"]) == ("warning", "request-1")


def test_configuring_twice_writes_each_line_once() -> None:
    """The last call holds, alone."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging("INFO", "json", first)
    configure_logging("WARNING", "json", second)
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")

    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["loud"]


def test_queries_are_logged_at_debug_only() -> None:
    """peewee's query log is silent until somebody asks for DEBUG."""
    quiet, loud = io.StringIO(), io.StringIO()
    for level, stream in (("INFO", quiet), ("DEBUG", loud)):
        configure_logging(level, "json", stream)
        logging.getLogger("peewee").debug(("SELECT 1", []))

    assert quiet.getvalue() == ""
    assert [line["logger"] for line in lines(loud)] == ["peewee"]


def test_a_console_is_coloured_on_a_terminal_only() -> None:
    """A file or a pipe gets plain text."""
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging("INFO", "console", stream)
        structlog.get_logger("x").info("hello", key=1)

    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in pipe.getvalue()
    assert "hello" in pipe.getvalue()
    assert "key=1" in pipe.getvalue()


def test_gunicorns_console_handlers_are_replaced_and_its_files_stay(stream: io.StringIO, tmp_path: Any) -> None:
    """gunicorn's lines join ours once, and a file that it was told to write is still written."""
    logger = logging.getLogger("gunicorn.error")
    before = list(logger.handlers), logger.propagate, logger.level
    own, file = logging.StreamHandler(io.StringIO()), logging.FileHandler(tmp_path / "error.log")
    logger.handlers, logger.propagate, logger.level = [own, file], False, logging.INFO
    try:
        configure_logging("INFO", "json", stream)
        logger.info("Booting worker")
    finally:
        file.close()
        logger.handlers, logger.propagate, logger.level = before

    assert [line["event"] for line in lines(stream)] == ["Booting worker"]
    assert own.stream.getvalue() == ""
    assert "Booting worker" in (tmp_path / "error.log").read_text()


def test_nothing_goes_to_standard_output() -> None:
    """Standard output belongs to the program's answer: a log line there would break its JSON."""
    program = "from api.logs import *; import structlog; configure_logging(); structlog.get_logger('x').info('hello')"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert "hello" in done.stderr


@pytest.mark.parametrize("candidate", ["a", "7f3c.A_b-9", "x" * 128])
def test_a_sane_id_is_kept(candidate: str) -> None:
    """The caller's own id finds its request in our log."""
    assert bind_correlation_id(candidate) == candidate == current_correlation_id()


def test_the_id_is_the_one_that_lines_have() -> None:
    """It is structlog's: what is bound or unbound there is seen here."""
    structlog.contextvars.bind_contextvars(correlation_id="bound elsewhere")
    assert current_correlation_id() == "bound elsewhere"
    structlog.contextvars.unbind_contextvars("correlation_id")
    assert current_correlation_id() is None


@pytest.mark.parametrize("candidate", [None, "", "x" * 129, "a b", "a\nb", "a\n", "é", "<script>"])
def test_an_insane_id_is_replaced(candidate: str | None) -> None:
    """What could break a line, or grow the log, is not taken over."""
    bound = bind_correlation_id(candidate)

    assert len(bound) == 32
    assert bound != bind_correlation_id(candidate)


def test_a_thread_that_works_for_us_logs_our_id(stream: io.StringIO) -> None:
    """A plain thread loses the id; one that carries the context keeps it, and gives nothing back."""
    bind_correlation_id("request-1")

    def work() -> None:
        structlog.get_logger("x").info("working")
        structlog.contextvars.bind_contextvars(correlation_id="of the thread")

    for target in (work, carry_context(work)):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    assert [line.get("correlation_id") for line in lines(stream)] == [None, "request-1"]
    assert current_correlation_id() == "request-1"


def test_carrying_returns_what_the_function_returns() -> None:
    """Arguments go in and the result comes out as without it, from several threads too."""
    carried = carry_context(divmod)

    assert carried(7, 2) == (3, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgres://u:{SECRET}@h/d", "postgres://u:***@h/d"),
        (f"to mysql+pymysql://root:p@{SECRET}@h:1/d now", "to mysql+pymysql://root:***@h:1/d now"),
        (f"host=h password={SECRET} dbname=d", "host=h password=*** dbname=d"),
        (f"https://h/?password={SECRET}&a=1", "https://h/?password=***&a=1"),
        (f"ALTER ROLE x PASSWORD '{SECRET}''s' VALID", "ALTER ROLE x PASSWORD '***' VALID"),
        (f"CREATE USER x IDENTIFIED BY '{SECRET}'", "CREATE USER x IDENTIFIED BY '***'"),
        (f"identified with sha2 as '{SECRET}'", "identified with sha2 as '***'"),
        (f"SET PASSWORD FOR x = '{SECRET}", "SET PASSWORD FOR x = '***'"),
        (f"{{'passwd': '{SECRET}', 'a': 1}}", "{'passwd': '***', 'a': 1}"),
        (f'{{"password": "{SECRET}"}}', "{\"password\": '***'}"),
        (f"the key {'A' * 43}= is bad", "the key *** is bad"),
    ],
)
def test_a_secret_is_masked(text: str, shown: str) -> None:
    """Passwords in URLs, DSNs, SQL and JSON, and Fernet keys, end as three stars."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Access denied for user 'root'@'localhost' (using password: YES)",
        'password authentication failed for user "x"',
        'unrecognized token: "@"',
        "http://localhost:5000/tasks/1",
        "sqlite:////tmp/x.db",
        "tokens_in=12",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """An error that a person needs is not mangled."""
    assert redact(text) == text


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_line_holds_a_secret(fmt: Any) -> None:
    """Events, keys, nested values, errors and a library's lines are all masked on the way out."""
    stream = io.StringIO()
    configure_logging("INFO", fmt, stream)
    log = structlog.get_logger("x")
    url = f"postgres://u:{SECRET}@h/d"
    log.info(url, url=url, nested={"list": [url, {"password": SECRET}]}, error=ValueError(url), password=SECRET)
    logging.getLogger("driver").warning("cannot connect to %s", url)
    try:
        raise ValueError(url)
    except ValueError:
        log.exception("failed")
        logging.getLogger("driver").exception("failed")

    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count("ValueError: postgres://u:***@h/d") == 2


def test_werkzeugs_colours_do_not_reach_the_log(stream: io.StringIO) -> None:
    """werkzeug colours its access lines whatever they go to."""
    logging.getLogger("werkzeug").warning("\x1b[33mGET /x 404\x1b[0m")

    assert lines(stream)[0]["event"] == "GET /x 404"

"""One way out for every log line, ours and the libraries': structlog over the standard library; a leaf.

Lines go to standard error, as text for people or as one JSON object each for machines. A correlation id, bound
to the context, stands in every line of the request or command it belongs to. Secrets are masked on the way out.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import uuid
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TextIO, TypeVar

import structlog
from structlog.typing import EventDict, Processor

P = ParamSpec("P")
R = TypeVar("R")

LEADING_KEYS = ("timestamp", "level", "logger", "event", "correlation_id")
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")
MASK = "***"

# Every run is bounded, so that no text makes a pattern slow; 2048 holds the longest password known, a cloud
# token of about 1000 characters. Without quotes a value is masked after '=' or ':' only: neither "password
# authentication failed" nor "(using password: YES)" holds one. SQLite's "unrecognized token" quotes SQL.
WORD = r"passw(?:or)?d|pwd|secret(?:_?key)?|(?<!unrecognized )token|api_?key"
SECRET_KEY = re.compile(rf"(?i)\w*(?:{WORD})")
CLAUSE = r"identified\s{1,8}(?:(?:with|via)\s{1,8}\S{1,64}\s{1,8})?(?:by|as|using)|password\s{1,8}for\s{1,8}\S{1,64}"
QUOTED = r"""\\?(?:'(?:[^'\\]|''|\\.){0,2048}'?|"(?:[^"\\]|""|\\.){0,2048}"?)"""
BARE = r"""(?!yes\b|no\b)[^\s'",;&)]{1,2048}"""
SECRETS = (
    (re.compile(r"(://[^\s:/@]{0,256}:)\S{1,2048}@"), rf"\1{MASK}@"),
    (
        re.compile(rf"""(?i)((?:{WORD}|{CLAUSE})\b["']?\s{{0,8}}[=:(]?\s{{0,8}}[a-z]?){QUOTED}"""),
        rf"\1'{MASK}'",
    ),
    (re.compile(rf"(?i)((?:{WORD})\s{{0,8}}[=:]\s{{0,8}}){BARE}"), rf"\1{MASK}"),
    (re.compile(r"(?<![\w-])[\w-]{43}=(?!=)"), MASK),
)


def redact(text: str) -> str:
    """Return *text* with its passwords and keys masked.

    Masked are the password of a URL, what follows ``PASSWORD``, ``IDENTIFIED BY`` and their like, and Fernet
    keys. Rather too much than too little: a quoted value that was cut off is masked to the end of the text.
    """
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def one_line(text: str, limit: int | None = None) -> str:
    """Return *text* without its secrets and on one line; what is longer than *limit* characters ends in an ellipsis."""
    line = redact(" ".join(text.split()))
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def storable(text: str) -> str:
    """Return *text* without what a server refuses to store: NUL on PostgreSQL, lone surrogates everywhere."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _variable_of(key: str) -> contextvars.ContextVar[Any]:
    """Return structlog's own variable for *key*: each borrow reads one, and copying all of them took longer."""
    tokens = structlog.contextvars.bind_contextvars(**{key: None})
    structlog.contextvars.reset_contextvars(**tokens)
    return tokens[key].var


_CORRELATION_ID = _variable_of("correlation_id")


def bind_correlation_id(candidate: str | None = None) -> str:
    """Bind *candidate* to this context if it is sane, a new id otherwise, and return what was bound.

    Sane is up to 128 letters, digits, dots, dashes and underscores: it can neither break a line nor grow a log.
    """
    chosen = candidate if candidate and SANE_ID.fullmatch(candidate) else uuid.uuid4().hex
    structlog.contextvars.bind_contextvars(correlation_id=chosen)
    return chosen


def current_correlation_id() -> str | None:
    """Return the correlation id bound to this context, or None."""
    bound = _CORRELATION_ID.get(None)
    # Where structlog has unbound it, it leaves a mark of its own.
    return bound if isinstance(bound, str) else None


def carry_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return *function* bound to the caller's context, for a thread that works on the caller's behalf.

    A new thread starts with an empty context, so its lines would lack the correlation id. Each call runs in a
    copy of its own: what it binds stays with it, and several threads may call it at once.
    """
    captured = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return captured.copy().run(function, *args, **kwargs)

    return run


class _WithoutValues(logging.Filter):
    """Leaves a query's values out of peewee's line: among them is what an application keeps secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the SQL of a ``(sql, values)`` message."""
        if isinstance(record.msg, tuple):
            record.msg = record.msg[0]
        return True


class _StandardError:
    """Whatever ``sys.stderr`` is when a line is written: tests and daemons replace it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logging(
    level: str = "INFO", fmt: Literal["console", "json"] = "console", stream: TextIO | None = None
) -> None:
    """Send every log line of the process to *stream* (standard error) in one form; the last call holds.

    *fmt* is ``console``, coloured on a terminal only, or ``json``, one object a line. Queries appear only when
    *level* is ``DEBUG``: peewee logs each of them at that level.
    """
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    target: Any = stream or _StandardError()
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(fmt, colors=(stream or sys.stderr).isatty()))
    root = logging.getLogger()
    for old in [old for old in root.handlers if _is_ours(old)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    queries = logging.getLogger("peewee")
    if not any(isinstance(each, _WithoutValues) for each in queries.filters):
        queries.addFilter(_WithoutValues())
    _adopt_gunicorn()


def _is_ours(handler: logging.Handler) -> bool:
    return isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter)


def _adopt_gunicorn() -> None:
    """Let gunicorn's loggers write through the root's handler; the files and syslog it was told of stay."""
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
            logger.removeHandler(handler)
            logger.propagate = True


def _formatter(fmt: Literal["console", "json"], *, colors: bool) -> logging.Formatter:
    renderer: Processor = structlog.processors.JSONRenderer()
    if fmt == "console":
        # The plain traceback: the other formatters print local variables, which hold secrets.
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _clean,
            renderer,
        ],
    )


def _clean(logger: Any, method: str, event_dict: EventDict) -> EventDict:
    """Mask secrets, drop terminal codes (werkzeug writes them), and put the keys of every line first."""
    leading = {key: event_dict.pop(key) for key in LEADING_KEYS if key in event_dict}
    return {key: _cleaned(value) for key, value in _masked(leading | dict(event_dict)).items()}


def _masked(mapping: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): MASK if SECRET_KEY.fullmatch(str(key)) else value for key, value in mapping.items()}


def _cleaned(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in _masked(value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(item) for item in value]
    return TERMINAL_CODE.sub("", redact(value if isinstance(value, str) else str(value)))

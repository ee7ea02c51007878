"""What operators' machines ask: ``/healthz``, does the process live; ``/readyz``, may it be sent traffic; ``/metrics``.

None borrows from the pool: they must answer when every connection is in use, and when the database is gone.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from flask import Blueprint, Response, request

from api.db.connection import open_database
from api.db.dialects.connecting import driver_code
from api.db.migrations import pending_and_interrupted
from api.exceptions import MigrationFileError
from api.settings import Settings
from api.web.inputs import Answer
from api.web.metrics import render

log = structlog.get_logger(__name__)

KEPT_S = 2.0
WAIT_S = 1.0
OVERDUE_S = 15.0
UNREACHABLE = "database unreachable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the last probe found: ready, or the *reason* why not, with *details* that hold no secret."""

    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the body of ``/readyz``."""
        if self.reason is None:
            return {"status": "ready"}
        return {"status": "not ready", "reason": self.reason} | self.details


class Readiness:
    """Asks the database over a private connection, at most once in two seconds and one probe at a time.

    Whoever asks while a probe is under way waits a second for it, then gets the verdict before it. A stopped
    server answers nothing: once the last verdict is 15 seconds old, that silence is the verdict.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.migration_directory
        self._url = settings.database_url.get_secret_value()
        self._connect_timeout_s = settings.db_connect_timeout_s
        self._probing = threading.Lock()
        self._verdict: Verdict | None = None
        self._renewed_at = 0.0

    def verdict(self) -> Verdict:
        """Return whether the schema is current and the database within reach, as of the last two seconds."""
        if not self._is_younger_than(KEPT_S) and self._probing.acquire(timeout=WAIT_S):
            try:
                if not self._is_younger_than(KEPT_S):
                    self._renew()
            finally:
                self._probing.release()
        if self._verdict is None or not self._is_younger_than(OVERDUE_S):
            return Verdict(UNREACHABLE, {"code": "NO_ANSWER"})
        return self._verdict

    def _is_younger_than(self, seconds: float) -> bool:
        return self._verdict is not None and time.monotonic() - self._renewed_at < seconds

    def _renew(self) -> None:
        verdict = self._probe()
        if verdict != self._verdict:
            (log.warning if verdict.reason else log.info)("readiness changed", **verdict.as_dict())
        self._verdict, self._renewed_at = verdict, time.monotonic()

    def _probe(self) -> Verdict:
        # Anew for each probe: after a failed connect a pool does not dial at once.
        database = open_database(self._url, pool_max=1, connect_timeout_s=self._connect_timeout_s)
        try:
            database.connect()
            pending, interrupted = pending_and_interrupted(self._directory, database)
        except MigrationFileError as exc:
            return Verdict("the migrations cannot be read", {"code": exc.error_code})
        except Exception as exc:  # noqa: BLE001 - whatever went wrong, the answer is "not ready" and why
            log.debug("readiness probe failed", error=str(exc))
            return Verdict(UNREACHABLE, {"code": _code(exc)})
        finally:
            database.manual_close()
        if interrupted:
            return Verdict("an interrupted migration waits for `up` or `recover`", {"pending": pending})
        return Verdict("pending migrations", {"pending": pending}) if pending else Verdict()


def _code(exc: Exception) -> str:
    """Return the server's code for *exc*, or ours: never the text, which names user and host."""
    code = driver_code(exc)
    return getattr(exc, "error_code", type(exc).__name__) if code is None else str(code)


def health_endpoints(settings: Settings) -> Blueprint:
    """Return the blueprint ``ops``: ``/healthz``, ``/readyz``, ``/metrics``; nothing connects before somebody asks."""
    ops = Blueprint("ops", __name__)
    readiness = Readiness(settings)

    @ops.get("/healthz")
    def healthz() -> Answer:
        return {"status": "alive"}

    @ops.get("/readyz")
    def readyz() -> Answer:
        verdict = readiness.verdict()
        return verdict.as_dict(), 200 if verdict.reason is None else 503, {"Cache-Control": "no-store"}

    @ops.get("/metrics")
    def metrics() -> Response:
        text, content_type = render(request.headers.get("Accept", ""))
        return Response(text, content_type=content_type)

    return ops

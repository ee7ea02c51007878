"""Every error Plinth raises, in one tree; a leaf that imports nothing of ours.

AADAPError
├── OrchestratorError
│   └── GraphExecutionError
├── AgentLifecycleError
├── IntegrationError
├── ExecutionError
├── ConfigurationError              a setting, a URL or a key is missing or wrong
└── DatabaseLayerError
    ├── DatabaseUnavailableError    the server cannot be reached, or refused us
    ├── TransactionAbortedError     a statement's error was swallowed; nothing was committed
    └── MigrationError
        ├── MigrationFileError      a file cannot be used; nothing ran
        ├── MigrationFailedError    a migration failed; ``result`` says what stands
        ├── MigrationLockError      another process migrates and did not finish in time
        ├── SchemaConflictError     the live schema is neither what was asked nor half of it
        ├── UnsafeOperationError    the operation would lose or invent data; nothing ran
        ├── StatementRefusedError   a statement cannot be understood, or not undone; it was not sent
        └── MigrationUndoError      something stands in the way of undoing a batch; it stays open
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class ErrorSeverity(StrEnum):
    """How bad it is, from a nuisance to lost service."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class AADAPError(Exception):
    """The root of the tree: a message, and what the reader needs to act on it.

    *task_id*, *agent_id* and *correlation_id* say whose work failed; *hint* says what to do now and defaults
    to the class's own remedy. Neither message nor hint may carry a secret.
    """

    severity: ClassVar[ErrorSeverity] = ErrorSeverity.MEDIUM
    error_code: ClassVar[str] = "AADAP000"
    default_hint: ClassVar[str] = "look for the correlation id in the log"

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        agent_id: str | None = None,
        correlation_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.task_id = task_id
        self.agent_id = agent_id
        self.correlation_id = correlation_id
        self.hint = self.default_hint if hint is None else hint

    def as_dict(self) -> dict[str, Any]:
        """Return ``{"code", "message", "severity", "hint"}``, and each id that is set."""
        body: dict[str, Any] = {
            "code": self.error_code,
            "message": self.message,
            "severity": str(self.severity),
            "hint": self.hint,
        }
        ids = {"task_id": self.task_id, "agent_id": self.agent_id, "correlation_id": self.correlation_id}
        return body | {name: value for name, value in ids.items() if value is not None}


class OrchestratorError(AADAPError):
    """The orchestration of a task failed."""

    severity = ErrorSeverity.HIGH
    error_code = "ORCH001"
    default_hint = "read the task's log, then run the task again"


class GraphExecutionError(OrchestratorError):
    """A node of the task's graph failed."""

    error_code = "ORCH002"


class AgentLifecycleError(AADAPError):
    """An agent did not start, or did not stop."""

    severity = ErrorSeverity.HIGH
    error_code = "AGENT001"
    default_hint = "restart the agent"


class IntegrationError(AADAPError):
    """A platform that a task talks to failed or refused."""

    error_code = "INTEG001"
    default_hint = "test the platform's connection, then run the task again"


class ExecutionError(AADAPError):
    """A request or a step could not be carried out as asked."""

    error_code = "EXEC001"
    default_hint = "correct the request and send it again"


class ConfigurationError(AADAPError):
    """A setting, a URL or a key is missing or wrong; nothing was started."""

    severity = ErrorSeverity.HIGH
    error_code = "CONF001"
    default_hint = "correct the named setting and start again"


class DatabaseLayerError(AADAPError):
    """The root of what the database layer raises."""

    severity = ErrorSeverity.HIGH
    error_code = "DB001"


class DatabaseUnavailableError(DatabaseLayerError):
    """The server cannot be reached, or refused us."""

    severity = ErrorSeverity.CRITICAL
    error_code = "DB002"
    default_hint = "check DATABASE_URL, that the server runs, and that this host may reach it"


class TransactionAbortedError(DatabaseLayerError):
    """A statement failed earlier in the transaction and its error was swallowed; nothing was committed."""

    error_code = "DB003"
    default_hint = "let the failed statement's error leave the block, or give that statement its own `DB.atomic()`"


class MigrationError(DatabaseLayerError):
    """The root of what goes wrong with migrations."""

    error_code = "MIG001"
    default_hint = "run `python -m api.db.migrations status`"


class MigrationFileError(MigrationError):
    """A migration file cannot be used; nothing ran."""

    error_code = "MIG002"
    default_hint = "correct the named file"


class MigrationFailedError(MigrationError):
    """A migration failed; *result* says what was applied, rolled back and is still pending."""

    severity = ErrorSeverity.CRITICAL
    error_code = "MIG003"

    def __init__(self, message: str, *, result: Any = None, **ids: Any) -> None:
        super().__init__(message, **ids)
        self.result = result


class MigrationLockError(MigrationError):
    """Another process migrates and did not finish in time."""

    error_code = "MIG004"
    default_hint = "wait for the other process, or raise MIGRATION_LOCK_TIMEOUT_S"


class SchemaConflictError(MigrationError):
    """The live schema is neither what was asked for nor half of it."""

    error_code = "MIG005"
    default_hint = "decide which of the two is right, then change the migration or the schema"


class UnsafeOperationError(MigrationError):
    """The operation would lose or invent data; nothing ran."""

    error_code = "MIG006"


class StatementRefusedError(MigrationError):
    """A statement cannot be understood, or cannot be undone; it was not sent."""

    error_code = "MIG007"
    default_hint = "set `atomic = False` in the migration's file: it then runs outside the batch, without undo"


class MigrationUndoError(MigrationError):
    """Something stands in the way of undoing a batch; it stays open, and nothing is lost."""

    severity = ErrorSeverity.CRITICAL
    error_code = "MIG008"
    default_hint = "remove what stands in the way, then run `python -m api.db.migrations recover`"

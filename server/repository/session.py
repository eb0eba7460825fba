"""What PostgreSQL is told before statements: once for each connection, or in each transaction where a pooler stands between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique


@unique
class Pooler(Enum):
    """What stands between the service and PostgreSQL."""

    NONE = "none"
    # It lends a server connection for the length of a transaction, and another one for the next: PgBouncer's pool_mode=transaction.
    TRANSACTION = "transaction"


@dataclass(frozen=True, slots=True)
class Session:
    """How statements run; ``statement_timeout`` in seconds."""

    statement_timeout: float = 5.0
    role: str | None = None
    pooler: Pooler = Pooler.NONE

    @property
    def startup(self) -> Mapping[str, str]:
        """What a connection is opened with. A pooler refuses what it cannot give back to the next client."""
        told = {"application_name": "flowledger"}
        return told if self.pooler is Pooler.TRANSACTION else {**told, **self._told}

    @property
    def _told(self) -> dict[str, str]:
        milliseconds = int(self.statement_timeout * 1000)
        told = {
            "timezone": "UTC",
            "statement_timeout": str(milliseconds),
            "lock_timeout": str(milliseconds),
            "idle_in_transaction_session_timeout": str(milliseconds * 4),
            # The statements are few, their shape does not depend on the values, and planning them anew costs more than running them.
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        }
        return {**told, "role": self.role} if self.role else told

    @property
    def opening(self) -> str | None:
        """The message that begins a transaction behind a pooler: one, so that it costs one round trip. None where there is no pooler."""
        if self.pooler is Pooler.NONE:
            return None
        return "; ".join(["BEGIN", *(f"SET LOCAL {name} = {_quoted(value)}" for name, value in self._told.items())])


def _quoted(value: str) -> str:
    """The value as SQL writes it; standard_conforming_strings is on, or the pooler would have been told otherwise."""
    return "'" + value.replace("'", "''") + "'"

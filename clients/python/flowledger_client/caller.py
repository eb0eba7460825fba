"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True)
class Caller:
    """On whose behalf calls are made: the tenant (account and engagement, both UUIDs) and the user or agent."""

    account: UUID | str
    engagement: UUID | str
    user: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (
            ("x-client-account-id", str(self.account)),
            ("x-engagement-id", str(self.engagement)),
            ("x-user-id", self.user),
        )

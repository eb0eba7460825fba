"""What was asked of one flow, what was answered, and when: by the clock of the one process that asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, unique


@unique
class Kind(Enum):
    """What a call did, as far as its caller knows."""

    # A create or a commit: acknowledged with its revision, or unknown (no revision), which may happen at any time after the call began.
    WRITE = "write"
    # A create or a commit that was refused: it must never happen. Its revision is what the refusal said was current.
    REFUSED = "refused"
    # A STRONG read; revision 0 is "there is no such flow".
    READ = "read"
    # A CACHED read.
    CACHED = "cached"


@dataclass(frozen=True, slots=True)
class Call:
    """One call; ``mark`` is what was written, or what was read there, and empty where nothing was seen of it."""

    kind: Kind
    called: float
    returned: float = math.inf
    revision: int | None = None
    mark: str = ""
    # The revision that the read was to have come to at least.
    least: int = 0

    def __str__(self) -> str:
        return f"{self.kind.value} {self.mark!r} at revision {self.revision} [{self.called:.4f}, {self.returned:.4f}]"


@dataclass(frozen=True, slots=True)
class Heard:
    """One event that a watch delivered, and when."""

    revision: int
    mark: str
    time: float


@dataclass(frozen=True, slots=True)
class Watched:
    """All that one watch delivered, over all its streams."""

    after: int
    heard: tuple[Heard, ...]
    # Whether it was followed until the service said that the flow was over.
    to_the_end: bool = True


@dataclass(frozen=True, slots=True)
class History:
    """One flow's. ``ledger`` has the marks of its revisions, from the first on, as they were found when all was over."""

    calls: tuple[Call, ...]
    watches: tuple[Watched, ...]
    ledger: tuple[str, ...]
    # How much older than the call a CACHED read may be.
    stale: float = 0.0

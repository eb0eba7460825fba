"""Which revisions of a flow stay, by its tenant's policy."""

from __future__ import annotations

from dataclasses import field

from server.statemachine.policy import Policy
from server.statemachine.states import FlowStatus
from server.statemachine.value import dataclass

# A revision in one of these is not what anybody wants to go back to.
UNWELL = frozenset({FlowStatus.FAILED, FlowStatus.RETRY_PENDING, FlowStatus.ERROR_RECOVERY})


@dataclass(frozen=True, slots=True)
class Lived:
    """What must be known of a flow's history: its newest revision, and the oldest whose event is kept.

    ``young`` is the first revision that is younger than the policy's limit, ``good`` the newest that was well, ``ended`` the one at which
    the flow ended; each is None if there is none. ``pinned`` are the revisions of its pinned checkpoints.
    """

    head: int
    oldest: int
    young: int | None = None
    good: int | None = None
    ended: int | None = None
    pinned: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays: every revision after the horizon with its event, the horizon as what they are rebuilt from, and single ones before it."""

    horizon: int
    kept: frozenset[int] = field(default_factory=frozenset)


def retention(policy: Policy, lived: Lived) -> Retention | None:
    """What stays of the flow; None when the policy keeps everything. The newest event always stays."""
    if not policy.keep_revisions:
        return None
    horizon = lived.head - policy.keep_revisions
    if policy.keep_duration and lived.young is not None:
        horizon = min(horizon, lived.young - 1)
    horizon = max(horizon, lived.oldest - 1)  # what went before does not come back
    single = set(lived.pinned)
    if policy.keep_last_good and lived.good is not None:
        single.add(lived.good)
    if policy.keep_terminal and lived.ended is not None:
        single.add(lived.ended)
    return Retention(horizon, frozenset(revision for revision in single if revision < horizon))


def surplus(policy: Policy) -> int:
    """How many revisions too many make it worth going through a flow that nobody asked to have compacted."""
    return max(10, policy.keep_revisions // 10)

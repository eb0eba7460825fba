"""What the analytics say of a commit: a function of its facts, so that history can tell it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from server.statemachine.event import ActivityRecorded, Fact, PhaseChanged
from server.statemachine.states import PhaseState
from server.statemachine.values import ActivityEntry, ActivityKind

# Of each kind so many of the newest entries are kept.
KEPT = 100


def moved(changed: Iterable[PhaseChanged]) -> list[ActivityEntry]:
    """The entries about phases that changed their state."""
    entries: list[ActivityEntry] = []
    for change in changed:
        before, after = change.before, change.after
        spent = None
        if before.state is PhaseState.IN_PROGRESS and before.start_time is not None and after.state_time is not None:
            spent = max(after.state_time - before.start_time, timedelta())
        name, way = after.name, f"{before.state.name} to {after.state.name}"
        entries.append(ActivityEntry(ActivityKind.TRANSITION, name, change.child_type, (), way, None, "", spent))
        if after.retry_count > before.retry_count:
            entries.append(ActivityEntry(ActivityKind.RETRY, name, change.child_type, (), change.reason, float(after.retry_count)))
        if change.failed and (failure := after.failure) is not None:
            text = f"{failure.code.name}: {failure.message}" if failure.message else failure.code.name
            entries.append(ActivityEntry(ActivityKind.ERROR, name, change.child_type, (), text))
    return entries


def numbered(
    entries: Sequence[ActivityEntry], totals: Mapping[ActivityKind, int], now: datetime, actor: str
) -> tuple[tuple[ActivityEntry, ...], dict[ActivityKind, int]]:
    """The entries with their numbers after ``totals``, their time and who recorded them; and the totals then."""
    counts = dict(totals)
    recorded = []
    for entry in entries:
        kind = entry.kind
        counts[kind] = number = counts.get(kind, 0) + 1
        recorded.append(
            ActivityEntry(
                kind,
                entry.phase,
                entry.subject,
                entry.participants,
                entry.message,
                entry.value,
                entry.unit,
                entry.duration,
                now,
                actor,
                number,
            )
        )
    return tuple(recorded), counts


def told(facts: Iterable[Fact]) -> list[ActivityEntry]:
    """The entries that a commit with these facts recorded, without numbers."""
    entries: list[ActivityEntry] = []
    for fact in facts:
        if isinstance(fact, PhaseChanged):
            if fact.before.state is not fact.after.state:  # else a progress report
                entries += moved([fact])
        elif isinstance(fact, ActivityRecorded):
            entries += fact.entries
    return entries


def kept(before: Iterable[ActivityEntry], recorded: Iterable[ActivityEntry]) -> tuple[ActivityEntry, ...]:
    """What is kept once ``recorded`` was added: of each kind the newest, by kind and the newest first."""
    found = sorted([*before, *recorded], key=lambda entry: (entry.kind.value, -entry.sequence))
    counts: dict[ActivityKind, int] = {}
    newest = []
    for entry in found:
        counts[entry.kind] = counts.get(entry.kind, 0) + 1
        if counts[entry.kind] <= KEPT:
            newest.append(entry)
    return tuple(newest)

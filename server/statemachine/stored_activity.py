"""Activity as it is stored: what can be read of it, and whether it is all there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from math import inf

import orjson

from server.statemachine.activity import KEPT
from server.statemachine.finding import Finding, FindingKind
from server.statemachine.loose import Loose, Row
from server.statemachine.value import dataclass
from server.statemachine.values import ActivityEntry, ActivityKind

FIELD = "activity"


@dataclass(frozen=True, slots=True)
class StoredActivity:
    """The entries that could be read, by kind and the newest first, and what is wrong with the rest."""

    entries: tuple[ActivityEntry, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def totals(self) -> dict[ActivityKind, int]:
        """How many entries of each kind there must have been."""
        found: dict[ActivityKind, int] = {}
        for entry in self.entries:
            found[entry.kind] = max(found.get(entry.kind, 0), entry.sequence)
        return found


def read(rows: Iterable[Row]) -> StoredActivity:
    """The entries of the rows."""
    findings: list[Finding] = []
    entries = [entry for row in rows if (entry := _entry(row, findings)) is not None]
    entries.sort(key=lambda entry: (entry.kind.value, -entry.sequence))
    return StoredActivity(tuple(entries), tuple(findings))


def differing(stored: StoredActivity, told: Sequence[ActivityEntry]) -> list[Finding]:
    """Where the entries are not those that the history tells."""
    found = []
    for kind in ActivityKind:
        mine, wanted = ([entry for entry in entries if entry.kind is kind] for entries in (stored.entries, told))
        if mine != wanted:
            text = f"of {kind.name} there are {len(mine)} entries, and they are not the {len(wanted)} that the history tells"
            found.append(Finding(FindingKind.FIELD_INVALID, text, FIELD))
    return found


def beyond(stored: StoredActivity, totals: Mapping[ActivityKind, int]) -> list[Finding]:
    """Where there are more entries than the totals know of."""
    return [
        Finding(FindingKind.FIELD_INVALID, f"of {kind.name} there is entry {last}, and the total is {totals.get(kind, 0)}", FIELD)
        for kind, last in stored.totals.items()
        if last > totals.get(kind, 0)
    ]


def _entry(row: Row, findings: list[Finding]) -> ActivityEntry | None:
    before = len(findings)
    loose = Loose(row, findings, prefix=f"{FIELD}.")
    sequence, time, actor = loose.whole("sequence", 1), loose.moment("time"), loose.text("actor")
    number, slot = loose.whole("kind", 1, len(ActivityKind)), loose.whole("slot", 0, KEPT - 1)
    if sequence is not None and slot is not None and slot != (sequence - 1) % KEPT:
        loose.note(FindingKind.FIELD_INVALID, "slot", f"entry {sequence} lies in slot {slot}")
    body = _object(row.get("body"))
    if body is None:
        loose.note(FindingKind.FIELD_INVALID, "body", f"entry {sequence} of kind {number} cannot be read")
        return None
    inner = Loose(body, findings, prefix=f"{FIELD}.body.")
    kind = inner.member("kind", ActivityKind)
    if kind is not None and kind.value != number:
        inner.note(FindingKind.FIELD_INVALID, "kind", f"entry {sequence} of kind {number} says that it is of kind {kind.name}")
    texts = [inner.text(name, default="") for name in ("phase", "subject", "message", "unit")]
    participants = body.get("participants", [])
    if not isinstance(participants, list) or not all(isinstance(name, str) for name in participants):
        inner.invalid("participants", "a list of texts")
    value = None if body.get("value") is None else inner.number("value", -inf, inf)
    spent = None if body.get("duration_us") is None else inner.whole("duration_us", most=10**18)
    if len(findings) > before or kind is None or sequence is None or time is None or actor is None or not isinstance(participants, list):
        return None
    phase, subject, message, unit = (text or "" for text in texts)
    duration = None if spent is None else timedelta(microseconds=spent)
    return ActivityEntry(kind, phase, subject, tuple(map(str, participants)), message, value, unit, duration, time, actor, sequence)


def _object(body: object) -> dict[str, object] | None:
    try:
        found = orjson.loads(body) if isinstance(body, str) else None
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None

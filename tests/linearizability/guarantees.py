"""What etcd promises of a watch, checked of what a watcher was told: ordered, unique, reliable, atomic, resumable, bookmarkable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A revision as it is stored: its hash, and the kinds of all that its commit changed."""

    hash: bytes
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """One message of a stream: the position that it carries, and the event if it is one."""

    revision: int
    event: Entry | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a watcher, from the position after which it was asked for."""

    after: int
    told: tuple[Told, ...]


def broken(streams: Sequence[Stream], ledger: Sequence[Entry]) -> list[str]:
    """The promises that one watcher's streams, each asked for where the one before had come to, did not keep; as sentences."""
    return [*_ordered(streams), *_unique(streams), *_reliable(streams, ledger), *_atomic(streams, ledger), *_bookmarks(streams)]


def _ordered(streams: Sequence[Stream]) -> Iterator[str]:
    for stream in streams:
        position = stream.after
        for told in stream.told:
            if told.revision < position:
                yield f"ordered: revision {told.revision} was told after {position}"
            position = told.revision


def _events(streams: Sequence[Stream]) -> Iterator[tuple[int, Entry]]:
    for stream in streams:
        yield from ((told.revision, told.event) for told in stream.told if told.event is not None)


def _unique(streams: Sequence[Stream]) -> Iterator[str]:
    seen = set[int]()
    for revision, _ in _events(streams):
        if revision in seen:
            yield f"unique: revision {revision} was told twice"
        seen.add(revision)


def _reliable(streams: Sequence[Stream], ledger: Sequence[Entry]) -> Iterator[str]:
    missing = set(range(streams[0].after + 1, len(ledger) + 1)) - {revision for revision, _ in _events(streams)}
    if missing:
        yield f"reliable: never told of {sorted(missing)[:10]}"
    for revision, event in _events(streams):
        if not 0 < revision <= len(ledger) or ledger[revision - 1].hash != event.hash:
            yield f"reliable: revision {revision} is not what is stored"


def _atomic(streams: Sequence[Stream], ledger: Sequence[Entry]) -> Iterator[str]:
    for revision, event in _events(streams):
        if 0 < revision <= len(ledger) and event.changes != ledger[revision - 1].changes:
            yield f"atomic: of revision {revision} {event.changes} was told, and {ledger[revision - 1].changes} was committed"


def _bookmarks(streams: Sequence[Stream]) -> Iterator[str]:
    """Resumable and bookmarkable: a position, of whatever message, means that everything up to it was told, and nothing beyond."""
    for before, stream in zip([None, *streams], streams, strict=False):
        position = stream.after
        if before is not None and before.told and stream.after != before.told[-1].revision:
            yield f"resumable: a stream was asked for after {stream.after}, and {before.told[-1].revision} was told before"
        for told in stream.told:
            expected = position + 1 if told.event is not None else position
            if told.revision != expected:
                yield f"bookmarkable: position {told.revision} where it was {expected}"
            position = told.revision

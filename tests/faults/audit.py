"""Reads a whole database as the superuser and says what of it does not fit together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from server.repository import codec, event_codec, tables
from server.statemachine import event as told
from server.statemachine.document import sha256
from server.statemachine.states import PhaseState
from server.statemachine.values import FlowKey, Tenant

Key = tuple[UUID, UUID, UUID]


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is stored: the hash of each flow's events in order of revision, and the request ids that were answered."""

    hashes: dict[UUID, tuple[bytes, ...]]
    requests: frozenset[UUID]

    @property
    def events(self) -> int:
        """How many events there are."""
        return sum(len(hashes) for hashes in self.hashes.values())


async def audit(url: str) -> Ledger:
    """What the database holds. Raises AssertionError with every half commit, gap and broken link in it."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            flows = {_key(row): row for row in await connection.fetch("SELECT * FROM flows")}
            events: dict[Key, list[Any]] = defaultdict(list)
            for row in await connection.fetch("SELECT * FROM events ORDER BY revision"):
                events[_key(row)].append(row)
            children: dict[Key, dict[str, Any]] = defaultdict(dict)
            for table in tables.children.values():
                for row in await connection.fetch(f"SELECT * FROM {table.name}"):
                    children[_key(row)][row["type"]] = row
            documents: dict[Key, dict[tuple[str, str], Any]] = defaultdict(dict)
            for row in await connection.fetch("SELECT * FROM documents"):
                documents[_key(row)][row["name"], row["child_type"]] = row
            requests = await connection.fetch("SELECT client_account_id, engagement_id, flow_id, request_id FROM requests")
    finally:
        await connection.close()
    faults = [f"{name} without a flow: {key}" for name, rows in _parts(events, children, documents) for key in rows.keys() - flows.keys()]
    faults += [f"request {row['request_id']} of no flow" for row in requests if _key(row) not in flows]
    for key, flow in flows.items():
        faults += [f"{key[2]}: {fault}" for fault in _faults(key, flow, events[key], children[key], documents[key])]
    assert not faults, "\n".join(faults[:20])
    hashes = {key[2]: tuple(row["hash"] for row in rows) for key, rows in events.items()}
    return Ledger(hashes, frozenset(row["request_id"] for row in requests))


def _parts(*parts: dict[Key, Any]) -> list[tuple[str, dict[Key, Any]]]:
    return list(zip(("events", "children", "documents"), parts, strict=True))


def _key(row: Any) -> Key:
    return row["client_account_id"], row["engagement_id"], row["flow_id"]


def _faults(key: Key, flow: Any, rows: list[Any], children: dict[str, Any], documents: dict[tuple[str, str], Any]) -> list[str]:
    faults = []
    revisions = [row["revision"] for row in rows]
    if revisions != list(range(1, flow["revision"] + 1)):
        return [f"is at revision {flow['revision']} and has events of {revisions[:20]}"]
    link = event_codec.NO_HASH
    phases: dict[tuple[str, str], Any] = {}
    begun: dict[str, UUID] = {}
    written: dict[tuple[str, str], tuple[int, bytes]] = {}
    for row in rows:
        event = event_codec.event_from_row(row["revision"], row["time"], row["actor"], row["body"])
        content = sha256(event_codec.content_of(row["time"], row["actor"], row["body"]))
        link = event_codec.chained(link, FlowKey(Tenant(key[0], key[1]), key[2]), row["revision"], content)
        if row["hash"] != link:
            faults.append(f"the hash chain breaks at revision {row['revision']}")
            link = row["hash"]
        for fact in event.facts:
            match fact:
                case told.ChildStarted():
                    begun[fact.type] = fact.child_flow_id
                case told.PhaseChanged():
                    phases[fact.child_type, fact.after.name] = fact.after
                case told.DocumentChanged():
                    written[fact.place.name, fact.place.child_type] = event.revision, fact.sha256
    if flow["head_hash"] != link:
        faults.append("the row's hash is not its last event's")
    if (flow["status"], flow["progress"]) != (event.status.name, event.progress):
        faults.append(f"is {flow['status']} at {flow['progress']}, its last event says {event.status.name} at {event.progress}")
    if {name: row["child_flow_id"] for name, row in children.items()} != begun:
        faults.append(f"has children {sorted(children)}, its events began {sorted(begun)}")
    for name, row in children.items():
        for phase in (codec.phase_from_json(found) for found in orjson.loads(row["phases"])):
            said = phases.get((name, phase.name))
            if phase != said and (said is not None or phase.state is not PhaseState.NOT_STARTED):
                faults.append(f"phase {phase.name} is {phase}, its events say {said}")
    if {place: (row["revision"], row["sha256"]) for place, row in documents.items()} != written:
        faults.append(f"has documents {sorted(documents)}, its events wrote {written}")
    return faults

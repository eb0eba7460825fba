"""Ways in which a flow is damaged: SQL as a superuser would run it, on a database whose constraints are gone, and what is found then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from server.statemachine.finding import FindingKind

K = FindingKind

# Every CHECK, foreign key and NOT NULL that is not part of a key goes: damage does not ask for leave.
UNBOUND = """
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f') LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', found.tab, found.conname);
    END LOOP;
    FOR found IN SELECT a.attrelid::regclass AS tab, a.attname FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
        WHERE a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)) LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', found.tab, found.attname);
    END LOOP;
END $$
"""


@dataclass(frozen=True, slots=True)
class Damage:
    """One way; ``sql`` takes the flow's id as $1. ``needs`` says what the flow must have for it."""

    sql: str
    finds: FindingKind
    field: str = ""
    needs: str = ""


def _row(assignment: str) -> str:
    return f"UPDATE flows SET {assignment} WHERE flow_id = $1"


def _child(assignment: str) -> str:
    return f"UPDATE discovery_flows SET {assignment} WHERE flow_id = $1"


def _phase(at: int, path: str, value: str) -> str:
    return _child(f"phases = jsonb_set(phases, '{{{at},{path}}}', '{value}')")


_LAST = "(SELECT max(revision) FROM events WHERE flow_id = $1)"
_MIDDLE = "(SELECT (max(revision) + 1) / 2 FROM events WHERE flow_id = $1)"

# Of the row alone, and of what can be derived.
ROW: Mapping[str, Damage] = MappingProxyType(
    {
        "progress 150": Damage(_row("progress = 150"), K.DERIVED_WRONG, "progress"),
        "progress NaN": Damage(_row("progress = 'NaN'"), K.DERIVED_WRONG, "progress"),
        "progress infinite": Damage(_row("progress = '-Infinity'"), K.DERIVED_WRONG, "progress"),
        "progress missing": Damage(_row("progress = NULL"), K.DERIVED_WRONG, "progress"),
        "status unknown": Damage(_row("status = 'SLEEPING'"), K.DERIVED_WRONG, "status"),
        "status of another": Damage(_row("status = 'CANCELLED'"), K.DERIVED_WRONG, "status", "not cancelled"),
        "current phases with holes": Damage(_row("current_phases = ARRAY[NULL, 'data_import']"), K.DERIVED_WRONG, "current_phases"),
        "current phases in two dimensions": Damage(_row("current_phases = '{{a,b},{c,d}}'"), K.DERIVED_WRONG, "current_phases"),
        "current child unknown": Damage(_row("current_child = 'laundry'"), K.DERIVED_WRONG, "current_child"),
        "ended and not ended": Damage(_row("end_time = CASE WHEN end_time IS NULL THEN update_time END"), K.DERIVED_WRONG, "end_time"),
        "type unknown": Damage(_row("type = 'laundry'"), K.FIELD_INVALID, "type"),
        "type missing": Damage(_row("type = NULL"), K.FIELD_MISSING, "type"),
        "type of another journey": Damage(_row("type = 'execution'"), K.CHILD_UNEXPECTED),
        "hold unknown": Damage(_row("hold = 'HELD'"), K.FIELD_INVALID, "hold"),
        "hold changed": Damage(_row("hold = 'PAUSED', status = 'PAUSED', end_time = NULL"), K.ROW_DIFFERS, "hold", "running"),
        "name missing": Damage(_row("display_name = NULL"), K.FIELD_MISSING, "display_name"),
        "name changed": Damage(_row("display_name = 'Mallory''s'"), K.ROW_DIFFERS, "display_name"),
        "labels a list": Damage(_row("labels = '[1, 2]'"), K.FIELD_INVALID, "labels"),
        "labels of numbers": Damage(_row("""labels = '{"a": 1}'"""), K.FIELD_INVALID, "labels"),
        "labels nested without end": Damage(_row("labels = (repeat('[', 3000) || repeat(']', 3000))::jsonb"), K.FIELD_MISSING, "type"),
        "totals too few": Damage(_row("totals = '{1,2}'"), K.FIELD_INVALID, "totals"),
        "totals with holes": Damage(_row("totals = '{1,NULL,0,0,0,0,0}'"), K.FIELD_INVALID, "totals"),
        "totals wrong": Damage(_row("totals = '{77,0,0,0,0,0,0}'"), K.ROW_DIFFERS, "totals"),
        "created in the year 20000": Damage(_row("create_time = '20000-01-01Z'"), K.FIELD_INVALID, "create_time"),
        "updated never": Damage(_row("update_time = 'infinity'"), K.FIELD_INVALID, "update_time"),
        "updated by nobody": Damage(_row("updated_by = ''"), K.FIELD_MISSING, "updated_by"),
        "deleted in secret": Damage(_row("delete_time = update_time"), K.ROW_DIFFERS, "delete_time", "not deleted"),
        "half an origin": Damage(_row("origin_revision = 3"), K.FIELD_INVALID, "origin_revision"),
        "hash cut off": Damage(_row("head_hash = '\\x0102'"), K.FIELD_INVALID, "head_hash"),
        "hash of something else": Damage(_row("head_hash = sha256('x')"), K.CHAIN_BROKEN, "head_hash"),
        "revision behind its events": Damage(_row("revision = revision - 1"), K.REVISION, "revision", "two revisions"),
        "revision ahead of its events": Damage(_row("revision = revision + 3"), K.REVISION, "revision"),
        "revision nought": Damage(_row("revision = 0"), K.FIELD_INVALID, "revision"),
        "revision missing": Damage(_row("revision = NULL"), K.FIELD_MISSING, "revision"),
        "row gone": Damage("DELETE FROM flows WHERE flow_id = $1", K.ROW_DIFFERS),
    }
)
CHILDREN: Mapping[str, Damage] = MappingProxyType(
    {
        "phase state unknown": Damage(_phase(0, "state", '"DONE"'), K.PHASE_STATE, "state"),
        "phase state impossible": Damage(_phase(4, "state", '"IN_PROGRESS"'), K.PHASE_STATE, "state", "early"),
        "fraction moved": Damage(_phase(0, "fraction", "0.95"), K.ROW_DIFFERS, "phases", "importing"),
        "phase without a state": Damage(_child("phases = phases #- '{1,state}'"), K.FIELD_MISSING, "state"),
        "phase renamed": Damage(_phase(1, "name", '"laundry"'), K.PHASES_UNKNOWN, "phases"),
        "phase removed": Damage(_child("phases = phases - 2"), K.PHASES_UNKNOWN, "phases"),
        "phases an object": Damage(_child("phases = '{}'"), K.FIELD_INVALID, "phases"),
        "phases of numbers": Damage(_child("phases = '[1,2,3]'"), K.PHASES_UNKNOWN, "phases"),
        "phases missing": Damage(_child("phases = NULL"), K.FIELD_MISSING, "phases"),
        "fraction 7": Damage(_phase(0, "fraction", "7"), K.FIELD_INVALID, "fraction"),
        "retry count a text": Damage(_phase(0, "retry_count", '"many"'), K.FIELD_INVALID, "retry_count"),
        "failure unknown": Damage(_phase(0, "failure", '{"code": "GREMLINS", "message": ""}'), K.FIELD_INVALID, "failure.code"),
        "failure a text": Damage(_phase(0, "failure", '"oops"'), K.FIELD_INVALID, "failure"),
        "time a number": Damage(_phase(0, "state_time", "12"), K.FIELD_INVALID, "state_time"),
        "time without a zone": Damage(_phase(0, "state_time", '"2026-01-01T00:00:00"'), K.FIELD_INVALID, "state_time"),
        "child's progress": Damage(_child("progress = progress + 1"), K.DERIVED_WRONG, "progress"),
        "child's status": Damage(_child("status = 'PLANNED'"), K.DERIVED_WRONG, "status"),
        "child's id": Damage(_child("child_flow_id = gen_random_uuid()"), K.ROW_DIFFERS, "child_flow_id"),
        "child's id missing": Damage(_child("child_flow_id = NULL"), K.FIELD_MISSING, "child_flow_id"),
        "definition unknown": Damage(_child("definition_version = 9"), K.PHASES_UNKNOWN, "definition_version"),
        "child missing": Damage("DELETE FROM discovery_flows WHERE flow_id = $1", K.CHILD_MISSING),
        "child nobody began": Damage(
            "INSERT INTO custom_flows SELECT client_account_id, engagement_id, flow_id, gen_random_uuid(), 0, create_time, create_time, 1, "
            "'laundry', 'ACTIVE', '[]' FROM flows WHERE flow_id = $1",
            K.CHILD_UNEXPECTED,
        ),
    }
)
DOCUMENTS: Mapping[str, Damage] = MappingProxyType(
    {
        "document damaged": Damage("UPDATE documents SET body = 'x' WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_DAMAGED),
        "document cut off": Damage(
            "UPDATE documents SET body = substr(body, 1, octet_length(body) - 3) WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_DAMAGED
        ),
        "document of a bit less": Damage(
            "UPDATE documents SET body = set_byte(body, octet_length(body) - 6, get_byte(body, octet_length(body) - 6) # 16) "
            "WHERE flow_id = $1 AND name = 'state'",
            K.DOCUMENT_DAMAGED,
        ),
        "document that promises too much": Damage(
            "UPDATE documents SET body = '\\x28b52ffde0ffffffffffffff7f0000' WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_DAMAGED
        ),
        "document without bytes": Damage("UPDATE documents SET body = NULL WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_DAMAGED),
        "document's hash": Damage("UPDATE documents SET sha256 = sha256('x') WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_HASH),
        "document's size": Damage("UPDATE documents SET size = 3 WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_HASH),
        "document's revision": Damage(
            "UPDATE documents SET revision = revision + 1 WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_HASH
        ),
        "document missing": Damage("DELETE FROM documents WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_MISSING),
        "document nobody wrote": Damage(
            "INSERT INTO documents SELECT client_account_id, engagement_id, flow_id, revision, size, 'metadata', '', sha256, body, 1 "
            "FROM documents WHERE flow_id = $1 AND name = 'state'",
            K.DOCUMENT_HASH,
            needs="no metadata",
        ),
        "document of no name": Damage("UPDATE documents SET name = 'estate' WHERE flow_id = $1 AND name = 'state'", K.DOCUMENT_DAMAGED),
    }
)
ACTIVITY: Mapping[str, Damage] = MappingProxyType(
    {
        "activity unreadable": Damage("UPDATE activity SET body = '{' WHERE flow_id = $1", K.FIELD_INVALID, "activity.body"),
        "activity of another kind": Damage('UPDATE activity SET body = \'{"kind": "MEMORY"}\' WHERE flow_id = $1', K.FIELD_INVALID),
        "activity in the wrong slot": Damage("UPDATE activity SET slot = slot + 9 WHERE flow_id = $1", K.FIELD_INVALID, "activity.slot"),
        "activity missing": Damage("DELETE FROM activity WHERE flow_id = $1", K.FIELD_INVALID, "activity"),
    }
)
HISTORY: Mapping[str, Damage] = MappingProxyType(
    {
        "last event missing": Damage(f"DELETE FROM events WHERE flow_id = $1 AND revision = {_LAST}", K.EVENT_MISSING),
        "first event missing": Damage("DELETE FROM events WHERE flow_id = $1 AND revision = 1", K.EVENT_MISSING),
        "event missing in the middle": Damage(
            f"DELETE FROM events WHERE flow_id = $1 AND revision = {_MIDDLE}", K.EVENT_MISSING, needs="three revisions"
        ),
        "all events missing": Damage("DELETE FROM events WHERE flow_id = $1", K.EVENT_MISSING),
        "event unreadable": Damage(f"UPDATE events SET body = '{{' WHERE flow_id = $1 AND revision = {_MIDDLE}", K.EVENT_DAMAGED),
        "last event unreadable": Damage(f"UPDATE events SET body = '' WHERE flow_id = $1 AND revision = {_LAST}", K.EVENT_DAMAGED),
        "event of nothing": Damage(f"UPDATE events SET body = NULL WHERE flow_id = $1 AND revision = {_MIDDLE}", K.EVENT_DAMAGED),
        "event at no time": Damage(f"UPDATE events SET time = '-infinity' WHERE flow_id = $1 AND revision = {_MIDDLE}", K.EVENT_DAMAGED),
        "event that makes no sense": Damage(
            f'UPDATE events SET body = \'{{"status": "ACTIVE", "progress": [], "facts": []}}\' WHERE flow_id = $1 AND revision = {_MIDDLE}',
            K.EVENT_DAMAGED,
        ),
        "event's actor changed": Damage(f"UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = {_MIDDLE}", K.CHAIN_BROKEN),
        "last event's actor changed": Damage(
            f"UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = {_LAST}", K.CHAIN_BROKEN
        ),
        "event's hash": Damage(f"UPDATE events SET hash = sha256('x') WHERE flow_id = $1 AND revision = {_MIDDLE}", K.CHAIN_BROKEN),
        "last event's hash": Damage(f"UPDATE events SET hash = sha256('x') WHERE flow_id = $1 AND revision = {_LAST}", K.CHAIN_BROKEN),
        "event without a hash": Damage(f"UPDATE events SET hash = NULL WHERE flow_id = $1 AND revision = {_MIDDLE}", K.CHAIN_BROKEN),
        "an event too many": Damage(
            "INSERT INTO events SELECT client_account_id, engagement_id, flow_id, revision + 1, time, actor, body, hash, format "
            f"FROM events WHERE flow_id = $1 AND revision = {_LAST}",
            K.CHAIN_BROKEN,
        ),
        "base unreadable": Damage("UPDATE bases SET body = 'x' WHERE flow_id = $1", K.HISTORY_DAMAGED, needs="base"),
        "base missing": Damage("DELETE FROM bases WHERE flow_id = $1", K.HISTORY_DAMAGED, needs="base"),
        "base's hash": Damage("UPDATE bases SET hash = sha256('x') WHERE flow_id = $1", K.HISTORY_DAMAGED, needs="base"),
        "earlier document damaged": Damage(
            "UPDATE document_versions SET body = 'x' WHERE flow_id = $1", K.HISTORY_DAMAGED, needs="versions"
        ),
        "earlier document missing": Damage("DELETE FROM document_versions WHERE flow_id = $1", K.HISTORY_DAMAGED, needs="versions"),
    }
)
WAYS: Mapping[str, Damage] = MappingProxyType({**ROW, **CHILDREN, **DOCUMENTS, **ACTIVITY, **HISTORY})

"""Each error is a sentence that names the field, the limit, or the way out."""

from __future__ import annotations

from uuid import UUID

import pytest

from server.statemachine import errors as e

FLOW = UUID(int=7)


@pytest.mark.parametrize(
    ("error", "reason", "sentence", "metadata"),
    [
        (e.invalid("page_size", "is -1, it must be 0 or more"), "INVALID_REQUEST", "page_size: is -1, it must be 0 or more", {}),
        (
            e.RequestIdReused(FLOW),
            "REQUEST_ID_REUSED",
            f"request_id {FLOW} was used for another request: use a new id for a new request",
            {"request_id": str(FLOW)},
        ),
        (
            e.LimitExceeded("state", 10, 11),
            "LIMIT_EXCEEDED",
            "state is 11, the limit is 10",
            {"field": "state", "limit": "10", "actual": "11"},
        ),
        (e.FlowNotFound(FLOW), "FLOW_NOT_FOUND", f"there is no flow {FLOW}", {"flow_id": str(FLOW)}),
        (e.FlowExists(FLOW), "FLOW_EXISTS", f"flow {FLOW} exists already", {"flow_id": str(FLOW)}),
        (
            e.PhaseNotFound("x", "", []),
            "PHASE_NOT_FOUND",
            "the flow has no phase 'x'; its phases are: none, it has no child yet",
            {"phase": "x", "phases": ""},
        ),
        (
            e.ConcurrentModification(3, 5),
            "CONCURRENT_MODIFICATION",
            "flow is at revision 5, not 3: read it again, then retry",
            {"expected_revision": "3", "current_revision": "5"},
        ),
        (
            e.RevisionInFuture(9, 5),
            "REVISION_IN_FUTURE",
            "flow is at revision 5 and has not reached 9",
            {"asked_revision": "9", "head_revision": "5"},
        ),
        (
            e.RevisionCompacted(2, 4, 9),
            "REVISION_COMPACTED",
            "history after revision 2 is no longer complete, the oldest kept is 4: start from a snapshot",
            {"asked_revision": "2", "oldest_revision": "4", "head_revision": "9"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, e.FlowError) else "",
)
def test_an_error_has_a_reason_a_sentence_and_metadata(error: e.FlowError, reason: str, sentence: str, metadata: dict[str, str]) -> None:
    assert (error.reason, str(error), error.metadata) == (reason, sentence, metadata)


def test_all_faulty_fields_are_named_at_once() -> None:
    error = e.InvalidRequest([e.Violation("page_size", "is negative"), e.Violation("filter", "is too long")])
    assert str(error) == "page_size: is negative; filter: is too long"
    assert [violation.field for violation in error.violations] == ["page_size", "filter"]


def test_of_many_faulty_fields_the_sentence_names_three_and_counts_the_rest() -> None:
    error = e.InvalidRequest([e.Violation(f"f{number}", "is wrong") for number in range(5)])
    assert str(error) == "f0: is wrong; f1: is wrong; f2: is wrong (and 2 more)"


def test_a_lost_race_tells_both_revisions() -> None:
    error = e.ConcurrentModification(3, 5)
    assert (error.expected, error.current) == (3, 5)

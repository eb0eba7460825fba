"""What people see and are asked: pictures, sentences, questions."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from flowledger.v1 import activity_pb2, event_pb2, flow_pb2
from flowledger_client.text import event_text
from google.protobuf import duration_pb2
from rich.console import Console

from examples.discovery.approval import NobodyToAsk, prompted
from examples.discovery.prompt import Prompt
from examples.discovery.screen import standard_console
from examples.discovery.view import FlowPicture, PhaseLine, picture_of
from tests.examples.inventories import FEDORA, mapped

PS = flow_pb2.PhaseState


def changed(phase: str, before: str, after: str, **fields: object) -> event_pb2.EventChange:
    return event_pb2.EventChange(
        phase=event_pb2.PhaseChanged(
            child_type="discovery",
            phase=phase,
            from_state=PS.Value(f"PHASE_STATE_{before}"),
            to_state=PS.Value(f"PHASE_STATE_{after}"),
            **fields,  # type: ignore[arg-type]
        )
    )


def replaced(cause: str, **fields: object) -> event_pb2.EventChange:
    number = event_pb2.ReplacementCause.Value(f"REPLACEMENT_CAUSE_{cause}")
    return event_pb2.EventChange(replaced=event_pb2.FlowReplaced(cause=number, **fields))  # type: ignore[arg-type]


PAUSE = event_pb2.HoldChanged(to_hold=event_pb2.FLOW_HOLD_PAUSED, reason="lunch")
TWO_SECONDS = duration_pb2.Duration(seconds=2)
TIMING = activity_pb2.ActivityEntry(kind=activity_pb2.ACTIVITY_KIND_TIMING, phase="a", duration=TWO_SECONDS, value=9, unit="rows/s")
TIMEOUT = flow_pb2.PhaseFailure(code=flow_pb2.FAILURE_CODE_AGENT_TIMEOUT, message="no answer")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (event_pb2.EventChange(created=event_pb2.FlowCreated(type="discovery", display_name="Fleet")), "Fleet was created"),
        (event_pb2.EventChange(child_started=event_pb2.ChildStarted(type="discovery")), "its discovery began"),
        (changed("a", "NOT_STARTED", "IN_PROGRESS"), "a began"),
        (changed("a", "RETRY_NEEDED", "IN_PROGRESS", retry_count=2, reason="again"), "a began again, retry 2: again"),
        (changed("a", "IN_PROGRESS", "IN_PROGRESS", to_fraction=0.5, reason="5 of 10"), "a is at 50%: 5 of 10"),
        (changed("a", "IN_PROGRESS", "COMPLETED", reason="all found"), "a is complete: all found"),
        (changed("a", "IN_PROGRESS", "WAITING_APPROVAL"), "a waits for approval"),
        (changed("a", "WAITING_APPROVAL", "COMPLETED", reason="fine"), "a was approved: fine"),
        (changed("a", "WAITING_APPROVAL", "RETRY_NEEDED", reason="no"), "a was rejected: no"),
        (changed("a", "IN_PROGRESS", "RETRY_NEEDED", failure=TIMEOUT), "a failed and may be retried, AGENT_TIMEOUT: no answer"),
        (changed("a", "IN_PROGRESS", "FAILED", failure=TIMEOUT), "a failed for good, AGENT_TIMEOUT: no answer"),
        (changed("b", "COMPLETED", "ROLLED_BACK", taken_along_by="a"), "b is rolled back, taken along by a"),
        (
            event_pb2.EventChange(hold=event_pb2.HoldChanged(to_hold=event_pb2.FLOW_HOLD_PAUSED, reason="lunch")),
            "the flow is now paused: lunch",
        ),
        (event_pb2.EventChange(document=event_pb2.DocumentChanged(document="state", size_bytes=12)), "state is now 12 bytes"),
        (
            event_pb2.EventChange(document=event_pb2.DocumentChanged(document="data", child_type="discovery", size_bytes=2048)),
            "discovery data is now 2.0 KiB",
        ),
        (
            event_pb2.EventChange(activity=event_pb2.ActivityRecorded(entries=[TIMING])),
            "a took 2,000 ms, 9 rows/s",
        ),
        (event_pb2.EventChange(deleted=event_pb2.FlowDeleted(reason="old")), "the flow was deleted: old"),
        (event_pb2.EventChange(undeleted=event_pb2.FlowUndeleted()), "the flow was brought back"),
        (replaced("REVERT", source_revision=7, reason="wrong wave"), "the flow went back to revision 7: wrong wave"),
        (replaced("FORK", source_revision=7, source_flow_id="f"), "the flow began as a copy of f, revision 7"),
        (replaced("RESTORE", source_revision=7, source_checkpoint_id="c"), "checkpoint c was restored, of revision 7"),
        (replaced("RECOVERY", source_revision=7), "the flow was recovered from revision 7"),
        (
            replaced("RECOVERY", source_revision=7, source_checkpoint_id="c", children_removed=["planning"], documents_removed=["state"]),
            "the flow was recovered from checkpoint c, without its planning, state",
        ),
        (replaced("RECOVERY"), "the flow was recovered from what could be derived"),
        (event_pb2.EventChange(lost=event_pb2.EventLost()), "what happened here was lost"),
        (event_pb2.EventChange(), "something newer than this client: a change without a name"),
        (
            event_pb2.EventChange(phase=event_pb2.PhaseChanged(phase="a", to_state=99)),  # type: ignore[arg-type]
            "a is 99",
        ),
    ],
)
def test_an_event_reads_as_a_sentence(change: event_pb2.EventChange, sentence: str) -> None:
    assert event_text(event_pb2.FlowEvent(changes=[change])) == sentence


def test_an_event_tells_first_that_everything_was_replaced() -> None:
    event = event_pb2.FlowEvent(changes=[changed("a", "COMPLETED", "NOT_STARTED"), replaced("REVERT", source_revision=1)])
    assert event_text(event) == "the flow went back to revision 1; a is not started"


def test_an_event_tells_of_phases_first_and_of_progress_that_fell() -> None:
    document = event_pb2.EventChange(document=event_pb2.DocumentChanged(document="state", size_bytes=12))
    event = event_pb2.FlowEvent(changes=[document, changed("a", "IN_PROGRESS", "COMPLETED")], progress_regressed=True)
    assert event_text(event) == "a is complete; state is now 12 bytes (progress fell)"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_picture_fits_its_terminal(width: int) -> None:
    picture = FlowPicture("Discovery of servers.csv", flow_pb2.FLOW_STATUS_DISCOVERY, 42.0, 17)
    for state in PS.values():
        if state:
            picture.phases["discovery", str(state)] = PhaseLine(
                "dependency_analysis", state, 0.5, "200 of 371 rows with a long message behind", 1
            )
    picture.events.append("  17  " + "a very long event " * 10)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, color_system=None)
    with console.capture() as captured:
        console.print(picture_of(picture, width))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 1 + 8 + 1
    assert "revision 17" in lines[0]
    assert "in progress, retry 1" in captured.get()


def test_without_a_terminal_the_console_is_plain_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    console = standard_console()
    assert (console.is_terminal, console.width) == (False, 80)


def scripted(*answers: str) -> Callable[[str], Awaitable[str]]:
    left: Iterator[str] = iter(answers)

    async def read(question: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


async def test_a_reviewer_can_reject_and_correct_and_mistakes_are_asked_again() -> None:
    _, mapping = mapped(FEDORA)
    out = io.StringIO()
    read = scripted("", "n", "not a disk", "nonsense", "nothing=host", "lvm_size_mb=nothing", "LVM_SIZE_MB=-", "")
    decision = await prompted(Console(file=out, width=80), nullcontext, read)(mapping)
    assert (decision.approved, decision.words, decision.corrections) == (False, "not a disk", {"LVM_SIZE_MB": "-"})
    assert "'nonsense' is not column=field" in out.getvalue()
    assert "2 matches need a look" in out.getvalue()


async def test_a_reviewer_can_approve_or_give_a_reason_at_once() -> None:
    _, mapping = mapped(FEDORA)
    console = Console(file=io.StringIO())
    assert (await prompted(console, nullcontext, scripted("Yes"))(mapping)).approved
    decision = await prompted(console, nullcontext, scripted("the vpn column is wrong", ""))(mapping)
    assert (decision.approved, decision.words) == (False, "the vpn column is wrong")


async def test_silence_is_no_approval() -> None:
    _, mapping = mapped(FEDORA)
    with pytest.raises(NobodyToAsk):
        await prompted(Console(file=io.StringIO()), nullcontext, scripted())(mapping)


async def test_answers_come_line_by_line_from_a_pipe_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(writing, b"one\r\ntwo\nthr")
        os.write(writing, b"ee")
        os.close(writing)
        prompt = Prompt()
        assert [await prompt.line("?"), await prompt.line("?"), await prompt.line("?")] == ["one", "two", "three"]
        with pytest.raises(EOFError):
            await prompt.line("?")


async def test_nobody_answers_from_dev_null(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as stdin:  # noqa: ASYNC230 - /dev/null does not block
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(EOFError):
            await Prompt().line("?")

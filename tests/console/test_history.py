"""`history` and `diff`: what happened, read by a person and by a program."""

from __future__ import annotations

import re

import pytest

from tests.console.shell import Shell
from tests.tenancy import Tenancy


async def test_history_tells_each_event_in_one_line_the_newest_last(shell: Shell, flow: str) -> None:
    heading, *events, summary = (await shell.ok("history", flow)).lines
    assert re.match(r"rev +time \+0545 +who +% +what$", heading)
    assert [line.split()[0] for line in events] == ["1", "2", "3", "4"]
    assert re.match(r" +1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ada +0\.0  Data centre north was created; its discovery began", events[0])
    assert events[2].endswith("data_import is complete")
    assert events[3].endswith("state is now 10 bytes")
    assert re.fullmatch(r"[A-Z_]+, 14\.3 %, at revision 4\.", summary)


async def test_history_shows_the_newest_and_says_how_many_there_are(shell: Shell, flow: str) -> None:
    shown = (await shell.ok("history", flow, "-n", "2")).lines
    assert [line.split()[0] for line in shown[1:-1]] == ["3", "4"]
    assert shown[-1].endswith("2 earlier events: --all shows everything.")
    everything = (await shell.ok("history", flow, "-n", "2", "--all")).lines
    assert [line.split()[0] for line in everything[1:-1]] == ["1", "2", "3", "4"]


async def test_history_in_json_is_an_event_a_line(shell: Shell, flow: str) -> None:
    events = (await shell.ok("history", flow, "--json")).documents
    assert [event["revision"] for event in events] == ["1", "2", "3", "4"]
    assert events[1]["changes"][0]["phase"]["toState"] == "PHASE_STATE_IN_PROGRESS"
    assert events[1]["progressRegressed"] is False


@pytest.mark.parametrize(
    ("options", "revisions"),
    [
        (["--after", "2"], ["3", "4"]),
        (["--after", "4"], []),
        (["--phase", "data_import"], ["2", "3"]),
        (["--phase", "data_import", "-n", "1"], ["3"]),
        (["--kind", "document-changed", "--kind", "flow-created"], ["1", "4"]),
        (["--actor", "eve"], []),
        (["--since", "1h"], ["1", "2", "3", "4"]),
    ],
)
async def test_history_is_narrowed(shell: Shell, flow: str, options: list[str], revisions: list[str]) -> None:
    assert [event["revision"] for event in (await shell.ok("history", flow, "--json", *options)).documents] == revisions


async def test_a_history_without_such_events_says_so(shell: Shell, flow: str) -> None:
    assert (await shell.ok("history", flow, "--after", "4")).out == f"Nothing came after that: {flow} is at revision 4.\n"
    assert (await shell.ok("history", flow, "--actor", "eve")).out == f"No event of {flow} matches.\n"


async def test_history_follows_a_flow_to_its_end(shell: Shell, flow: str, tenancy: Tenancy) -> None:
    await tenancy.call("CancelFlow", flow_id=flow, cancel={"reason": "enough"})
    shown = (await shell.ok("history", flow, "-n", "1", "--follow")).lines
    assert shown[1].endswith("the flow is now cancelled: enough")
    assert shown[-1].startswith("That is all: ")


async def test_what_callers_wrote_cannot_harm_the_terminal(shell: Shell, tenancy: Tenancy) -> None:
    flow = (await tenancy.create(display_name="\x1b[2J\x1b]0;owned\x07 名前")).flow_id
    for command in ("history", "diff"):
        await tenancy.call("UpdateFlow", flow_id=flow, update={"display_name": f"\x1b[31m{command}"})
        assert "\x1b" not in (await shell.ok(command, flow)).out


async def test_diff_tells_what_differs(shell: Shell, flow: str) -> None:
    shown = (await shell.ok("diff", flow, "--from", "1", "--to", "4")).out
    assert shown.startswith("revision 1 -> revision 4:  INITIALIZED 0.0 % -> ")
    assert re.search(r"discovery/data_import +not started +completed", shown)
    assert "state /wave: 3 added" in shown
    document = (await shell.ok("diff", flow, "--from", "1", "--to", "4", "--json")).document
    assert (document["fromRevision"], document["toRevision"]) == ("1", "4")
    assert document["documents"][0]["jsonPatch"]


async def test_diff_without_revisions_is_of_the_last_change(shell: Shell, flow: str) -> None:
    last = (await shell.ok("diff", flow, "--json")).document
    assert (last["fromRevision"], last["toRevision"]) == ("3", "4")
    since = (await shell.ok("diff", flow, "--from", "2", "--json")).document
    assert (since["fromRevision"], since["toRevision"]) == ("2", "4")


async def test_a_revision_does_not_differ_from_itself(shell: Shell, flow: str) -> None:
    assert (await shell.ok("diff", flow, "--from", "2", "--to", "2")).out == "Nothing differs.\n"


async def test_a_revision_that_never_was_is_named_in_the_refusal(shell: Shell, flow: str) -> None:
    result = await shell.run("diff", flow, "--from", "1", "--to", "99")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"flowledger: [^\n]*4[^\n]* \(REVISION_IN_FUTURE\)\n", result.err)

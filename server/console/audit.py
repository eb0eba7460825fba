"""`flowledger audit ...`: whether history is as it was written, and a signed copy of it to keep elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from flowledger.v1 import admin_service_pb2 as pb
from flowledger.v1 import audit_pb2
from rich.text import Text

from server.console.calling import FOUND_WRONG, OPERATORS, Failed, Operator, command
from server.console.screen import Column
from server.console.wording import counted, name, size


def add(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="The chain of hashes over all events: verify, export.")
    app.add_typer(group, name="audit", rich_help_panel=OPERATORS)
    command(group, "verify")(verify)
    command(group, "export")(export)


def verify(
    operator: Operator,
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="The flow's id; without it, all flows.", show_default=False)] = "",
) -> None:
    """Follow the chain of one flow, or of all, and name each first link that is broken. Ends with code 3 when one is."""
    screen = operator.screen
    found = pb.VerifyAuditResponse()
    with screen.waiting() as told:
        for message in operator.admin.VerifyAudit(pb.VerifyAuditRequest(flow_id=flow)):
            found.MergeFrom(message)
            told(f"{counted(found.summary.events, 'event')} of {counted(found.summary.flows, 'flow')} so far")
    if not found.done:
        raise Failed("the audit broke off before its end: run it again")
    if screen.json:
        screen.document(found)
    else:
        _show(operator, found)
    if found.summary.broken_flows:
        raise typer.Exit(FOUND_WRONG)


def export(
    operator: Operator,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; it must not be there yet.", show_default=False)],
    flow: Annotated[str, typer.Option("--flow", metavar="FLOW", help="Only this flow.")] = "",
    hashes: Annotated[bool, typer.Option("--without-content", help="Hashes only, nothing of what stands in the events.")] = False,
) -> None:
    """Write all events with their hashes into a file, in signed pages, for flowledger_client.audit_export to verify anywhere."""
    if file.exists():
        raise typer.BadParameter(f"{file} is there already, and what was kept is not overwritten", param_hint="FILE")
    screen = operator.screen
    half = file.with_name(f"{file.name}.part")  # whoever finds the file finds all of it
    opening = closing = pb.ExportAuditResponse()
    pages = 0
    try:
        with half.open("wb") as kept, screen.waiting() as told:
            for message in operator.admin.ExportAudit(pb.ExportAuditRequest(flow_id=flow, without_content=hashes)):
                body = message.SerializeToString()
                kept.write(len(body).to_bytes(4, "big") + body)
                if message.public_key:
                    opening = message
                elif message.head_hash:
                    closing = message
                else:
                    pages += 1
                    told(f"{counted(pages, 'page')} so far")
        if not closing.head_hash:
            raise Failed("the export broke off before its end: run it again")
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)
    if screen.json:
        closing.MergeFrom(opening)
        screen.document(closing)
        return
    summary = closing.summary
    went = f"{counted(summary.events, 'event')} of {counted(summary.flows, 'flow')} in {counted(pages, 'page')}"
    screen.line(f"{went}: {file}, {size(file.stat().st_size)}.")
    _digests(operator, ("key", opening.public_key), ("head", closing.head_hash), ("digest", summary.digest))
    screen.line("Keep key and head somewhere else than the file: together they tell whether it is the one that was written now.")
    screen.hint("To verify it, anywhere", f"python -m flowledger_client.audit_export verify {file} {opening.public_key.hex()}")


def _show(operator: Operator, found: pb.VerifyAuditResponse) -> None:
    screen, summary = operator.screen, found.summary
    went = f"{counted(summary.events, 'event')} of {counted(summary.flows, 'flow')}"
    erased = f", {summary.erased_events:,} of them erased but for their hashes" if summary.erased_events else ""
    if not summary.broken_flows:
        screen.line(f"{went}{erased}: each follows from the one before.", "green")
    else:
        screen.line(Text(f"{went}{erased}: the chain of {counted(summary.broken_flows, 'flow')} is broken.", "bold red"))
        columns = Column("flow"), Column("rev", right=True), Column("how"), Column("what was seen")
        screen.table(columns, [_row(broken) for broken in found.breaks])
        if summary.broken_flows > len(found.breaks):
            screen.line(f"... and {summary.broken_flows - len(found.breaks):,} more flows", "dim")
    _digests(operator, ("digest", summary.digest))
    if not summary.broken_flows:
        screen.line("Compare the digest with one that you kept elsewhere: whoever rewrites a chain to its end is found only so.", "dim")


def _row(broken: audit_pb2.AuditBreak) -> tuple[str | Text, ...]:
    how = Text(name(audit_pb2.BreakKind, broken.kind, "BREAK_KIND_"), "red")
    return broken.flow_id, str(broken.revision), how, broken.description


def _digests(operator: Operator, *named: tuple[str, bytes]) -> None:
    for what, digest in named:
        operator.screen.whole(Text.assemble((f"{what:<8}", "bold"), digest.hex()))

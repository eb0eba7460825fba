"""`flowledger validate` and `flowledger recover`: whether a flow is right, and bringing it back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from flowledger.v1 import flow_service_pb2 as pb
from flowledger.v1 import integrity_pb2, recovery_pb2
from rich.text import Text

from server.console.calling import FOUND_WRONG, Operator, command
from server.console.differences import LINES, show_diff
from server.console.history import Flow
from server.console.screen import Column, Screen
from server.console.wording import alike, counted, member, name, sentence, status, summed, told

DONE = {
    recovery_pb2.RECOVERY_RUNG_REPAIR: "REPAIR: nothing that was done is undone",
    recovery_pb2.RECOVERY_RUNG_REVISION: "REVISION: an earlier revision comes back",
    recovery_pb2.RECOVERY_RUNG_CHECKPOINT: "CHECKPOINT: a checkpoint comes back",
    recovery_pb2.RECOVERY_RUNG_RESET: "RESET: the flow begins anew",
}


def add(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "validate")(validate)
    command(app, "recover")(recover)


def validate(operator: Operator, flow: Flow) -> None:
    """Whether what is stored of a flow can be right. Ends with code 3 when something is wrong with it."""
    found = operator.client.flows.ValidateFlow(pb.ValidateFlowRequest(flow_id=flow))
    screen = operator.screen
    if screen.json:
        screen.document(found)
    elif not found.findings:
        screen.line(f"{flow} is as it must be, at revision {found.revision}.", "green")
    else:
        total = len(found.findings) + found.omitted_count
        screen.line(Text(f"{flow}: {counted(total, 'thing')} wrong, at revision {found.revision}", "bold"))
        show_findings(screen, found.findings, found.omitted_count)
        if found.mendable:
            screen.hint("To see what can be done", f"flowledger recover {flow} --plan")
        else:
            screen.line("The flow itself needs no recovery: what is found concerns its past, and stays.")
    if found.findings:
        raise typer.Exit(FOUND_WRONG)


def recover(
    operator: Operator,
    flow: Flow,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    rung: Annotated[
        int | None,
        typer.Option(
            parser=partial(member, enum=recovery_pb2.RecoveryRung, prefix="RECOVERY_RUNG_"),
            metavar="RUNG",
            help="How far down to go: repair, revision, checkpoint (the default), or reset, which begins the flow anew.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; stands in the history.")] = "",
) -> None:
    """Bring a damaged flow back: shows the plan, asks, does it. What is damaged is kept in quarantine."""
    screen, flows = operator.screen, operator.client.flows
    revision = flows.ValidateFlow(pb.ValidateFlowRequest(flow_id=flow)).revision  # the plan that is shown is the one that is carried out
    request = pb.RecoverFlowRequest(flow_id=flow, reason=reason, expected_revision=revision, validate_only=True)
    request.lowest_rung = rung or recovery_pb2.RECOVERY_RUNG_UNSPECIFIED  # type: ignore[assignment]
    shown = flows.RecoverFlow(request)
    possible = shown.plan.rung in DONE
    if plan or not possible:
        if screen.json:
            screen.document(shown)
        else:
            show_plan(screen, flow, shown.plan)
        if shown.plan.rung == recovery_pb2.RECOVERY_RUNG_UNSPECIFIED:
            raise typer.Exit(1)
        return
    if not (screen.json or yes):
        show_plan(screen, flow, shown.plan)
    if not operator.agrees("Recover the flow so?", yes):
        screen.line("Nothing was done.")
        return
    request.validate_only = False
    done = flows.RecoverFlow(request)
    if screen.json:
        screen.document(done)
        return
    if yes:
        show_outcome(screen, done.plan)
    said = f"Recovered. {flow} is at revision {done.flow.revision}: ", status(done.flow.status), f", {done.flow.progress_percent:.1f} %."
    screen.line(Text.assemble(*said))
    if done.plan.quarantine_id:
        screen.line(f"What was stored before is kept in quarantine as {done.plan.quarantine_id}.", "dim")


def show_findings(screen: Screen, findings: Sequence[integrity_pb2.Finding], omitted: int = 0) -> None:
    """What is wrong, a row for each that is not like others."""
    rows = [_row(group) for group in alike(findings, lambda finding: f"{finding.kind} {finding.description}")]
    if screen.narrow:  # what was seen tells where, too
        screen.table((Column("what"), Column("seen")), [(what, seen) for what, _, seen in rows])
    else:
        screen.table((Column("what"), Column("where", most=40), Column("seen")), rows)
    if omitted:
        screen.line(f"... and {omitted:,} more", "dim")


def show_plan(screen: Screen, flow: str, plan: recovery_pb2.RecoveryPlan) -> None:
    """What would be done, why not less, and what is lost."""
    if plan.findings:
        screen.line("What is wrong", "bold")
        show_findings(screen, plan.findings)
        screen.line()
    if plan.failures:
        screen.line("What does not do", "bold")
        rows = [(name(recovery_pb2.RecoveryRung, failure.rung, "RECOVERY_RUNG_"), failure.why) for failure in plan.failures]
        screen.table((Column("rung"), Column("why")), rows)
        screen.line()
    screen.line("The plan", "bold")
    if plan.rung == recovery_pb2.RECOVERY_RUNG_NONE:
        screen.line(sentence(plan.summary or f"nothing is to be done about {flow}"), "green")
        return
    if plan.rung == recovery_pb2.RECOVERY_RUNG_UNSPECIFIED:
        screen.line(sentence(plan.summary or "no rung holds"), "bold red")
        screen.hint("To begin the flow anew, and lose what it had", f"flowledger recover {flow} --rung reset")
        return
    show_outcome(screen, plan)
    if plan.HasField("diff") and plan.diff.lines:
        screen.line()
        screen.line("What changes", "bold")
        show_diff(screen, plan.diff, LINES, ("what can be read", "recovered"))


def show_outcome(screen: Screen, plan: recovery_pb2.RecoveryPlan) -> None:
    """What is done, or was, and what is lost by it."""
    screen.line(DONE[plan.rung], "bold cyan")
    screen.line(sentence(plan.summary))
    if not plan.losses:
        screen.line("Nothing is lost.", "green")
        return
    screen.line("Lost:", "yellow")
    for loss in summed(plan.losses):
        screen.line(f"- {loss}", "yellow")


def _row(group: Sequence[integrity_pb2.Finding]) -> tuple[str | Text, ...]:
    finding = group[0]
    style = "yellow" if finding.recovery_only else "red"
    places = (
        "/".join(filter(None, (finding.child_type, finding.phase))),
        finding.document,
        finding.field,
        f"revision {finding.revision}" if finding.revision else "",
        f"checkpoint {finding.checkpoint_id}" if finding.checkpoint_id else "",
    )
    kind = Text(name(integrity_pb2.FindingKind, finding.kind, "FINDING_KIND_"), style)
    return kind, " ".join(filter(None, places)), told([one.description for one in group])

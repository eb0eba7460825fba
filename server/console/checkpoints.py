"""`flowledger checkpoint ...`: copies of flows, taken, listed, compared, restored and removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer
from flowledger.v1 import checkpoint_pb2
from flowledger.v1 import checkpoint_service_pb2 as pb
from rich.text import Text

from server.console.calling import OPERATORS, Operator, command
from server.console.differences import LINES, show_diff
from server.console.history import Flow
from server.console.screen import Column, Screen
from server.console.wording import counted, local, member, name, size, span, status, until, zone

PAGE = 500
KINDS = "auto, manual, pre-rollback or pre-recovery"
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The checkpoint's id: `checkpoint list` has them.")]
SomeFlow = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's id; without it, those of all flows.", show_default=False)]
Kind = Annotated[
    int | None,
    typer.Option(
        parser=partial(member, enum=checkpoint_pb2.CheckpointKind, prefix="CHECKPOINT_KIND_"), metavar="KIND", help=f"Only {KINDS}."
    ),
]
Reason = Annotated[str, typer.Option(help="Why; for whoever reads it later.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only show what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]


def add(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="Sealed copies of flows: create, list, diff, restore, prune.")
    app.add_typer(group, name="checkpoint", rich_help_panel=OPERATORS)
    command(group, "create")(create)
    command(group, "list")(listed)
    command(group, "diff")(diff)
    command(group, "restore")(restore)
    command(group, "prune")(prune)


def label(text: str) -> str:
    """The label as it was written, `key=value`."""
    if not text.partition("=")[0] or "=" not in text:
        raise typer.BadParameter(f"{text!r} is no label: write it as key=value")
    return text


Labels = Annotated[list[str] | None, typer.Option("--label", parser=label, metavar="KEY=VALUE", help="A label. Repeatable.")]


def create(
    operator: Operator,
    flow: Flow,
    reason: Reason = "",
    labels: Labels = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it from being pruned.")] = False,
    ttl: Annotated[
        timedelta | None, typer.Option(parser=span, metavar="SPAN", help="How long to keep it: 24h, 7d; default for ever.")
    ] = None,
) -> None:
    """Take a copy of a flow as it is."""
    request = pb.CreateCheckpointRequest(flow_id=flow, reason=reason, labels=_pairs(labels), pinned=pin)
    if ttl is not None:
        request.ttl.FromTimedelta(ttl)
    made = operator.checkpoints.CreateCheckpoint(request).checkpoint
    if operator.screen.json:
        operator.screen.document(made)
        return
    operator.screen.line(Text.assemble("Taken: ", (made.checkpoint_id, "bold"), f", of revision {made.revision}, {size(made.size_bytes)}."))
    operator.screen.hint("To bring it back", f"flowledger checkpoint restore {made.checkpoint_id}")


def listed(
    operator: Operator,
    flow: SomeFlow = "",
    kind: Kind = None,
    labels: Labels = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Only pinned ones.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest so many.")] = 50,
) -> None:
    """The checkpoints of a flow, or of all, the newest first."""
    request = pb.ListCheckpointsRequest(flow_id=flow, labels=_pairs(labels), pinned_only=pinned, page_size=min(limit, PAGE))
    request.kind = kind or checkpoint_pb2.CHECKPOINT_KIND_UNSPECIFIED  # type: ignore[assignment]
    found: list[checkpoint_pb2.Checkpoint] = []
    more = True
    while more and len(found) < limit:
        response = operator.checkpoints.ListCheckpoints(request)
        found += response.checkpoints
        request.page_token = response.next_page_token
        more = bool(request.page_token)
    more = more or len(found) > limit
    found = found[:limit]
    screen = operator.screen
    if screen.json:
        screen.documents(found)
        return
    if not found:
        screen.line("There is no such checkpoint.")
        return
    show_checkpoints(screen, found, of_all=not flow)
    if more:
        screen.line(f"Older ones are not shown: --limit {2 * limit} shows more.", "dim")


def diff(
    operator: Operator,
    checkpoint: Checkpoint,
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="A later checkpoint; without it, the flow as it is.", show_default=False)
    ] = "",
) -> None:
    """What differs between a checkpoint and its flow as it is, or another checkpoint."""
    found = operator.checkpoints.DiffCheckpoints(pb.DiffCheckpointsRequest(from_checkpoint_id=checkpoint, to_checkpoint_id=other)).diff
    if operator.screen.json:
        operator.screen.document(found)
    else:
        show_diff(operator.screen, found, sides=("the checkpoint", "the other" if other else "the flow as it is"))


def restore(operator: Operator, checkpoint: Checkpoint, plan: Plan = False, yes: Yes = False, reason: Reason = "") -> None:
    """Make a checkpoint's content the newest revision of its flow: shows what changes, asks, does it. The flow as it was is kept."""
    screen = operator.screen
    request = pb.RestoreCheckpointRequest(checkpoint_id=checkpoint, reason=reason, validate_only=True)
    shown = operator.checkpoints.RestoreCheckpoint(request)
    if plan:
        if screen.json:
            screen.document(shown)
        else:
            show_diff(screen, shown.diff, LINES, ("the flow as it is", "restored"))
        return
    if not screen.json:
        show_diff(screen, shown.diff, LINES, ("the flow as it is", "restored"))
    if not operator.agrees(f"Restore flow {shown.flow.flow_id} so?", yes):
        screen.line("Nothing was done.")
        return
    request.validate_only, request.expected_revision = False, shown.diff.from_revision
    done = operator.checkpoints.RestoreCheckpoint(request)
    if screen.json:
        screen.document(done)
        return
    said = (
        f"Restored. {done.flow.flow_id} is at revision {done.flow.revision}: ",
        status(done.flow.status),
        f", {done.flow.progress_percent:.1f} %.",
    )
    screen.line(Text.assemble(*said))
    screen.hint("To undo it", f"flowledger checkpoint restore {done.pre_recovery.checkpoint_id}")


def prune(
    operator: Operator,
    flow: SomeFlow = "",
    kind: Kind = None,
    older: Annotated[
        timedelta | None, typer.Option("--older-than", parser=span, metavar="SPAN", help="Only those taken longer ago: 24h, 7d.")
    ] = None,
    keep: Annotated[int, typer.Option(min=0, max=10_000, metavar="N", help="The newest so many of each flow stay.")] = 0,
    expired: Annotated[bool, typer.Option("--expired", help="Only those that have expired.")] = False,
    plan: Plan = False,
    yes: Yes = False,
) -> None:
    """Remove checkpoints for good: counts them, asks, does it. Pinned ones stay."""
    if not (flow or kind or older or keep or expired):
        raise typer.BadParameter("say which: a flow, --kind, --older-than, --keep or --expired")
    screen = operator.screen
    request = pb.PruneCheckpointsRequest(flow_id=flow, keep_newest=keep, expired_only=expired, validate_only=True)
    request.kind = kind or checkpoint_pb2.CHECKPOINT_KIND_UNSPECIFIED  # type: ignore[assignment]
    if older is not None:
        request.create_time_before.FromDatetime(datetime.now(UTC) - older)
    response = operator.checkpoints.PruneCheckpoints(request)
    if plan or not response.pruned_count:
        if screen.json:
            screen.document(response)
        else:
            screen.line(_pruned("would be", response))
        return
    if not (screen.json or yes):
        screen.line(_pruned("would be", response))
    if not operator.agrees("Remove them for good?", yes):
        screen.line("Nothing was done.")
        return
    request.validate_only = False
    done = pb.PruneCheckpointsResponse(more=True)
    while done.more:  # a thousand at a time
        response = operator.checkpoints.PruneCheckpoints(request)
        done.pruned_count += response.pruned_count
        done.freed_bytes += response.freed_bytes
        done.more = response.more and response.pruned_count > 0
    if screen.json:
        screen.document(done)
    else:
        screen.line(_pruned("were", done))


def _pairs(labels: list[str] | None) -> dict[str, str]:
    return {key: value for key, _, value in (label.partition("=") for label in labels or ())}


def show_checkpoints(screen: Screen, found: list[checkpoint_pb2.Checkpoint], of_all: bool) -> None:
    """A row each."""
    columns = [
        Column("checkpoint"),
        Column("kind"),
        Column("rev", right=True),
        Column(f"taken {zone()}"),
        Column("size", right=True),
        Column("about"),
    ]
    screen.table(columns, [_row(checkpoint, of_all, screen.narrow) for checkpoint in found])


def _row(checkpoint: checkpoint_pb2.Checkpoint, of_all: bool, short: bool) -> tuple[str | Text, ...]:
    labels = (f"{key}={value}" for key, value in sorted(checkpoint.labels.items()))
    expiry = until(checkpoint.expire_time) if checkpoint.HasField("expire_time") else ""
    about = (
        f"flow {checkpoint.flow_id}" if of_all else "",
        "pinned" if checkpoint.pinned else "",
        "has expired" if expiry == "now" else f"expires in {expiry}" if expiry else "",
        f"with {size(checkpoint.payload_bytes)} of payload" if checkpoint.payload_bytes else "",
        *labels,
        checkpoint.reason,
        f"by {checkpoint.created_by}" if checkpoint.created_by else "",
    )
    kind = name(checkpoint_pb2.CheckpointKind, checkpoint.kind, "CHECKPOINT_KIND_").lower().replace("_", "-")
    return (
        Text(checkpoint.checkpoint_id, "bold"),
        kind,
        str(checkpoint.revision),
        local(checkpoint.create_time, short),
        size(checkpoint.size_bytes),
        ", ".join(filter(None, about)),
    )


def _pruned(how: str, response: pb.PruneCheckpointsResponse) -> str:
    if not response.pruned_count:
        return "There is nothing to remove."
    said = "was" if how == "were" and response.pruned_count == 1 else how
    more = ", and more after those" if response.more else ""
    return f"{counted(response.pruned_count, 'checkpoint')} {said} removed, {size(response.freed_bytes)} freed{more}."

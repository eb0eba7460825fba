"""One discovery from end to end: the worker, the live view beside it, the report below."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from flowledger.v1 import flow_pb2
from rich.console import Console

from examples.discovery.approval import Ask, Decision, Read, answered, prompted
from examples.discovery.document import patch_json
from examples.discovery.inventory import source_of
from examples.discovery.ledger import Caller, Ledger, open_ledger
from examples.discovery.report import print_report
from examples.discovery.view import ProgressView
from examples.discovery.worker import Assignment, Worker

VIEW_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """Who discovers what. ``flow_id`` is empty for a new flow; ``decision`` is None when a person is asked."""

    address: str
    caller: Caller
    assignment: Assignment
    flow_id: str
    decision: Decision | None


async def discover(session: Session, console: Console, new_id: Callable[[], UUID], read: Read) -> str:
    """The id of the flow, once its discovery is complete and its report is printed.

    Raises DiscoveryStopped and NobodyToAsk when a person must act first, CallFailed, InventoryError, DocumentError.
    """
    # The view has a channel of its own: it knows of the worker only what the service tells.
    async with (
        open_ledger(session.address, session.caller, new_id) as ledger,
        open_ledger(session.address, session.caller, new_id) as watching,
    ):
        flow_id = session.flow_id
        if not flow_id:
            flow_id = await create(ledger, session.assignment)
            console.print(f"Flow {flow_id}. Should this end before it does, go on with --flow-id {flow_id}", style="dim", soft_wrap=True)
        view = ProgressView(console, watching, flow_id)
        ask = _asker(session.decision, console, view, read)
        shown = asyncio.create_task(view.run())
        try:
            await Worker(ledger, session.caller, flow_id, session.assignment, ask).run()
            async with asyncio.timeout(VIEW_GRACE_SECONDS):
                await shown
        except TimeoutError:
            console.print(f"The stream did not end within {VIEW_GRACE_SECONDS:.0f} s of the flow.", style="yellow")
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
        print_report(await ledger.flow(flow_id, flow_pb2.FLOW_VIEW_FULL), console)
        return flow_id


async def watch(address: str, caller: Caller, flow_id: str, console: Console, new_id: Callable[[], UUID]) -> None:
    """Shows a flow until its stream ends; CallFailed when it cannot be watched."""
    async with open_ledger(address, caller, new_id) as ledger:
        await ProgressView(console, ledger, flow_id).run()


async def create(ledger: Ledger, assignment: Assignment) -> str:
    """The id of a new flow for that inventory."""
    source = source_of(assignment.csv)
    labels = {"source": re.sub(r"[^\w.-]", "_", source.file)[:200]}
    return await ledger.create_flow(f"Discovery of {source.file}"[:200], labels, patch_json({"source": source}))


def _asker(decision: Decision | None, console: Console, view: ProgressView, read: Read) -> Ask:
    if decision is None:
        return prompted(console, view.aside, read)
    return answered(decision, console)

"""What waiting commits come to: each flow's plan, from its head and what its callers ask; nothing here waits for the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from uuid import UUID

from server.repository.batch import Moves, Step, batch_of, merged_places
from server.repository.commit_statement import Batch
from server.repository.flows import Head
from server.repository.requests import Answer, Answered, Committed, Request
from server.statemachine import flow as machine
from server.statemachine.change import Change, ReplaceContent
from server.statemachine.errors import ConcurrentModification, FlowError, FlowNotFound
from server.statemachine.event import Event
from server.statemachine.flow import Occasion
from server.statemachine.history import Kept, wants_base
from server.statemachine.value import dataclass
from server.statemachine.values import DocumentPlace, FlowKey, Origin, Tenant


@dataclass(frozen=True, slots=True)
class Birth:
    """What a new flow is made of."""

    type: str
    display_name: str
    labels: Mapping[str, str]
    origin: Origin | None = None


class Withheld(Exception):
    """A commit would do what its caller did not want done yet; nothing is written."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One commit as a caller asks for it; ``expected`` 0 means whatever revision is current, ``birth`` makes a new flow.

    Where ``withheld`` holds of what it would do, it is not done: the caller gets Withheld. ``answer`` makes what the caller is told of it.
    """

    tenant: Tenant
    flow_id: UUID
    changes: tuple[Change, ...]
    occasion: Occasion
    expected: int = 0
    request: Request | None = None
    birth: Birth | None = None
    withheld: Callable[[Event], bool] | None = field(default=None, repr=False, compare=False)
    answer: Answer | None = field(default=None, repr=False, compare=False)
    key: FlowKey = field(init=False, repr=False, compare=False)
    # Whether the flow is replaced as a whole; that goes by itself, since what it removes cannot be written in the same statement.
    replaces: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", FlowKey(self.tenant, self.flow_id))
        object.__setattr__(self, "replaces", ReplaceContent in map(type, self.changes))


@dataclass(frozen=False, slots=True)
class Waiting:
    """A commit whose caller waits; ``size`` is the bytes of its documents."""

    asked: Asked
    size: int
    done: asyncio.Future[Committed | Answered]

    def fail(self, error: BaseException) -> None:
        """Tell the caller no, unless it has been told already or has gone away."""
        if not self.done.done():
            self.done.set_exception(error)

    def succeed(self, result: Committed | Answered) -> None:
        """Tell the caller yes, as above."""
        if not self.done.done():
            self.done.set_result(result)


@dataclass(frozen=False, slots=True)
class Plan:
    """What one flow's waiting commits come to."""

    head: Head | None
    steps: list[Step] = field(default_factory=list)
    carried: list[Waiting] = field(default_factory=list)
    refused: list[tuple[Waiting, FlowError | Withheld]] = field(default_factory=list)
    # What batch.Moves wants to know besides the steps.
    kept: Kept | None = None
    texts: Mapping[DocumentPlace, tuple[int, bytes]] = field(default_factory=dict)
    # What callers are told, by the place of their commit among those that are carried, as far as it has been made.
    answers: dict[int, bytes] = field(default_factory=dict)

    @property
    def wants_kept(self) -> bool:
        """Whether it must be known what is kept of the flow before the steps can be stored."""
        return self.head is not None and any(wants_base(step.outcome.event) for step in self.steps)

    @property
    def moves(self) -> Moves:
        """The steps as the batch wants them."""
        return Moves(self.steps, self.kept or Kept(), self.texts)


def keys_of(waiting: Waiting) -> tuple[object, ...]:
    """What must not be on its way to disk twice: the flow, then the request id if there is one."""
    request = waiting.asked.request
    if request is None:
        return (waiting.asked.key,)
    return waiting.asked.key, (waiting.asked.tenant, "request", request.request_id)


async def batch_of_plans(plans: Mapping[FlowKey, Plan]) -> Batch:
    """The rows of all plans, with the request ids that they answer."""
    batch = await batch_of({key: plan.moves for key, plan in plans.items()})
    for place, key in enumerate(batch.keys):
        plan = plans[key]
        for at, (waiting, step) in enumerate(zip(plan.carried, plan.steps, strict=True)):
            if (request := waiting.asked.request) is not None:
                row = request_row(place, request, [step.committed], waiting.asked.occasion.now)
                plan.answers[at] = row[-1]
                batch.requests.append(row)
    return batch


def unknown(key: FlowKey, group: Sequence[Waiting]) -> Plan:
    """The plan for a flow that is not there."""
    return Plan(None, refused=[(waiting, FlowNotFound(key.flow_id)) for waiting in group])


def lockable(group: Sequence[Waiting]) -> bool:
    """Whether the group can be planned with nothing but PostgreSQL awaited: a new flow has no row, documents may need a thread."""
    return group[0].asked.birth is None and not any(waiting.size for waiting in group)


def merges(group: Iterable[Waiting]) -> list[DocumentPlace]:
    """The documents that must be read before the group can be applied."""
    return merged_places(change for waiting in group for change in waiting.asked.changes)


def request_row(place: int, request: Request, results: Sequence[Committed], now: datetime) -> tuple[int, UUID, datetime, bytes, bytes]:
    """The row that remembers the answer, which stands last."""
    return place, request.request_id, now, request.payload_hash, request.answer(results)


def born(asked: Asked) -> Step:
    """The first step of a new flow. Raises what the rules raise."""
    assert asked.birth is not None
    birth = asked.birth
    made = machine.create(
        asked.tenant, asked.flow_id, birth.type, birth.display_name, birth.labels, asked.changes, asked.occasion, birth.origin
    )
    return Step.after(asked.key, None, made)


def birth_plan(waiting: Waiting) -> Plan:
    """The plan for a new flow."""
    try:
        return Plan(None, [born(waiting.asked)], [waiting])
    except FlowError as error:
        return Plan(None, refused=[(waiting, error)])


def applied(head: Head, group: Sequence[Waiting], texts: Mapping[DocumentPlace, tuple[int, bytes]]) -> Plan:
    """The plan that applies the group to ``head`` in order; ``texts`` has the documents that it merges into, with their revisions."""
    plan = Plan(head, texts=texts)
    stored = {place: text for place, (_, text) in texts.items()}
    for waiting in group:
        asked, revision = waiting.asked, head.flow.revision
        try:
            if asked.expected and asked.expected != revision:
                raise ConcurrentModification(asked.expected, revision)
            made = machine.apply(head.flow, asked.changes, asked.occasion, stored)
        except FlowError as error:
            plan.refused.append((waiting, error))
            continue
        if asked.withheld is not None and asked.withheld(made.event):
            plan.refused.append((waiting, Withheld()))
            continue
        step = Step.after(asked.key, head, made)
        head = Head(made.flow, step.hash)
        if made.documents:
            stored = {**stored, **made.documents}
        plan.steps.append(step)
        plan.carried.append(waiting)
    return plan

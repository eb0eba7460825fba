"""`python -m tests.linearizability.faulty FAULT serve ...` is `flowledger serve` with a fault seeded into it, for the checker to find.

Only a process that is started through this module has it: nothing in server/ knows of it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from server import cli
from server.cache import Views
from server.repository import commit_statement
from server.repository.event_codec import FORMAT
from server.repository.events import EventPage
from server.repository.statement import opened, same_flow
from server.repository.table_parts import FLOW_KEY
from server.repository.tables import events, flows
from server.services import reads, watch


def without_the_guard(patch: pytest.MonkeyPatch) -> None:
    """A commit is stored whatever revision the flow is at.

    The events' primary key guards too: with the row's guard gone alone, the second writer of a revision still collides there and decides
    again. So both go.
    """

    def moved(opener: Any, asked: Any, answered: Any, columns: Any) -> Any:
        changing = [name for name in columns if name not in commit_statement._ASKED]
        return (
            update(flows)
            .values({name: commit_statement._converted(asked, name) for name in changing})
            .where(opened(opener), *same_flow(flows, asked), *commit_statement._fresh(asked, answered))
            .returning(asked.c.place, *(flows.c[key] for key in FLOW_KEY))
            .cte("moved")
        )

    def put_events(given: Any, moved: Any, opener: Any) -> Any:
        own = [name for name in commit_statement._EVENT if name != "place"]
        rows = select(*(moved.c[key] for key in FLOW_KEY), *(given.c[name] for name in own), literal_column(str(FORMAT)))
        rows = rows.where(opened(opener), given.c.place == moved.c.place)
        putting = insert(events).from_select([*FLOW_KEY, *own, "format"], rows).on_conflict_do_nothing()
        return putting.returning(events.c.client_account_id).cte("put_event")

    patch.setattr(commit_statement, "_moved", moved)
    patch.setattr(commit_statement, "_put_events", put_events)


def without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """What is in the cache is taken for current, whatever has been heard or asked for since."""
    fenced = reads.Reads.flow

    async def flow(self: Any, key: Any, view: Any, form: Any, least: int) -> bytes:
        views = self._views._flows.get(key, {})
        known = views.get(reads._name(view, form))
        return known.answer if known is not None else await fenced(self, key, view, form, least)

    patch.setattr(reads.Reads, "flow", flow)
    patch.setattr(Views, "heard", lambda *_: None)


def skipping(patch: pytest.MonkeyPatch) -> None:
    """A watch passes over a revision when the one after it is there already, as one does that moves on past commits not visible yet."""
    whole = watch._Watch._next_page

    async def next_page(self: Any) -> EventPage:
        page = await whole(self)
        return page if len(page.events) < 3 else replace(page, events=(*page.events[:-2], page.events[-1]))

    patch.setattr(watch._Watch, "_next_page", next_page)


FAULTS = {"guard": without_the_guard, "fence": without_the_fence, "skip": skipping}


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)](pytest.MonkeyPatch())
    cli.main()

"""What the database can be asked for, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from server.repository.commits import Commits
from server.repository.database import Database
from server.repository.events import Events
from server.repository.flows import Flows
from server.repository.history import History


@dataclass(frozen=True, slots=True)
class Store:
    """The repositories of one process."""

    database: Database
    flows: Flows
    events: Events
    history: History
    commits: Commits

"""The house keeps its rooms: DESIGN section 2, held by the syntax trees. Each rule is shown to fail by a seeded violation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract import source_tree
from tests.contract.source_tree import ALLOWED, ROOMS, Module, parsed

RULES = (
    source_tree.rooms,
    source_tree.foreign,
    source_tree.purity,
    source_tree.aborts,
    source_tree.catch_alls,
    source_tree.environment,
    source_tree.commits,
)
Rule = Callable[[Module], list[str]]

SEEDED = [
    (source_tree.rooms, "statemachine/flow.py", "from server.repository import codec"),
    (source_tree.rooms, "statemachine/flow.py", "from ..repository import codec"),
    (source_tree.rooms, "statemachine/flow.py", "def late():\n    import server.services.convert"),
    (source_tree.rooms, "statemachine/flow.py", "from server import settings"),
    (source_tree.rooms, "repository/flows.py", "from server.services import convert"),
    (source_tree.rooms, "repository/flows.py", "from server.cache import Heads"),
    (source_tree.rooms, "services/flow_service.py", "from server.app import running"),
    (source_tree.rooms, "app.py", "from server.cli import main"),
    (source_tree.rooms, "wakeups.py", "from server.repository.database import Database"),
    (source_tree.rooms, "operations.py", "from server.services import convert"),
    (source_tree.rooms, "orchestration.py", "x = 1"),
    (source_tree.foreign, "statemachine/flow.py", "import asyncio"),
    (source_tree.foreign, "statemachine/flow.py", "import logging"),
    (source_tree.foreign, "statemachine/flow.py", "from time import time"),
    (source_tree.foreign, "statemachine/flow.py", "from flowledger.v1 import flow_pb2"),
    (source_tree.foreign, "statemachine/flow.py", "import sqlalchemy as sa"),
    (source_tree.foreign, "repository/flows.py", "from flowledger.v1 import flow_pb2"),
    (source_tree.foreign, "services/flow_service.py", "import asyncpg.exceptions"),
    (source_tree.foreign, "services/flow_service.py", "from sqlalchemy import select"),
    (source_tree.foreign, "app.py", "import redis.asyncio"),
    (source_tree.foreign, "console/history.py", "import asyncpg"),
    (source_tree.rooms, "console/history.py", "from server.statemachine.values import Flow"),
    (source_tree.rooms, "app.py", "from server.console import commands"),
    (source_tree.purity, "statemachine/flow.py", "async def apply(): ..."),
    (source_tree.purity, "statemachine/flow.py", "from datetime import datetime\nx = datetime.now()"),
    (source_tree.purity, "statemachine/flow.py", "from uuid import uuid4\nx = uuid4()"),
    (source_tree.purity, "statemachine/flow.py", "text = open('x').read()"),
    (source_tree.aborts, "services/flow_service.py", "async def Get(self, context):\n    await context.abort(5, 'no')"),
    (source_tree.aborts, "app.py", "def stop(context):\n    context.set_code(5)"),
    (source_tree.catch_alls, "services/flow_service.py", "try:\n    pass\nexcept Exception:\n    pass"),
    (source_tree.catch_alls, "services/flow_service.py", "try:\n    pass\nexcept (OSError, BaseException):\n    pass"),
    (source_tree.catch_alls, "repository/flows.py", "try:\n    pass\nexcept:\n    x = 1"),
    (source_tree.catch_alls, "repository/commits.py", 4 * "try:\n    pass\nexcept Exception:\n    x = 1\n"),
    (source_tree.environment, "app.py", "import os\nx = os.environ['PATH']"),
    (source_tree.environment, "repository/database.py", "from os import getenv"),
    (source_tree.commits, "repository/commits.py", "async def put(connection):\n    await connection.execute('DELETE')"),
    (source_tree.commits, "repository/flows.py", "async def put(connection):\n    async with connection.transaction():\n        pass"),
    (source_tree.commits, "services/flow_service.py", "async def put(session):\n    await session.commit()"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_server_keeps_the_rule(rule: Rule) -> None:
    assert [sentence for module in source_tree.modules() for sentence in rule(module)] == []


@pytest.mark.parametrize(("rule", "path", "text"), SEEDED)
def test_a_seeded_violation_is_found(rule: Rule, path: str, text: str) -> None:
    assert len(rule(parsed(path, text))) == 1


def test_every_rule_has_a_seeded_violation() -> None:
    assert {rule for rule, _, _ in SEEDED} == set(RULES)


@pytest.mark.parametrize(
    "text",
    [
        "from server.statemachine.values import Flow",
        "from __future__ import annotations",
        "async def go(commits):\n    await commits.commit(1)",
    ],
)
def test_what_is_allowed_passes_every_rule(text: str) -> None:
    assert [sentence for rule in RULES for sentence in rule(parsed("services/flow_service.py", text))] == []


def test_every_room_that_is_allowed_something_exists() -> None:
    assert set(ROOMS) == {module.room for module in source_tree.modules()}


def test_every_deviation_is_still_in_use() -> None:
    used = {
        (module.path, name.split(".")[1])
        for module in source_tree.modules()
        for _, name in source_tree.imported(module)
        if name.startswith("server.")
    }
    assert set(ALLOWED) <= used
    paths = {module.path for module in source_tree.modules()}
    assert paths >= {*source_tree.CATCH_ALLS, *source_tree.ENVIRONMENT, *source_tree.DRIVERS}

"""Every test that wants ``connect`` runs for both clients of clients/python."""

from __future__ import annotations

import pytest
from flowledger_client import Caller

from tests.clients.both import Connect, fresh_caller, native, threaded


@pytest.fixture(params=[threaded, native], ids=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """How the client is made."""
    made: Connect = request.param
    return made


@pytest.fixture
def caller() -> Caller:
    """A tenant that nobody else uses."""
    return fresh_caller()

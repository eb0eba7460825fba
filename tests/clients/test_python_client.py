"""The Python that the README shows."""

from __future__ import annotations

import sys

from server.app import Server
from tests.clients.program import ROOT, run

EXAMPLE = ROOT / "examples" / "python_client" / "flow.py"


async def test_the_python_example_drives_approves_and_watches_a_flow(server: Server) -> None:
    ran = await run(sys.executable, "-W", "error", EXAMPLE, server.address)
    assert (ran.code, ran.err) == (0, "")
    told = [line for line in ran.out.splitlines() if line.startswith("revision ")]
    assert [line.split()[1] for line in told] == [str(number) for number in range(1, 17)]
    assert told[-1] == "revision 16 FLOW_STATUS_COMPLETED 100 %: tech_debt_analysis is PHASE_STATE_COMPLETED"
    assert "refused: FAILED_PRECONDITION: phase field_mapping is IN_PROGRESS and cannot become COMPLETED" in ran.out
    assert ran.out.endswith("end: the flow has ended, and everything up to its end was delivered\n")


def test_the_python_example_stays_short_and_knows_only_the_contract() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 80
    imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["sys", "threading", "uuid", "grpc", "flowledger.v1"]

"""The Python that the README shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

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


async def test_what_the_readme_shows_is_what_it_prints(server: Server, tmp_path: Path) -> None:
    shown = re.findall(r"```python\n(.*?)```\n.*?```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(shown) == 2
    for at, (code, told) in enumerate(shown):
        program = tmp_path / f"{at}.py"
        program.write_text(code.replace("127.0.0.1:50051", server.address))
        ran = await run(sys.executable, "-W", "error", program)
        assert (ran.err, ran.out) == ("", told)

"""ruff and mypy --strict are clean over everything that is written by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.source_tree import ROOT

FOLDERS = ("server", "tests", "examples", "benchmarks", "migrations", "protos", "clients")
WRITTEN = [folder for folder in FOLDERS if any((ROOT / folder).rglob("*.py"))]


def complaints(*command: str) -> str:
    """What the tool has to say; empty when it is content."""
    done = subprocess.run([sys.executable, "-m", *command, *WRITTEN], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    assert complaints("ruff", "check", "--quiet") == ""


def test_ruff_would_format_nothing() -> None:
    assert complaints("ruff", "format", "--check", "--quiet") == ""


@pytest.mark.timeout(300)  # without its cache mypy reads all of SQLAlchemy first
def test_mypy_strict_finds_nothing() -> None:
    assert complaints("mypy", "--strict", "--no-error-summary") == ""

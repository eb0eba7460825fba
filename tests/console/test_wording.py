"""Spans, sizes and names are read as people write them, and written as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest
import typer
from flowledger.v1 import checkpoint_pb2

from server.console import wording

KINDS = checkpoint_pb2.CheckpointKind


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600), ("1.5h", 5400)]
)
def test_a_span_is_read(text: str, seconds: int) -> None:
    assert wording.span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "h", "5x", "-1h", "1h ", "h1", "1h,2m", "9" * 400 + "w"])
def test_what_is_no_span_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"span|longer"):
        wording.span(text)


@pytest.mark.parametrize("text", ["manual", "MANUAL", "pre-rollback", "PRE_ROLLBACK"])
def test_a_kind_is_read_in_any_spelling(text: str) -> None:
    assert wording.member(text, KINDS, "CHECKPOINT_KIND_") == KINDS.Value(f"CHECKPOINT_KIND_{text.upper().replace('-', '_')}")


@pytest.mark.parametrize("text", ["", "unspecified", "other", "1"])
def test_an_unknown_kind_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="auto, manual, pre-rollback, pre-recovery"):
        wording.member(text, KINDS, "CHECKPOINT_KIND_")


def test_a_kind_that_is_newer_than_the_command_is_shown_as_its_number() -> None:
    assert wording.name(KINDS, 99, "CHECKPOINT_KIND_") == "99"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3,072.0 GiB")]
)
def test_sizes_are_in_the_unit_that_fits(count: int, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "now"), (0, "now"), (61, "61 s"), (180, "3 min"), (7300, "2 h"), (86400, "24 h"), (200000, "2 days")]
)
def test_a_span_is_said_roughly(seconds: int, text: str) -> None:
    assert wording.rough(timedelta(seconds=seconds)) == text


def test_what_differs_in_numbers_alone_is_said_once() -> None:
    texts = [f"revision {number} is not kept" for number in range(1, 41)]
    assert wording.summed([*texts, "the last event is missing"]) == [
        "revision 1 is not kept (and 39 more like this, up to: revision 40 is not kept)",
        "the last event is missing",
    ]

"""The contract keeps its promises: buf's rules, no break of what was promised, and comments that say how each RPC fails.

What "breaking" is measured against. On a fresh clone of main the branch is what is checked out, so a comparison with main alone proves
nothing there. Hence two things:

- ``baseline.binpb`` beside this file is the promised contract, as an image that buf made. The protos must not break it, wherever the
  test runs, also in a checkout without history. A test sees to it that it holds everything the protos have: whoever adds to the
  contract writes it anew with ``buf build --exclude-source-info -o tests/contract/baseline.binpb``.
- So that nobody writes it anew over a break, the protos must not break any version of it in git's history either, nor the protos of
  the commit that is checked out (which catches a break before it is committed).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flowledger.v1 import flow_service_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from server.services.boundary import CODES
from tests.contract.source_tree import ROOT

BUF = Path(sys.prefix) / "bin" / "buf"
BASELINE = "tests/contract/baseline.binpb"
SERVICE = flow_service_pb2.DESCRIPTOR.services_by_name["FlowService"]
READS = ("Get", "List", "BatchGet", "Watch", "Diff")


def buf(*arguments: object) -> str:
    """What buf has to say; empty when it is content."""
    done = subprocess.run([str(BUF), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"buf ended with {done.returncode}"


def git(*arguments: str) -> bytes:
    """What git answers; nothing where there is no history (an unpacked archive)."""
    if shutil.which("git") is None:
        return b""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def promised_before() -> Iterator[tuple[str, bytes]]:
    """Every version of the baseline in git's history, with its commit."""
    for commit in git("log", "--format=%H", "--", BASELINE).decode().split():
        if image := git("show", f"{commit}:{BASELINE}"):
            yield commit, image


def seeded(folder: Path, old: str, new: str) -> Path:
    """A copy of the protos with one change in it."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copy(ROOT / "buf.yaml", folder)
    changed = 0
    for proto in (folder / "protos").rglob("*.proto"):
        text = proto.read_text("utf-8")
        changed += text.count(old)
        proto.write_text(text.replace(old, new), "utf-8")
    assert changed >= 1
    return folder


def test_buf_lint_finds_nothing() -> None:
    assert buf("lint") == ""


def test_buf_lint_asks_for_a_comment_on_every_rpc(tmp_path: Path) -> None:
    assert 'RPC "GetFlow" should have a non-empty comment' in buf("lint", seeded(tmp_path, "  rpc GetFlow(", "\n  rpc GetFlow("))


def test_the_contract_keeps_what_it_promised() -> None:
    assert buf("breaking", "--against", BASELINE) == ""


def test_the_baseline_holds_everything_that_the_contract_has(tmp_path: Path) -> None:
    """Seen from the protos of today, nothing is missing in the baseline."""
    assert buf("build", "--exclude-source-info", "-o", tmp_path / "today.binpb") == ""
    remedy = f"run `buf build --exclude-source-info -o {BASELINE}`"
    assert buf("breaking", BASELINE, "--against", tmp_path / "today.binpb") == "", remedy


def test_the_contract_keeps_what_it_ever_promised(tmp_path: Path) -> None:
    for commit, image in promised_before():
        (tmp_path / f"{commit}.binpb").write_bytes(image)
        assert buf("breaking", "--against", tmp_path / f"{commit}.binpb") == "", f"promised by commit {commit}"


def test_the_contract_keeps_what_the_last_commit_has() -> None:
    if git("cat-file", "-t", "HEAD:protos/flowledger/v1/flow.proto") != b"blob\n":
        pytest.skip("this checkout has no git history: the baseline alone is what the contract is measured against")
    assert buf("breaking", "--against", f"{ROOT / '.git'}#ref=HEAD") == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("string hold_reason = ", "string held_because = ", "FIELD_SAME_JSON_NAME"),
        ("  rpc GetFlow(GetFlowRequest) returns (GetFlowResponse);\n", "", "RPC_NO_DELETE"),
        ("bool validate_only = 11;", "", "FIELD_NO_DELETE"),
        ("int64 min_revision = 4;", "int32 min_revision = 4;", "FIELD_SAME_TYPE"),
        ("string request_id = 10;", "string request_id = 12;", "FIELD_NO_DELETE"),
    ],
)
def test_a_seeded_break_is_found(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert rule in buf("breaking", seeded(tmp_path, old, new), "--against", BASELINE, "--error-format", "json")


def test_a_seeded_addition_is_no_break_and_asks_for_a_new_baseline(tmp_path: Path) -> None:
    grown = seeded(tmp_path, "bool validate_only = 11;", "bool validate_only = 11;\n  string seed = 12;")
    assert buf("breaking", grown, "--against", BASELINE) == ""
    assert "FIELD_NO_DELETE" in buf("breaking", BASELINE, "--against", grown, "--error-format", "json")


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is written above each RPC."""
    image = tmp_path_factory.mktemp("image") / "image.binpb"
    assert buf("build", "--as-file-descriptor-set", "-o", image) == ""
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    service_file = next(file for file in files if file.name == SERVICE.file.name)
    service, method = 6, 2  # field numbers of FileDescriptorProto.service and ServiceDescriptorProto.method
    found = {tuple(place.path): place.leading_comments for place in service_file.source_code_info.location}
    return {rpc.name: found[service, 0, method, at] for at, rpc in enumerate(service_file.service[0].method)}


METHODS = [pytest.param(method, id=method.name) for method in SERVICE.methods]
MUTATIONS = [pytest.param(method, id=method.name) for method in SERVICE.methods if not method.name.startswith(READS)]


@pytest.mark.parametrize("method", MUTATIONS)
def test_a_mutation_takes_request_id_and_expected_revision(method: MethodDescriptor) -> None:
    fields = set(method.input_type.fields_by_name)
    if method.client_streaming:
        return  # a report lost and sent again is merged with the next one: the service's comment says so
    assert "request_id" in fields
    if method.name in ("CreateFlow", "ForkFlow"):
        return  # what does not exist has no revision
    if method.name == "BatchUpdateFlows":
        fields |= {name for field in method.input_type.fields if field.message_type for name in field.message_type.fields_by_name}
    assert "expected_revision" in fields


@pytest.mark.parametrize("method", METHODS)
def test_a_read_takes_no_request_id(method: MethodDescriptor) -> None:
    if method.name.startswith(READS):
        assert "request_id" not in method.input_type.fields_by_name


@pytest.mark.parametrize("method", MUTATIONS)
def test_a_mutations_comment_says_what_it_does_and_how_it_fails(comments: dict[str, str], method: MethodDescriptor) -> None:
    text = comments[method.name]
    first, _, rest = text.strip().partition("\n\n")
    assert first.strip().endswith(".")
    assert re.search(r"\bWrites\b|\bcommit", text), "says what it writes"
    assert re.search(r"\bFails?\b|\bfails\b|error", rest), "says how it fails"


@pytest.mark.parametrize("method", METHODS)
def test_validate_only_is_noted_where_it_is_taken(comments: dict[str, str], method: MethodDescriptor) -> None:
    assert ("validate_only: yes." in comments[method.name]) == ("validate_only" in method.input_type.fields_by_name)


@pytest.mark.parametrize("method", METHODS)
def test_every_reason_in_a_comment_exists_and_has_the_code_before_it(comments: dict[str, str], method: MethodDescriptor) -> None:
    reasons, codes = set(CODES), {code.name for code in CODES.values()}
    code = ""
    for word in re.findall(r"\b[A-Z][A-Z]*_[A-Z_]+\b|\b(?:ABORTED|UNAVAILABLE)\b", comments[method.name]):
        if word in codes:
            code = word
        elif word in reasons:
            assert CODES[word].name == code, f"{word} is {CODES[word].name}"


def test_every_reason_of_a_refusal_is_told_of_in_the_contract() -> None:
    text = (ROOT / "protos" / "flowledger" / "v1" / "flow_service.proto").read_text("utf-8")
    assert [reason for reason in CODES if not re.search(rf"\b{reason}\b", text)] == []

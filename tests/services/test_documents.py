"""Documents come back as they were given, in either form, within their limits, and change as mask and mode say."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import grpc
import pytest

from tests.tenancy import Tenancy

EXACT = '{"id":9007199254740993,"big":123456789012345678901234567890,"small":0.1000000000000000055511151231257827,"neg":-0,"e":1E+2}'
LIMIT = 4 * 1024 * 1024
FIELDS = ("state", "metadata", "cross_phase_context")


async def _full(tenancy: Tenancy, flow_id: str, form: str = "JSON") -> Any:
    return (await tenancy.call("GetFlow", flow_id=flow_id, view="FLOW_VIEW_FULL", form=f"DOCUMENT_FORM_{form}")).flow


async def _texts(tenancy: Tenancy, flow_id: str) -> list[str]:
    flow = await _full(tenancy, flow_id)
    return [flow.state.json, flow.metadata.json, flow.cross_phase_context.json, flow.children[0].data.json]


async def _filled(tenancy: Tenancy) -> str:
    given = {name: {"json": f'{{"{name}":1}}'} for name in FIELDS}
    return (await tenancy.create(child_data={"json": '{"data":1}'}, display_name="name", labels={"a": "b"}, **given)).flow_id


async def test_documents_come_back_character_by_character(tenancy: Tenancy) -> None:
    spaced = '{ "z": 1,\n\t"a" : [1.0, 1e5, {"ü\\u00fc\U0001f4a5": null}] }'
    flow_id = (await tenancy.create(state={"json": EXACT}, metadata={"json": spaced}, child_data={"json": EXACT})).flow_id
    assert await _texts(tenancy, flow_id) == [EXACT, spaced, "", EXACT]
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": spaced}, "child_data": {"discovery": {"json": spaced}}})
    assert await _texts(tenancy, flow_id) == [spaced, spaced, "", spaced]


async def test_a_merge_keeps_every_digit_of_both_sides(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create(state={"json": EXACT})).flow_id
    patch = '{"other":98765432109876543210,"small":null,"in":{"a":1.50,"b":null}}'
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": patch}, "document_mode": "DOCUMENT_MODE_MERGE_PATCH"})
    found = (await _full(tenancy, flow_id)).state.json
    assert (
        found
        == '{"id":9007199254740993,"big":123456789012345678901234567890,"neg":-0,"e":1E+2,"other":98765432109876543210,"in":{"a":1.50}}'
    )


async def test_a_merge_follows_the_standard(tenancy: Tenancy) -> None:
    """RFC 7396 section 3, the example of a document and its patch."""
    author = '"author":{"givenName":"John","familyName":"Doe"}'
    target = f'{{"title":"Goodbye!",{author},"tags":["example","sample"],"content":"This will be unchanged"}}'
    patch = '{"title":"Hello!","phoneNumber":"+01-123-456-7890","author":{"familyName":null},"tags":["example"]}'
    flow_id = (await tenancy.create(child_data={"json": target})).flow_id
    update = {"child_data": {"discovery": {"json": patch}}, "document_mode": "DOCUMENT_MODE_MERGE_PATCH"}
    await tenancy.call("UpdateFlow", flow_id=flow_id, update=update)
    assert json.loads((await _full(tenancy, flow_id)).children[0].data.json) == {
        "title": "Hello!",
        "author": {"givenName": "John"},
        "tags": ["example"],
        "content": "This will be unchanged",
        "phoneNumber": "+01-123-456-7890",
    }
    await tenancy.call(
        "UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"a":{"b":1,"c":null}}'}, "document_mode": "DOCUMENT_MODE_MERGE_PATCH"}
    )
    assert (await _full(tenancy, flow_id)).state.json == '{"a":{"b":1}}'  # into a document that there was not


async def test_a_document_may_come_and_go_as_a_struct(tenancy: Tenancy) -> None:
    given: dict[str, Any] = {"text": "ü", "whole": 3.0, "part": 0.5, "no": None, "yes": True, "list": [1.0, "a", {}], "inner": {"a": []}}
    flow_id = (await tenancy.create(state={"struct": given})).flow_id
    flow = await _full(tenancy, flow_id)
    assert json.loads(flow.state.json) == given
    assert re.search('"whole":3[,}]', flow.state.json)
    back = await _full(tenancy, flow_id, "STRUCT")
    assert back.state.WhichOneof("form") == "struct"
    assert {**back.state.struct} == {**flow.state.__class__(struct=given).struct}
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": EXACT}})
    assert (await _full(tenancy, flow_id, "STRUCT")).state.struct["id"] == 9007199254740992.0  # as the contract says: a double


@pytest.mark.parametrize("form", ["JSON", "STRUCT"])
@pytest.mark.parametrize("inner", ["object", "list"])
async def test_the_deepest_document_is_taken_and_given(tenancy: Tenancy, form: str, inner: str) -> None:
    start, end = ('{"a":', "}") if inner == "object" else ("[", "]")
    text = '{"a":' + start * 31 + "1" + end * 31 + "}"
    flow_id = (await tenancy.create(state={"json": text}, child_data={"json": text})).flow_id
    flow = await _full(tenancy, flow_id, form)
    for document in (flow.state, flow.children[0].data):
        if form == "JSON":
            assert document.json == text
        else:
            assert document.WhichOneof("form") == "struct"
            assert "a" in document.struct


async def test_a_document_of_4_mib_is_taken_and_one_byte_more_is_not(tenancy: Tenancy) -> None:
    largest = '{"a":"' + "x" * (LIMIT - 8) + '"}'
    assert len(largest) == LIMIT
    flow_id = (await tenancy.create(state={"json": largest})).flow_id
    assert (await _full(tenancy, flow_id)).state.json == largest
    await tenancy.call("UpdateFlow", flow_id=flow_id, update={"child_data": {"discovery": {"json": largest}}})
    for document in ({"json": largest + " "}, {"struct": {"a": "x" * (LIMIT - 7)}}):
        for name, fields in (
            ("CreateFlow", {"type": "discovery", "child_data": document}),
            ("UpdateFlow", {"flow_id": flow_id, "update": {"metadata": document}}),
        ):
            refusal = await tenancy.refusal(name, **fields)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
            assert (refusal.metadata["limit"], refusal.metadata["actual"]) == (str(LIMIT), str(LIMIT + 1))
    merge = {"state": {"json": '{"b":1}'}, "document_mode": "DOCUMENT_MODE_MERGE_PATCH"}
    refusal = await tenancy.refusal("UpdateFlow", flow_id=flow_id, update=merge)
    assert (refusal.reason, refusal.metadata["actual"]) == ("LIMIT_EXCEEDED", str(LIMIT + 6))
    assert (await _full(tenancy, flow_id)).revision == 2


async def test_the_event_tells_size_and_digest_and_never_the_text(tenancy: Tenancy) -> None:
    flow_id = (await tenancy.create()).flow_id
    text = '{"secret":"sesame"}'
    event = (
        await tenancy.call("UpdateFlow", flow_id=flow_id, update={"metadata": {"json": text}, "child_data": {"discovery": {"json": text}}})
    ).event
    assert [(change.document.document, change.document.child_type) for change in event.changes] == [("metadata", ""), ("data", "discovery")]
    for change in event.changes:
        assert (change.document.size_bytes, change.document.sha256) == (len(text), hashlib.sha256(text.encode()).digest())
    assert b"sesame" not in event.SerializeToString()


@pytest.mark.parametrize("mode", ["DOCUMENT_MODE_UNSPECIFIED", "DOCUMENT_MODE_REPLACE"])
async def test_without_a_mask_what_is_present_changes(tenancy: Tenancy, mode: str) -> None:
    flow_id = await _filled(tenancy)
    flow = (await tenancy.call("UpdateFlow", flow_id=flow_id, update={"state": {"json": '{"n":2}'}, "document_mode": mode})).flow
    assert await _texts(tenancy, flow_id) == ['{"n":2}', '{"metadata":1}', '{"cross_phase_context":1}', '{"data":1}']
    assert (flow.display_name, dict(flow.labels)) == ("name", {"a": "b"})
    flow = (await tenancy.call("UpdateFlow", flow_id=flow_id, update={"labels": {"c": "d"}, "display_name": "new"})).flow
    assert (flow.display_name, dict(flow.labels)) == ("new", {"c": "d"})


async def test_with_a_mask_only_what_it_names_changes(tenancy: Tenancy) -> None:
    flow_id = await _filled(tenancy)
    everything = {name: {"json": '{"n":2}'} for name in FIELDS}
    update = {**everything, "display_name": "new", "labels": {"c": "d"}, "update_mask": {"paths": ["metadata", "labels"]}}
    flow = (await tenancy.call("UpdateFlow", flow_id=flow_id, update=update)).flow
    assert await _texts(tenancy, flow_id) == ['{"state":1}', '{"n":2}', '{"cross_phase_context":1}', '{"data":1}']
    assert (flow.display_name, dict(flow.labels)) == ("name", {"c": "d"})


async def test_what_the_mask_names_and_the_update_lacks_is_emptied(tenancy: Tenancy) -> None:
    flow_id = await _filled(tenancy)
    paths = ["state", "display_name", "labels", "child_data"]
    flow = (await tenancy.call("UpdateFlow", flow_id=flow_id, update={"update_mask": {"paths": paths}})).flow
    assert (flow.display_name, dict(flow.labels)) == ("", {})
    assert await _texts(tenancy, flow_id) == ["{}", '{"metadata":1}', '{"cross_phase_context":1}', '{"data":1}']  # children keep theirs


async def test_a_star_is_all_fields(tenancy: Tenancy) -> None:
    flow_id = await _filled(tenancy)
    update = {"metadata": {"json": '{"n":2}'}, "child_data": {"discovery": {"json": '{"n":3}'}}, "update_mask": {"paths": ["*"]}}
    flow = (await tenancy.call("UpdateFlow", flow_id=flow_id, update=update)).flow
    assert (flow.display_name, dict(flow.labels)) == ("", {})
    assert await _texts(tenancy, flow_id) == ["{}", '{"n":2}', "{}", '{"n":3}']


@pytest.mark.parametrize("paths", [["nothing"], ["*", "state"], [""], [], ["state.a"], ["state"] * 20 + ["nothing"]])
async def test_a_mask_that_names_no_field_of_the_callers_is_refused(tenancy: Tenancy, paths: list[str]) -> None:
    flow_id = await _filled(tenancy)
    refusal = await tenancy.refusal("UpdateFlow", flow_id=flow_id, update={"state": {"json": "{}"}, "update_mask": {"paths": paths}})
    assert refusal.violations.keys() == {"update.update_mask"}


@pytest.mark.parametrize("child", ["assessment", "nothing", "", "DISCOVERY"])
async def test_a_document_for_a_child_that_the_flow_lacks_is_refused(tenancy: Tenancy, child: str) -> None:
    flow_id = (await tenancy.create(type="migration")).flow_id
    refusal = await tenancy.refusal("UpdateFlow", flow_id=flow_id, update={"child_data": {child: {"json": "{}"}}})
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert all(field.startswith("update.child_data") for field in refusal.violations)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a":[1,{"b":NaN}]}', "$.a[1].b is NaN"),
        ('{"a":"\\u0000"}', "$.a contains U+0000"),
        ('{"a b":1E999}', '$["a b"] is a number beyond'),
        ('{"a":1,"a":2}', "$.a stands twice"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested deeper than 32 levels"),
        ("[]", "a document is an object"),
        ('{"a":', "is not valid JSON"),
    ],
)
async def test_a_bad_document_is_refused_with_the_place(tenancy: Tenancy, text: str, why: str) -> None:
    flow_id = (await tenancy.create()).flow_id
    change = {"update": {"metadata": {"json": text}}}
    for name, fields, field in (
        ("UpdateFlow", {"flow_id": flow_id, **change}, "update.metadata.json"),
        ("CommitFlow", {"flow_id": flow_id, "changes": [{"pause": {}}, change]}, "changes[1].update.metadata.json"),
        ("CreateFlow", {"type": "discovery", "metadata": {"json": text}}, "metadata.json"),
    ):
        refusal = await tenancy.refusal(name, **fields)
        assert refusal.violations.keys() == {field}
        assert why in refusal.violations[field]

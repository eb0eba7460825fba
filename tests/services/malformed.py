"""Faulty requests, made from the contract's own descriptors: a call that would succeed, with one thing wrong in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.services.calls import CALLS, METHODS
from tests.tenancy import Tenancy

Metadata = tuple[tuple[str, str | bytes], ...]
MIB = 1024 * 1024

_IDS = ("x", "\0", "0" * 36, "z" * 36, "{0190a000-0000-7000-8000-00000000001}", "٣" * 36, "0190a000-0000-7000-8000-0000000_0001",
        "0190a0000000-7000-8000-0000-00000001", " 190a000-0000-7000-8000-000000000001", "-" * 36, "9" * 100_000)  # fmt: skip
_TEXTS = ("a\0b", "\0", "x" * 100_001, "\U0001f4a5" * 3000)
_KEYS = ("", "UPPER", "a b", "-", "a\0", "\u00e9", "k" * 64)
_PATHS = ("nothing", "state.x", "flow_id", "revision", "", "\0", "STATE", "p" * 100_000)
_TOKENS = ("x", "A" * 24, "A" * 100_000, "\0", "é", "====", "' OR 1=1 --")
_FILTERS = (
    "status = NOTHING", "status = 5", "revision = 'x'", "nothing = 1", "type =", "(" * 500 + "type=a" + ")" * 500, "create_time > now",
    "display_name = '\0'", "type = " + "a" * 5000, "NOT" * 300, "progress_percent = NaN", "labels = 3", "type:a", "' OR 1=1", "type = 'a",
)  # fmt: skip
_ORDERS = ("revision", "create_time DESC", "create_time, type", "create_time; DROP TABLE flows", "\0", "x" * 9999)
_DOCUMENTS = (
    "", "{", "[]", "null", "1", '"text"', "{}{}", "{'a':1}", '{"a":NaN}', '{"a":Infinity}', '{"a":-Infinity}', '{"a":1E999}',
    '{"a":"\\u0000"}', '{"\\u0000":1}', '{"a":"\\ud800"}', '{"a":1,"a":2}', '{"a":01}', '{"a":1,}', "\ufeff{}", '{"a":"\t"}', '{"a":tru}',
    '{"a":' * 33 + "1" + "}" * 33, '{"a":' + "[" * 32 + "]" * 32 + "}", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' * 5000,
)  # fmt: skip
_HUGE_DOCUMENT = '{"a":"' + "x" * (5 * MIB) + '"}'
_ENUMS = (99, -1, 2**31 - 1, -(2**31))
_NUMBERS = (float("nan"), float("inf"), float("-inf"))


# Revisions that must have been reached.
REVISIONS = {
    "GetFlow": ("at_revision",),
    "ListFlowEvents": ("after_revision",),
    "DiffFlow": ("from_revision", "to_revision"),
    "RevertFlow": ("revision",),
    "ForkFlow": ("revision",),
}


@dataclass(frozen=True, slots=True)
class Faulty:
    """One request as it goes over the wire."""

    name: str
    fault: str
    body: bytes
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong, and how a good request becomes so."""

    name: str
    make: Callable[[Any], None]


def _set(steps: Sequence[str], last: str, value: object) -> Callable[[Any], None]:
    def make(message: Any) -> None:
        setattr(_reach(message, steps), last, value)

    return make


def _reach(message: Any, steps: Sequence[str]) -> Any:
    """The message at the end of the path; of what is repeated the first one, made if there is none."""
    for step in steps:
        inner = getattr(message, step)
        if isinstance(inner, Message):
            inner.SetInParent()
            message = inner
        else:
            message = inner[0] if len(inner) else inner.add()
    return message


def _extend(steps: Sequence[str], last: str, values: Sequence[object]) -> Callable[[Any], None]:
    def make(message: Any) -> None:
        getattr(_reach(message, steps), last).extend(values)

    return make


def _clear(steps: Sequence[str], last: str) -> Callable[[Any], None]:
    def make(message: Any) -> None:
        _reach(message, steps).ClearField(last)

    return make


def faults(kind: Descriptor, steps: tuple[str, ...] = ()) -> Iterator[_Fault]:
    """Everything that can be wrong with one field of a message, each wrong whatever the rest says."""
    for field in kind.fields:
        yield from _faults_of(field, steps)


def _faults_of(field: FieldDescriptor, steps: tuple[str, ...]) -> Iterator[_Fault]:
    name = ".".join((*steps, field.name))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from _map_faults(field, steps, name)
    elif field.message_type is not None:
        yield from _message_faults(field, steps, name)
    elif field.is_repeated and field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        yield from (_Fault(f"{name}+{value}", _extend(steps, field.name, [value])) for value in (0, 99, -1))
        yield _Fault(f"{name} too many", _extend(steps, field.name, [1] * 101))
    elif field.is_repeated:
        values: Sequence[Any] = _repeated(field)
        yield from (_Fault(f"{name}+{str(value)[:20]!r}", _extend(steps, field.name, [value])) for value in values)
        many: list[object] = ["state", "nothing"] if field.name == "paths" else [values[0]] * 101
        yield _Fault(f"{name} too many", _extend(steps, field.name, many))
    else:
        yield from (_Fault(f"{name}={value!r:.20}", _set(steps, field.name, value)) for value in _scalars(field))


def _of_activity(field: FieldDescriptor) -> bool:
    """Whether the field is set by the service alone."""
    return field.containing_type is not None and field.containing_type.name == "ActivityEntry"


def _repeated(field: FieldDescriptor) -> Sequence[object]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return (0, *_ENUMS)
    return {"flow_ids": _IDS, "paths": _PATHS}.get(field.name, _TEXTS)


def _scalars(field: FieldDescriptor) -> Sequence[object]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            special = {"filter": _FILTERS, "order_by": _ORDERS, "page_token": _TOKENS}
            if field.name == "actor" and _of_activity(field):
                return ("me", *_TEXTS)
            if field.name in ("flow_id", "new_flow_id", "request_id"):
                return _IDS
            return special.get(field.name, _TEXTS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return _ENUMS
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
            return (-1, -(2**31), 7) if field.name == "sequence" else (-1, -(2**31))
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return (*_NUMBERS, -0.1, 1.1) if field.name == "fraction" else _NUMBERS
        case _:
            return ()  # a boolean cannot be wrong


def _map_faults(field: FieldDescriptor, steps: tuple[str, ...], name: str) -> Iterator[_Fault]:
    if field.name == "labels":

        def put(key: str, value: str) -> Callable[[Any], None]:
            return lambda message: _reach(message, steps).labels.update({key: value})

        yield from (_Fault(f"{name}[{key[:20]!r}]", put(key, "")) for key in _KEYS)
        yield from (_Fault(f"{name}={value[:20]!r}", put("key", value)) for value in _TEXTS)
        yield _Fault(f"{name} too many", lambda message: _reach(message, steps).labels.update({f"k{at}": "" for at in range(65)}))
        return

    def child(key: str, text: str) -> Callable[[Any], None]:
        def make(message: Any) -> None:
            _reach(message, steps).child_data[key].json = text

        return make

    yield from (_Fault(f"{name}[{key[:20]!r}]", child(key, "{}")) for key in ("", "nothing", "\0", "execution", "c" * 5000))
    yield from (_Fault(f"{name}={text[:20]!r}", child("discovery", text)) for text in _DOCUMENTS)


def _message_faults(field: FieldDescriptor, steps: tuple[str, ...], name: str) -> Iterator[_Fault]:
    inner = (*steps, field.name)
    assert field.message_type is not None
    kind = field.message_type.name
    if kind == "Document":
        yield from (_Fault(f"{name}={text[:20]!r}", _set(inner, "json", text)) for text in _DOCUMENTS)
        yield _Fault(f"{name} 5 MiB", _set(inner, "json", _HUGE_DOCUMENT))
        yield from (_Fault(f"{name} struct {label}", _struct(inner, make)) for label, make in _STRUCTS.items())
        yield _Fault(f"{name} without a form", lambda message: _reach(message, inner).SetInParent())
    elif kind == "Duration":
        yield from (_Fault(f"{name}={seconds}s", _set(inner, "seconds", seconds)) for seconds in (-1, 10**18, -(2**63), 2**63 - 1))
        yield _Fault(f"{name}<0", _set(inner, "nanos", -(2**31)))
    elif kind == "Timestamp":
        if _of_activity(field):
            yield _Fault(f"{name} given", _set(inner, "seconds", 1))
        yield from (_Fault(f"{name}={seconds}s", _set(inner, "seconds", seconds)) for seconds in (10**12, -(10**12), -(2**63), 2**63 - 1))
        yield from (_Fault(f"{name} nanos {nanos}", _set(inner, "nanos", nanos)) for nanos in (-1, 10**9))
    elif field.is_repeated:
        yield _Fault(f"{name} none", _clear(steps, field.name))
        many = {"changes": 101, "commits": 101, "entries": 101}[field.name]
        yield _Fault(f"{name} too many", _extend(steps, field.name, [GetMessageClass(field.message_type)()] * many))
        yield from faults(field.message_type, inner)
    else:
        if field.name in ("transition", "retry", "rollback", "progress", "activity"):
            yield _Fault(f"{name} empty", _emptied(inner))
        yield from faults(field.message_type, inner)


def _emptied(steps: Sequence[str]) -> Callable[[Any], None]:
    def make(message: Any) -> None:
        part = _reach(message, steps)
        part.Clear()
        part.SetInParent()

    return make


def _struct(steps: Sequence[str], make: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda message: make(_reach(message, steps).struct)


def _nested(levels: int) -> Callable[[Any], None]:
    def make(struct: Any) -> None:
        for _ in range(levels):
            struct = struct.fields["a"].struct_value
        struct.fields["a"].bool_value = True

    return make


_STRUCTS: dict[str, Callable[[Any], None]] = {
    "NaN": lambda struct: setattr(struct.fields["a"], "number_value", float("nan")),
    "Infinity": lambda struct: setattr(struct.fields["a"], "number_value", float("-inf")),
    "no kind": lambda struct: struct.fields["a"].SetInParent(),
    "U+0000": lambda struct: setattr(struct.fields["a"], "string_value", "a\0"),
    "U+0000 in a name": lambda struct: setattr(struct.fields["\0"], "bool_value", True),
    "deep": _nested(40),
    "5 MiB": lambda struct: setattr(struct.fields["a"], "string_value", "x" * (5 * MIB)),
}


def _invalid_utf8(name: str) -> bytes:
    fields = METHODS[name].input_type.fields
    number = next(field.number for field in fields if field.type == FieldDescriptor.TYPE_STRING)
    return bytes([number << 3 | 2]) + b"\x04\xff\xfe\xc3\x28"


# Before or after a good request; each of them cannot be read, whatever the fields are.
_BODIES: dict[str, Callable[[str, random.Random], tuple[bytes, bytes]]] = {
    "random bytes": lambda _, rng: (b"\xff" + rng.randbytes(rng.randrange(1, 300)), b""),  # wire type 7, which there is not
    "cut off": lambda *_: (b"", b"\x0a\x7fabc"),
    "invalid UTF-8": lambda name, _: (_invalid_utf8(name), b""),
    "too long a length": lambda *_: (b"\x0a\xff\xff\xff\xff\x0f", b""),
    "endless varint": lambda *_: (b"", b"\xff" * 11),
    "an end without a group": lambda *_: (b"", b"\x0c"),
    "groups in groups": lambda *_: (b"", b"\xfb\x01" * 5000),
    "field number 0": lambda *_: (b"", b"\x00\x01"),
}

_CALLERS: dict[str, Callable[[Metadata], Metadata]] = {
    "nobody": lambda good: (),
    "no account": lambda good: good[1:],
    "no user": lambda good: good[:2],
    "account is no UUID": lambda good: (("x-client-account-id", "1"), *good[1:]),
    "account in braces": lambda good: (("x-client-account-id", f"{{{good[0][1]!s}}}"), *good[1:]),
    "engagement is SQL": lambda good: (good[0], ("x-engagement-id", "' OR 1=1 --"), good[2]),
    "two accounts": lambda good: (*good, ("x-client-account-id", str(uuid4()))),
    "two users": lambda good: (*good, ("x-user-id", "eve")),
    "blank user": lambda good: (*good[:2], ("x-user-id", " ")),
    "endless user": lambda good: (*good[:2], ("x-user-id", "u" * 201)),
}


@dataclass(frozen=True, slots=True)
class Makings:
    """What faulty requests are made of: a tenant, for each RPC a flow that its call would succeed on, and another tenant's tokens."""

    tenancy: Tenancy
    flow_ids: dict[str, str]
    foreign_tokens: dict[str, str]


async def makings(tenancy: Tenancy) -> Makings:
    """The flows that the calls are about, and page tokens that another tenant was given."""
    flow_ids = {name: await call.prepare(tenancy) for name, call in CALLS.items()}
    other = tenancy.other_engagement()
    flow_id = (await other.create(flow_id=flow_ids["ListFlowEvents"])).flow_id
    await other.create()
    await other.move(flow_id, "data_import", "IN_PROGRESS")
    lists: dict[str, dict[str, Any]] = {"ListFlows": {"show_deleted": True}, "ListFlowEvents": {"flow_id": flow_id}}
    tokens = {name: (await other.call(name, page_size=1, **fields)).next_page_token for name, fields in lists.items()}
    return Makings(tenancy, flow_ids, tokens)


def faulty_requests(made: Makings, rng: random.Random, count: int) -> list[Faulty]:
    """``count`` faulty requests in an order without a pattern: every fault of every field of every RPC, the rest bad bytes and callers."""
    found = [_with(made, name, fault) for name in METHODS for fault in deck(name, made.foreign_tokens.get(name, ""))]
    for at in range(count - len(found)):
        name = rng.choice(sorted(METHODS))
        body, metadata = CALLS[name].request(made.flow_ids[name]).SerializeToString(), made.tenancy.metadata
        if at % 2:
            label = rng.choice(sorted(_BODIES))
            before, after = _BODIES[label](name, rng)
            found.append(Faulty(name, label, before + body + after, metadata))
        else:
            label = rng.choice(sorted(_CALLERS))
            found.append(Faulty(name, label, body, _CALLERS[label](metadata)))
    rng.shuffle(found)
    return found


def _with(made: Makings, name: str, fault: _Fault) -> Faulty:
    request = CALLS[name].request(made.flow_ids[name])
    fault.make(request)
    return Faulty(name, fault.name, request.SerializeToString(), made.tenancy.metadata)


def deck(name: str, foreign_token: str) -> list[_Fault]:
    """Every fault that requests of the RPC can have."""
    kind = METHODS[name].input_type
    found = list(faults(kind))
    if "expected_revision" in kind.fields_by_name:
        found.append(_Fault("expected_revision not there yet", _set((), "expected_revision", 2**63 - 1)))
    if "flow_id" in kind.fields_by_name and name != "CreateFlow":
        found.append(_Fault("flow_id nobody's", _set((), "flow_id", str(uuid4()))))
        found.append(_Fault("flow_id none", _set((), "flow_id", "")))
    found += [_Fault(f"{field} not there yet", _set((), field, 2**63 - 1)) for field in REVISIONS.get(name, ())]
    if name == "GetFlow":
        found.append(_Fault("min_revision in the future", _set((), "min_revision", 2**63 - 1)))
    if foreign_token:
        found.append(_Fault("another tenant's page token", _set((), "page_token", foreign_token)))
    return found

"""Reflection, so that grpcurl and buf curl need no protos: under both its names, and down to single methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2


class _Symbols:
    """The default descriptor pool, which also finds methods: `describe Service.Method` asks for them, and the pool knows none."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file of the symbol. Raises KeyError."""
        try:
            found: FileDescriptor = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            parent = self._pool.FindServiceByName(service)
            if method not in parent.methods_by_name:
                raise
            found = parent.file
        return found


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let clients ask what ``services`` look like. grpcurl asks for v1 first; the library registers v1alpha only, of the same form."""
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=_Symbols())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}),))

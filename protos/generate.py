"""Writes the Python code of quire/v1/*.proto: `python -m protos.generate`, or with `--check` says what is stale.

Contributors run it after a change to a .proto file; a test runs the check. The files are parsed by the protoc of
grpcio-tools; what is written is ours, for two reasons. The files are `quire/v1/x.proto` on the wire and for buf, and
`protos.quire.v1.x_pb2` in Python, which protoc cannot do. And protoc's own Python output refuses every protobuf
runtime older than itself, while all that a generated module needs is the descriptor of its file and three calls that
protobuf has had for years; `OLDEST_PROTOBUF` in `protos/__init__.py` is what this was tried with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, ServiceDescriptorProto

ROOT = Path(__file__).parent
PACKAGE = "quire/v1"
_SOURCE = "from quire.v1 import "
_TARGET = "from protos.quire.v1 import "


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description="Write the code of quire.v1.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a generated file is stale")
    options = parser.parse_args(argv)
    wanted = generate()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in sorted((ROOT / PACKAGE).glob("*_pb2*")) if path not in wanted]
    if options.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run python -m protos.generate")
        return 1 if stale else 0
    for path in stale:
        if path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
        print(f"{path.relative_to(ROOT)}: {'written' if path in wanted else 'removed'}")
    return 0


def generate() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    protos = sorted(f"{PACKAGE}/{path.name}" for path in (ROOT / PACKAGE).glob("*.proto"))
    texts: dict[Path, str] = {ROOT / PACKAGE / "__init__.py": '"""Generated modules of the wire package quire.v1."""\n'}
    with tempfile.TemporaryDirectory() as folder:
        parsed = _protoc(protos, Path(folder))
        for file in parsed.file:
            stem = ROOT / file.name.removesuffix(".proto")
            texts[stem.with_name(f"{stem.name}_pb2.py")] = _module(file)
            types = (Path(folder) / f"{file.name.removesuffix('.proto')}_pb2.pyi").read_text()
            # protoc leaves the mappings that stand for a message without their types.
            types = types.replace(_SOURCE, _TARGET).replace("_Mapping]", "_Mapping[str, object]]")
            texts[stem.with_name(f"{stem.name}_pb2.pyi")] = types
            if file.service:
                texts[stem.with_name(f"{stem.name}_pb2_grpc.py")] = _stubs(file)
                texts[stem.with_name(f"{stem.name}_pb2_grpc.pyi")] = _stub_types(file)
    return texts


def _protoc(protos: list[str], folder: Path) -> FileDescriptorSet:
    from grpc_tools import protoc

    out = folder / "descriptors"
    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    status = protoc.main(["protoc", *includes, f"--descriptor_set_out={out}", f"--pyi_out={folder}", *protos])
    if status != 0:
        raise SystemExit(f"protoc ended with {status}; what is wrong stands above")
    return FileDescriptorSet.FromString(out.read_bytes())


def _header(file: FileDescriptorProto, what: str) -> list[str]:
    return [f'"""{what} of {file.name}, written by protos/generate.py. Do not edit."""', ""]


def _module(file: FileDescriptorProto) -> str:
    lines = _header(file, "Messages")
    if file.enum_type:
        lines.append("from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper")
    lines += ["from google.protobuf.descriptor_pool import Default", *_message_class_import(file)]
    for dependency in file.dependency:
        package, name = dependency.removesuffix(".proto").rsplit("/", 1)
        prefix = "protos." if package == PACKAGE else ""
        lines.append(f"from {prefix}{package.replace('/', '.')} import {name}_pb2  # noqa: F401")
    lines += ["", f"DESCRIPTOR = Default().AddSerializedFile({_serialized(file)!r})", ""]
    for message in file.message_type:
        lines.append(f"{message.name} = GetMessageClass(DESCRIPTOR.message_types_by_name[{message.name!r}])")
    for enum in file.enum_type:
        lines += ["", f"{enum.name} = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name[{enum.name!r}])"]
        lines += [f"{value.name} = {value.number}" for value in enum.value]
    return "\n".join(lines) + "\n"


def _message_class_import(file: FileDescriptorProto) -> list[str]:
    return ["from google.protobuf.message_factory import GetMessageClass"] if file.message_type else []


def _serialized(file: FileDescriptorProto) -> bytes:
    """The descriptor without the JSON names that every runtime derives by itself, as protoc embeds it."""
    bare = FileDescriptorProto()
    bare.CopyFrom(file)
    waiting = list(bare.message_type)
    while waiting:
        message = waiting.pop()
        waiting += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    return bare.SerializeToString(deterministic=True)


def _types(file: FileDescriptorProto, service: ServiceDescriptorProto) -> list[tuple[str, str, str, str]]:
    """For each method: name, kind, and the Python names of request and response."""
    module = f"{Path(file.name).stem}_pb2"
    rows = []
    for method in service.method:
        # STANDARD lint makes requests and responses live beside their service.
        request, response = (t.removeprefix(f".{file.package}.") for t in (method.input_type, method.output_type))
        up = "stream" if method.client_streaming else "unary"
        down = "stream" if method.server_streaming else "unary"
        rows.append((method.name, f"{up}_{down}", f"{module}.{request}", f"{module}.{response}"))
    return rows


def _stubs(file: FileDescriptorProto) -> str:
    lines = [*_header(file, "Services"), "import grpc", "", f"from protos.quire.v1 import {Path(file.name).stem}_pb2"]
    for service in file.service:
        path = f"/{file.package}.{service.name}/"
        lines += ["", "", f"class {service.name}Stub:", "    def __init__(self, channel):"]
        for name, kind, request, response in _types(file, service):
            lines.append(f"        self.{name} = channel.{kind}(")
            lines.append(f'            "{path}{name}",')
            lines.append(f"            request_serializer={request}.SerializeToString,")
            lines += [f"            response_deserializer={response}.FromString,", "        )"]
        lines += ["", "", f"{service.name}AsyncStub = {service.name}Stub", "", ""]
        lines += [f"def add_{service.name}Servicer_to_server(servicer, server):", "    methods = {"]
        for name, kind, request, response in _types(file, service):
            lines.append(f'        "{name}": grpc.{kind}_rpc_method_handler(')
            lines.append(f"            servicer.{name},")
            lines.append(f"            request_deserializer={request}.FromString,")
            lines += [f"            response_serializer={response}.SerializeToString,", "        ),"]
        handler = f'grpc.method_handlers_generic_handler("{file.package}.{service.name}", methods)'
        lines += ["    }", f"    server.add_generic_rpc_handlers(({handler},))"]
    return "\n".join(lines) + "\n"


def _stub_types(file: FileDescriptorProto) -> str:
    lines = [*_header(file, "Types of the services"), "import grpc", "import grpc.aio", ""]
    lines.append(f"from protos.quire.v1 import {Path(file.name).stem}_pb2")
    for service in file.service:
        for suffix, module in (("Stub", "grpc"), ("AsyncStub", "grpc.aio")):
            lines += ["", f"class {service.name}{suffix}:"]
            lines.append(f"    def __init__(self, channel: {module}.Channel) -> None: ...")
            for name, kind, request, response in _types(file, service):
                up, down = (part.capitalize() for part in kind.split("_"))
                lines.append(f"    {name}: {module}.{up}{down}MultiCallable[{request}, {response}]")
        server = "grpc.Server | grpc.aio.Server"
        lines += ["", f"def add_{service.name}Servicer_to_server(servicer: object, server: {server}) -> None: ..."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

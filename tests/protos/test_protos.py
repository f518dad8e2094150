"""The wire package: its code is fresh, its names follow buf's STANDARD rules, and old protobuf runtimes can load it."""

import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor

from protos import OLDEST_PROTOBUF
from protos.generate import PACKAGE, ROOT, generate

SOURCES = sorted((ROOT / PACKAGE).glob("*.proto"))


def descriptors() -> list[FileDescriptor]:
    return [import_module(f"protos.quire.v1.{path.stem}_pb2").DESCRIPTOR for path in SOURCES]


def test_generated_code_is_what_the_sources_say():
    wanted = generate()
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    left_over = [path.name for path in (ROOT / PACKAGE).glob("*_pb2*") if path not in wanted]
    assert not stale and not left_over, f"run python -m protos.generate: stale {stale}, left over {left_over}"


def test_a_changed_source_makes_the_check_fail(tmp_path, monkeypatch):
    """The check itself can fail: a field more in a copy of the sources, and it names the file."""
    import protos.generate as generator

    folder = tmp_path / PACKAGE
    folder.mkdir(parents=True)
    for path in (ROOT / PACKAGE).iterdir():
        if path.is_file():
            (folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    assert generator.main(["--check"]) == 0
    source = folder / "common.proto"
    source.write_text(
        source.read_text().replace("repeated int32 ids = 1;", "repeated int32 ids = 1;\n  bool more = 2;")
    )
    assert generator.main(["--check"]) == 1
    assert generator.main([]) == 0
    assert "more" in (folder / "common_pb2.pyi").read_text()
    assert generator.main(["--check"]) == 0


def messages_of(file: FileDescriptor) -> list[Descriptor]:
    found = list(file.message_types_by_name.values())
    for message in found:
        found += [nested for nested in message.nested_types if not nested.GetOptions().map_entry]
    return found


@pytest.mark.parametrize("file", descriptors(), ids=lambda file: file.name)
def test_names_follow_buf_standard(file: FileDescriptor):
    assert file.package == "quire.v1"
    assert re.fullmatch(r"quire/v1/[a-z][a-z0-9_]*\.proto", file.name)
    snake, pascal = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*"), re.compile(r"([A-Z][a-z0-9]*)+")
    for message in messages_of(file):
        assert pascal.fullmatch(message.name)
        for field in message.fields:
            assert snake.fullmatch(field.name), f"{message.name}.{field.name}"
        for oneof in message.oneofs:
            assert snake.fullmatch(oneof.name) or oneof.name.startswith("_")  # "_x" is protoc's own for `optional x`
    for enum in [*file.enum_types_by_name.values(), *(e for m in messages_of(file) for e in m.enum_types)]:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.values[0].number == 0 and enum.values[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
        assert len({value.number for value in enum.values}) == len(enum.values)
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert pascal.fullmatch(method.name)
            names = {method.name, f"{service.name}{method.name}"}
            assert method.input_type.name in {f"{name}Request" for name in names}
            assert method.output_type.name in {f"{name}Response" for name in names}


def test_each_request_and_response_belongs_to_one_method():
    methods = [m for file in descriptors() for service in file.services_by_name.values() for m in service.methods]
    used = Counter(t.full_name for method in methods for t in (method.input_type, method.output_type))
    assert not [name for name, count in used.items() if count > 1]


def test_every_import_is_used():
    for file in descriptors():
        named = {
            target.file.name
            for message in messages_of(file)
            for field in [*message.fields, *(f for n in message.nested_types for f in n.fields)]
            for target in (field.message_type, field.enum_type)
            if target is not None
        }
        unused = {dependency.name for dependency in file.dependencies} - named
        assert not unused, f"{file.name} imports {unused} for nothing"


def test_sampling_scalars_have_presence():
    from protos.quire.v1.common_pb2 import Sampling

    for field in Sampling.DESCRIPTOR.fields:
        assert field.is_repeated or field.has_presence, field.name


def installed(folder: Path) -> bool:
    """The oldest runtime that we name, from the package index, without what it might pull in."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target"]
    command = [*pip, str(folder), f"protobuf=={OLDEST_PROTOBUF}"]
    try:
        return subprocess.run(command, timeout=60, capture_output=True, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


ROUND_TRIP = """
import google.protobuf, sys
assert google.protobuf.__version__ == sys.argv[1], google.protobuf.__version__
from protos.quire.v1 import admin_pb2, common_pb2 as c, control_pb2 as k, front_pb2, inference_pb2 as i
sampling = c.Sampling(temperature=0.5, logit_bias={1: 2.0}, early_stopping=c.EARLY_STOPPING_ON)
request = i.GenerateRequest(prompt=i.Prompt(token_ids=c.TokenIds(ids=[1, -2])), sampling=sampling)
again = i.GenerateRequest.FromString(request.SerializeToString())
assert again == request and again.prompt.WhichOneof("prompt") == "token_ids"
assert again.sampling.HasField("temperature") and not again.sampling.HasField("top_p")
plan = k.Plan(extends=k.Extends(seqs=b"12345678"), starts=[k.Start(seq=1 << 40)])
assert k.Plan.FromString(plan.SerializeToString()).starts[0].seq == 1 << 40
assert k.StopReason.Name(1) == "STOP_REASON_STOP"
import cluster
if hasattr(cluster, "Client"):
    import cluster.wire.plans, cluster.client.asynchronous
print("fine")
"""


def test_the_oldest_protobuf_runtime_loads_it(tmp_path):
    old = tmp_path / "old"
    if not installed(old):
        pytest.skip(f"protobuf {OLDEST_PROTOBUF} could not be installed from the package index")
    environment = {"PYTHONPATH": f"{old}:{ROOT.parent}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", ROUND_TRIP, OLDEST_PROTOBUF]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_project_asks_for_no_newer_runtime():
    requirement = re.search(r'"protobuf>=([0-9.]+),<(\d+)"', (ROOT.parent / "pyproject.toml").read_text())
    assert requirement is not None and requirement[1] == OLDEST_PROTOBUF and requirement[2] == "8"

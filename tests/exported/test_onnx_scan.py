"""An ONNX file that reaches outside of itself is refused, however it does so; what is no ONNX file is, too."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from foveal.errors import ArtifactError
from foveal.exported import scan
from foveal.exported.scan import check_self_contained

SHAPE = (4, 5)


def tensor(name: str, *, is_outside: bool = False, location: str = "../weights.bin") -> TensorProto:
    made = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(SHAPE), name)
    if is_outside:
        onnx.external_data_helper.set_external_data(made, location=location, offset=0, length=80)
        made.ClearField("raw_data")
    return made


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)


def model_of(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), **more: Any) -> onnx.ModelProto:
    graph = helper.make_graph([*nodes], "g", [value("x")], [value("y")], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, **more)


def add(weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("Add", ["x", weight], ["y"], name="add")


def constant(output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], **attributes)


def branching(weight: TensorProto) -> onnx.NodeProto:
    """An `If` within an `If`, a weight in its depth."""
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["s"])], "inner", [], [value("s")], [weight])
    node = helper.make_node("If", ["yes"], ["t"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([node], "outer", [], [value("t")])
    return helper.make_node("If", ["yes"], ["y"], then_branch=outer, else_branch=outer)


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(values, indices, list(SHAPE))


def function_model(weight: TensorProto, domain: str = "") -> onnx.ModelProto:
    nodes = [constant("c", value=weight), helper.make_node("Add", ["a", "c"], ["b"])]
    function = helper.make_function(domain, "Shifted", ["a"], ["b"], nodes, [helper.make_opsetid("", 20)])
    return model_of(helper.make_node("Shifted", ["x"], ["y"], domain=domain), functions=[function])


def trained(weight: TensorProto) -> onnx.ModelProto:
    model = model_of(add(), weights=(tensor("w"),))
    model.training_info.add().algorithm.initializer.append(weight)
    return model


def of_list(weight: TensorProto) -> onnx.ModelProto:
    node = add()
    node.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS, tensors=[weight]))
    return model_of(node, weights=(tensor("w"),))


def of_graphs(weight: TensorProto) -> onnx.ModelProto:
    node = add()
    graph = helper.make_graph([], "inner", [], [], [weight])
    node.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.GRAPHS, graphs=[graph]))
    return model_of(node, weights=(tensor("w"),))


def of_sparse_attributes(weight: TensorProto) -> onnx.ModelProto:
    node = add()
    many = [onnx.SparseTensorProto(values=tensor("v"), indices=weight)]
    node.attribute.append(
        onnx.AttributeProto(name="many", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=many)
    )
    return model_of(node, weights=(tensor("w"),))


def of_sparse_initializer(weight: TensorProto) -> onnx.ModelProto:
    model = model_of(add(), weights=(tensor("w"),))
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=weight, indices=tensor("i"), dims=SHAPE))
    return model


PLACES = {
    "initializer": lambda weight: model_of(add(), weights=(weight,)),
    "constant": lambda weight: model_of(constant("w", value=weight), add()),
    "list": of_list,
    "graphs": of_graphs,
    "sparse constant": lambda weight: model_of(
        constant("w", sparse_value=onnx.SparseTensorProto(values=weight, indices=tensor("i"), dims=SHAPE)), add()
    ),
    "sparse attributes": of_sparse_attributes,
    "sparse initializer": of_sparse_initializer,
    "branch": lambda weight: model_of(branching(weight)),
    "function": function_model,
    "training": trained,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_is(place: str) -> None:
    if place != "training":
        check_self_contained(PLACES[place](tensor("w")).SerializeToString())
    with pytest.raises(ArtifactError) as caught:
        check_self_contained(PLACES[place](tensor("w", is_outside=True)).SerializeToString())
    expected = "it brings code for training" if place == "training" else "the tensor 'w' lies in another file"
    assert caught.value.problems == (expected,)


def test_files_written_by_onnx_with_data_beside_them(tmp_path: Path) -> None:
    """Row 10 of the faults: a path upwards, and a hard link to a file of somebody else's."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(80))
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_of(constant("c", value=tensor("inside")), add(), weights=(tensor("w"),))
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    assert (folder / "weights.bin").stat().st_size >= 160
    (folder / "weights.bin").unlink()
    os.link(secret, folder / "weights.bin")
    with pytest.raises(ArtifactError) as caught:
        check_self_contained((folder / "model.onnx").read_bytes())
    assert set(caught.value.problems) == {
        "the tensor 'w' lies in another file",
        "the tensor 'inside' lies in another file",
    }
    for location in ("../secret", str(secret), "weights.bin", ""):
        outside = model_of(add(), weights=(tensor("w", is_outside=True, location=location),))
        with pytest.raises(ArtifactError, match="lies in another file"):
            check_self_contained(outside.SerializeToString())


def test_only_known_operators() -> None:
    for domain in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft"):
        check_self_contained(function_model(tensor("w"), domain).SerializeToString())
    foreign = "com.example.run"
    node = helper.make_node("Anything", ["x"], ["y"], domain=foreign)
    with_opset = model_of(add(), weights=(tensor("w"),))
    with_opset.opset_import.append(helper.make_opsetid(foreign, 1))
    for model in (model_of(node), function_model(tensor("w"), foreign), with_opset):
        with pytest.raises(ArtifactError, match=r"operators of the domain 'com\.example\.run' are used"):
            check_self_contained(model.SerializeToString())
    cached = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")
    with pytest.raises(ArtifactError, match="EPContext reads other files"):
        check_self_contained(model_of(cached).SerializeToString())


def varint(number: int, *, num_bytes: int = 0) -> bytes:
    """A number as protobuf has it, with needless bytes where more are asked for."""
    done = bytearray()
    while number > 0x7F or len(done) + 1 < num_bytes:
        done.append((number & 0x7F) | 0x80)
        number >>= 7
    return bytes([*done, number])


def field(number: int, content: bytes, *, tag_bytes: int = 0) -> bytes:
    return varint(number << 3 | 2, num_bytes=tag_bytes) + varint(len(content)) + content


def graph_with(tensor_bytes: bytes) -> bytes:
    return field(7, field(5, tensor_bytes))


@pytest.mark.parametrize(
    "content",
    [
        # A second graph in one file: parsers join the two.
        graph_with(b"") + graph_with(varint(14 << 3) + varint(1)),
        # Parsers cut this to 32 bits, which leaves 1.
        graph_with(varint(14 << 3) + varint(2**32 + 1)),
        graph_with(varint(14 << 3, num_bytes=4) + varint(1, num_bytes=9)),
        # The last value counts for parsers; any does here.
        graph_with(varint(14 << 3) + varint(1) + varint(14 << 3) + varint(0)),
        field(7, field(5, field(13, field(1, b"location") + field(2, b"../x"), tag_bytes=5), tag_bytes=3)),
    ],
)
def test_what_parsers_forgive_is_no_way_around(content: bytes) -> None:
    check_self_contained(graph_with(b""))
    with pytest.raises(ArtifactError, match="lies in another file"):
        check_self_contained(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is no graph"),
        (b"<!DOCTYPE html><html></html>", "a field has the type 4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "field"),
        (b"PK\x03\x04" + bytes(40), "field"),
        (b"\x3a\xff\xff\xff\xff\x07abc", "ends after"),
        (b"\x3a" + b"\xff" * 20, "a number has no end"),
        (b"\x3a", "a number has no end"),
        (b"\x00\x00", "a field has the number 0"),
        (varint(2**33 << 3 | 2) + b"\x00", "a field has the number"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        check_self_contained(content)


def test_a_model_in_another_format_that_is_also_an_onnx_file() -> None:
    """ONNX Runtime would take it for its own format, and never look at the graph that was checked."""
    content = b"\x08\x0a" + field(6, b"ORTM") + graph_with(b"")
    assert content[4:8] == b"ORTM"
    with pytest.raises(ArtifactError, match="own format"):
        check_self_contained(content)


def test_depth_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b""
    for _ in range(2_000):
        content = field(1, field(5, field(6, content)))
    start = time.thread_time()
    with pytest.raises(ArtifactError, match="too deep"):
        check_self_contained(field(7, content))
    monkeypatch.setattr(scan, "_MAX_FIELDS", 1_000)
    with pytest.raises(ArtifactError, match="more than 1,000 fields"):
        check_self_contained(b"\x08\x01" * 1_000_000)
    assert time.thread_time() - start < 5.0


def test_weights_are_stepped_over() -> None:
    content = graph_with(field(9, bytes(200_000_000)))
    start = time.thread_time()
    check_self_contained(content)
    assert time.thread_time() - start < 0.5


SEED = model_of(
    constant("c", value=tensor("inside")), branching(tensor("w")), weights=(tensor("v"), tensor("u"))
).SerializeToString()


def tensors_of(message: Any) -> Iterator[TensorProto]:
    """All tensors anywhere in a message, found by protobuf's own description of it."""
    if isinstance(message, TensorProto):
        yield message
    for described, content in message.ListFields():
        if described.type == described.TYPE_MESSAGE:
            for inner in content if described.is_repeated else [content]:
                yield from tensors_of(inner)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    content = bytearray(SEED)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(content) - 1))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            content[place] = draw(st.integers(0, 255))
        elif kind == 1:
            content[place:place] = draw(
                st.sampled_from((b"\x70\x01", b"\x6a\x00", b"\x6a\x04\x0a\x02ab", b"\xa2\x01\x00"))
            )
        elif kind == 2:
            del content[place : place + draw(st.integers(1, 9))]
        else:
            content[place] = (content[place] + draw(st.integers(1, 5))) % 256
        if not content:
            break
    return bytes(content)


@settings(max_examples=600, deadline=None)
@given(content=st.one_of(mutated(), st.binary(max_size=60)))
def test_damaged_files_are_refused_or_harmless(content: bytes) -> None:
    try:
        check_self_contained(content)
    except ArtifactError:
        return
    # What passes is for onnx either no model, or one without anything outside.
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return
    assert not any(each.data_location or each.external_data for each in tensors_of(model))


def test_cut_off_at_any_byte() -> None:
    check_self_contained(SEED)
    num_refused = 0
    for length in range(len(SEED)):
        try:
            check_self_contained(SEED[:length])
        except ArtifactError:
            num_refused += 1
    # Between two fields of the outermost message it cannot be told; there are two before the end.
    assert num_refused >= len(SEED) - 3

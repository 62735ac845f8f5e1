"""A SavedModel's graph in a session, as TensorFlow Serving loads it.

`tf.saved_model.load` makes Python objects of every function of the graph. These are a hundred
thousand for a ranking model; they take the interpreter from requests while they are made, and
stop all of them for half a second when they are collected. A session keeps the graph in C++.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_graph(folder: Path) -> Any:
    """The MetaGraphDef that is served, of a SavedModel's folder.

    Raises:
        OSError: There is no `saved_model.pb`, or it cannot be read.
        ValueError: It is damaged, or has no graph to serve.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved_model.pb"
    try:
        saved = SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"Cannot parse file {path}: {error}") from None
    for meta in saved.meta_graphs:
        if "serve" in meta.meta_info_def.tags:
            return meta
    raise ValueError(f"{path} has no graph of the tag serve")


def import_graph(meta: Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Add to the default graph what a SavedModel needs to answer some outputs.

    Args:
        meta: What `read_graph` gave.
        inputs: Tensors by the names of those of the SavedModel that they stand in for.
        outputs: Names of the tensors that are asked for.

    Returns:
        These tensors.
    """
    import tensorflow as tf

    part = needed(meta.graph_def, [*outputs, *_start(meta), meta.saver_def.restore_op_name])
    # The interpreter stands still in each import, so functions and ops are imported apart.
    nodes = type(part)(versions=part.versions, node=part.node)
    del part.node[:]
    tf.graph_util.import_graph_def(part, name="")
    return tf.graph_util.import_graph_def(
        nodes, input_map=dict(inputs), return_elements=list(outputs), name=""
    )


def fill(session: Any, meta: Any, folder: Path) -> None:
    """Read a SavedModel's variables and lookup tables into a session of its graph."""
    saver = meta.saver_def
    variables = str(folder / "variables" / "variables")
    session.run(saver.restore_op_name, {saver.filename_tensor_name: variables})
    there = {operation.name for operation in session.graph.get_operations()}
    assets = {
        asset.tensor_info.name: str(folder / "assets" / asset.filename)
        for asset in meta.asset_file_def
        if _node(asset.tensor_info.name) in there
    }
    session.run(_start(meta), assets)


def _start(meta: Any) -> list[str]:
    return [info.name for info in meta.signature_def["__saved_model_init_op"].outputs.values()]


def needed(graph: Any, targets: Iterable[str]) -> Any:
    """What tensors and ops need of a GraphDef, functions too.

    TensorFlow takes long to import the rest, and would never run it: the other signatures, and
    what saves the model.
    """
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    kept = _reached(map(_node, targets), lambda name: (_node(each) for each in nodes[name].input))
    called = _reached(
        _called(nodes[name] for name in kept),
        lambda name: _called(functions[name].node_def) if name in functions else (),
    )
    part = type(graph)(versions=graph.versions)
    part.node.extend(node for node in graph.node if node.name in kept)
    part.library.function.extend(function for name, function in functions.items() if name in called)
    return part


def _reached(start: Iterable[str], follow: Callable[[str], Iterable[str]]) -> set[str]:
    reached: set[str] = set()
    ahead = list(start)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead.extend(follow(name))
    return reached


def _called(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            yield value.func.name
            yield from (each.name for each in value.list.func)


def _node(tensor: str) -> str:
    """The op of a tensor's name: `call:1` is of `call`, and `^start` waits for `start`."""
    return tensor.removeprefix("^").partition(":")[0]

"""Symbolic tracing that knows what every value is on the example inputs.

torch.fx gives up where control flow asks a proxy for its truth, length or elements. Here each
node is also executed while it is recorded, so sizes, lengths and comparisons of sizes have their
answers: branches and loops go the way they go on inputs of this size. Inputs that aren't given are
their defaults. Nothing that depends on the *contents* of a tensor is decided. Sizes that only flow
into operators stay in the graph.

A module whose code still can't be followed becomes a leaf, the innermost one that contains the
place; the rest goes on.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError
from torch.utils._pytree import tree_leaves

from passes._einops import accept_proxies
from passes._inplace import sliceable
from passes._kinds import kinds_of_values
from passes._wrappers import hooked
from pleas_fx.module_tree import execute, kept_values, twin


def concrete_trace(
    model: nn.Module, inputs: Sequence[Tensor], leaves: Collection[str] = ()
) -> fx.GraphModule:
    """The graph of ``model`` on inputs of these sizes; modules at ``leaves`` aren't entered."""
    first = twin(model)  # code may leave proxies behind
    try:
        return _traced(first, Tracer(inputs, leaves, kept_values(first)))
    except Exception:  # noqa: BLE001 (its own code may ask what its buffers hold)
        return _traced(model, Tracer(inputs, leaves))


def _traced(model: nn.Module, tracer: Tracer) -> fx.GraphModule:
    accept_proxies()
    with torch.no_grad(), _factories(tracer), kinds_of_values(model, tracer.value):
        graph = tracer.trace(model)
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


NOTHING, EVERYTHING = range(0), range(1 << 64)  # of the ids of buffers

FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")


@contextmanager
def _factories(tracer: Tracer) -> Iterator[None]:
    """Functions of torch that take sizes and no tensor: they don't notice proxies by themselves."""

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def record(*args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return record

    with ExitStack() as stack:
        for name in FACTORIES:
            function = getattr(torch, name)
            stack.callback(setattr, torch, name, function)
            setattr(torch, name, recording(function))
        yield


OF_LAYERS = (
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.Transformer,
)


def is_composed(module: nn.Module) -> bool:
    """Whether a module of torch's own is to be entered: it is made of layers, computes weights on
    every call (``parametrize``), runs hooks, or is a batch norm of several processes, which
    evaluates as an ordinary one.
    """
    return (
        type(module) in (*OF_LAYERS, nn.SyncBatchNorm)
        or type(module).__module__.startswith("torch.nn.utils.")
        or hooked(module)
    )


class _Known(fx.Proxy):
    """A proxy that answers for its size and, if it is one, as a number."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.tracer.value(self), name)  # type: ignore[attr-defined]
        if isinstance(found, str):  # no operand, but an answer: ``x.device.type``
            return found
        return _KnownAttribute(self, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tracer.iter(self))  # unpacking, too: a part may be None

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.write(self, key, value)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.tracer.value(self))  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return int(self.tracer.number(self))  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return self.__index__()

    def __float__(self) -> float:
        return float(self.tracer.number(self))  # type: ignore[attr-defined]


class _KnownAttribute(_Known, Attribute):
    """``x.shape`` and its like; a node only once it is used, so that methods can be called."""


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
MADE = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})


class Tracer(fx.Tracer):
    """Executes every node when it is made, on example inputs."""

    def __init__(
        self, inputs: Sequence[Tensor], leaves: Collection[str], kept: Container[int] = NOTHING
    ) -> None:
        super().__init__()
        self.leaves, self.kept = leaves, kept
        self.inputs: Iterator[Any] = iter([t.detach().clone() for t in inputs])
        self.values: dict[fx.Node, Any] = {}
        self.executing = False
        self.opaque: set[nn.Module] = set()
        self.parameters: dict[str, fx.Proxy] = {}

    # -- questions that proxies ask ----------------------------------------------------------

    def value(self, proxy: fx.Proxy) -> Any:
        return self.values[proxy.node]

    def number(self, proxy: fx.Proxy) -> int | float:
        value = self.value(proxy)
        if isinstance(value, Tensor) or not isinstance(value, (bool, int, float)):
            raise TraceError(f"{proxy.node} is needed as a number, but is a {type(value).__name__}")
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value(obj)
        if isinstance(value, Tensor):
            raise TraceError("control flow depends on the contents of a tensor")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        elements: Any = obj  # proxies can be indexed, their stubs don't say so
        values = self.value(obj)
        return iter([None if values[k] is None else elements[k] for k in range(len(values))])

    def keys(self, obj: fx.Proxy) -> Any:
        return self.value(obj).keys()

    def write(self, proxy: fx.Proxy, key: Any, value: Any) -> None:
        """``proxy[key] = value``: of a constant, as masks are made, it stays one; else a write."""
        node = proxy.node
        constant = node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
        made = node.op == "call_method" and node.target in MADE
        if not (node.users or isinstance(value, fx.Proxy)) and (constant or made):
            written = self.values[node].clone()
            written[key] = value
            proxy.node = cast(fx.Node, self.create_arg(written))
            self.graph.erase_node(node)
            return
        if constant or not sliceable(key):  # a constant has this batch's size
            raise TraceError("writes into a part of a tensor")
        part = self.create_proxy("call_function", operator.getitem, (proxy, key), {})
        tensor = isinstance(value, fx.Proxy) and isinstance(self.value(value), Tensor)
        self.create_proxy("call_method", "copy_" if tensor else "fill_", (part, value), {})

    # -- every node is executed when it is made ----------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_node(self, kind: str, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, *rest, **more)
        if kind != "output":
            before, self.executing = self.executing, True
            try:
                self.values[node] = self._execute(node)
            finally:
                self.executing = before
        return node

    def _execute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return next(self.inputs, *node.args)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        return execute(self.root, node.op, node.target, args, kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Nobody gives anything by keyword; what is left of the inputs goes to ``*args``."""
        signature = inspect.signature(root_fn)
        args: list[Any] = []
        for name, parameter in signature.parameters.items():
            if not args:
                args.append(self.root)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args += self._rest(name)
            elif parameter.kind in POSITIONAL:
                args.append(self._proxy_placeholder(name, concrete_args, signature, root_fn))
        return root_fn, args

    def _rest(self, name: str) -> list[fx.Proxy]:
        inputs = list(self.inputs)
        self.inputs = iter(inputs)
        return [self.create_proxy("placeholder", f"{name}_{k}", (), {}) for k in range(len(inputs))]

    def _proxy_placeholder(self, name: str, *rest: Any) -> Any:
        proxy = super()._proxy_placeholder(name, *rest)
        if isinstance(self.value(proxy), Tensor):
            return proxy
        self.graph.erase_node(proxy.node)
        return self.values.pop(proxy.node)

    # -- modules that can't be followed ------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = super().is_leaf_module(m, module_qualified_name) and not is_composed(m)
        return leaf or m in self.opaque or module_qualified_name in self.leaves

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.executing or not self._is_part(m):
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        for kept in (self.kept, NOTHING, EVERYTHING):
            before, stack = len(self.graph.nodes), self.module_stack.copy()
            try:
                with self._keeping(kept):
                    return super().call_module(m, forward, args, kwargs)
            except Exception:  # noqa: BLE001 (anybody's code)
                self._forget(before)
                self.module_stack = stack
        self.opaque.add(m)
        return super().call_module(m, forward, args, kwargs)

    def _is_part(self, m: nn.Module) -> bool:
        """Not so of what the code makes as it goes: a slice of a Sequential, an activation."""
        try:
            return bool(self.path_of_module(m)) or m is self.root
        except NameError:
            return False

    @contextmanager
    def _keeping(self, kept: Container[int]) -> Iterator[None]:
        """Buffers that are nodes: methods of theirs may be given sizes of the inputs.

        The others are known: control flow may depend on what they hold.
        """
        before, self.kept = self.kept, kept
        try:
            yield
        finally:
            self.kept = before

    def _forget(self, before: int) -> None:
        """Take back the nodes of an attempt."""
        nodes = list(self.graph.nodes)[before:]
        for node in reversed(nodes):
            self.graph.erase_node(node)
            self.values.pop(node, None)
        gone = [key for key, proxy in self.parameters.items() if proxy.node in nodes]
        for key in gone:
            del self.parameters[key]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self.executing:
            return attr_val
        self.parameters = parameter_proxy_cache
        self.proxy_buffer_attributes = id(attr_val) in self.kept
        return super().getattr(attr, attr_val, parameter_proxy_cache)

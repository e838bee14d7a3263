"""Trace a model into a program: a private fx graph without in-place edits, with shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from passes._batch import batch, one_more, open_batch
from passes._behaving import with_norms
from passes._concrete import concrete_trace, is_composed
from passes._exported import drop_guards, exported, is_exported
from passes._inline import inlined
from passes._inplace import without_writes
from passes._plainer import plainer
from passes._quiet import quiet
from passes._read_only import WriteError, read_only
from passes._results import called, tensors
from passes._wrappers import full_precision, unwrapped
from pleas_fx.errors import TraceError
from pleas_fx.ir import Program
from pleas_fx.module_tree import constants, copied, forgetful, kept_values, leave_out, twin

Inputs = tuple[Tensor, ...]
FrontEnd = Callable[[nn.Module, Inputs], fx.GraphModule]
Ends = dict[str, FrontEnd]

SAME = 1e-4  # relative; the same operators in the same order usually agree to the bit


@dataclass(frozen=True, slots=True)
class Trace:
    """Options of the pass."""

    name: str = "trace"

    def run(self, model: nn.Module, inputs: Inputs) -> Program:
        return trace(model, inputs)


def trace(model: nn.Module, inputs: Sequence[Tensor], *, leaves: Collection[str] = ()) -> Program:
    """A program of ``model`` in eval mode; ``inputs`` are example inputs, batch first.

    ``leaves``: paths of modules that are to stay single operators.

    The model itself is untouched: a copy is traced, symbolically where that works, else with the
    sizes of the example, else by torch.export. The program has the model's own parameters where
    the model's code only reads them, else copies. In-place operators become ordinary ones,
    operators that do nothing in eval mode (dropout, stochastic depth) disappear.

    Raises:
        TraceError: no graph computes what the model does on the example inputs.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {type(model).__name__}")
    _refuse(model)
    given = tuple(inputs)
    with full_precision():
        program = None if is_exported(model) else _sharing(model, given, leaves)
        return program or traced(_own(copied(model), given), given, leaves=leaves)


def _own(copy: nn.Module, given: tuple[Tensor, ...]) -> nn.Module:
    """What is traced of a copy: the model in eval mode, and nothing around it."""
    return with_norms(unwrapped(forgetful(copy).eval(), given), given)


def _sharing(
    model: nn.Module, given: tuple[Tensor, ...], leaves: Collection[str]
) -> Program | None:
    """With the model's own parameters; None where its code writes to them, or isn't followed."""
    if any(map(is_lazy, model.parameters())):  # the first run makes them
        return None
    with read_only(model) as guard:
        try:
            program = _first_success(_own(twin(model), given), given, _followed(leaves))
        except (TraceError, WriteError):
            return None
    return None if guard.written or not program.general else program


def traced(own: nn.Module, inputs: Sequence[Tensor], *, leaves: Collection[str] = ()) -> Program:
    """The same of a module that nobody else has: its parameters become the program's."""
    given = tuple(inputs)
    first = {} if is_exported(own) and not leaves else _followed(leaves)
    last: Ends = {"nor by torch.export": exported}  # which knows no modules
    return _first_success(own, given, first | ({} if leaves else last))


def _followed(leaves: Collection[str]) -> Ends:
    """Front ends that run the model's code, and what it means that one fails."""
    return {
        "can't be traced by torch.fx": partial(_symbolic, leaves=leaves),
        "nor with known sizes": partial(concrete_trace, leaves=leaves),
    }


def _first_success(own: nn.Module, given: Inputs, ends: Ends) -> Program:
    failures, special = [], None
    for name, front_end in ends.items():
        try:
            program = _opened(_program(front_end, own, given), front_end, own)
        except TraceError as failure:
            failures.append(f"{name}: {failure}")
            continue
        if program.general:
            return program
        special = special or program
    if special is not None:
        return special
    raise TraceError(f"{type(own).__name__} {'; '.join(failures)}")


def _refuse(model: nn.Module) -> None:
    for name, module in model.named_modules():
        why = _without_weights(module)
        if why:
            raise TraceError(f"module {name or type(model).__name__} {why}")


def _without_weights(module: nn.Module) -> str | None:
    """Why there is no graph over parameters to be had of a module."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript, which has no graph of torch.fx; give the model as before scripting"
    home = type(module).__module__.split(".")
    if home[0] == "torch" and PACKED.intersection(home) and "stubs" not in home:
        return "is quantised: its weights can't be merged; merge first, and quantise the result"
    return None


PACKED = {"quantized", "qat", "quantization"}  # packages of torch


class _Symbolic(fx.Tracer):
    def __init__(self, model: nn.Module, leaves: Collection[str]) -> None:
        super().__init__()
        self.leaves, self.kept = leaves, kept_values(model)
        self.nodes = isinstance(model, fx.GraphModule)  # all buffers are already

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = super().is_leaf_module(m, module_qualified_name) and not is_composed(m)
        return leaf or module_qualified_name in self.leaves

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        self.proxy_buffer_attributes = self.nodes or id(attr_val) in self.kept
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _symbolic(model: nn.Module, _: Inputs, leaves: Collection[str]) -> fx.GraphModule:
    tracer = _Symbolic(model, leaves)
    graph = tracer.trace(model)
    return fx.GraphModule(model, graph, type(model).__name__)


def _program(front_end: FrontEnd, model: nn.Module, inputs: Inputs) -> Program:
    try:
        module = front_end(twin(model), inputs)
    except Exception as error:
        raise TraceError(_first_line(error)) from error
    try:
        entered = inlined(module, inputs)
        if entered is not None:
            return _finished(entered, model, inputs)
    except Exception:  # noqa: BLE001 (somebody's functions stay single operators)
        pass
    return _finished(module, model, inputs)


def _opened(program: Program, front_end: FrontEnd, model: nn.Module) -> Program:
    """The same for any number of examples, if code has only made a number of theirs."""
    examples = batch(program.inputs)
    if program.general or examples is None:
        return program
    try:
        longer = _program(front_end, model, one_more(program.inputs)).module
    except TraceError:
        return program
    if not open_batch(program.module, longer, examples):
        return program
    program.module.recompile()
    general = _is_general(program.module, model, program.inputs)
    return replace(program, modules=_paths(program.module), general=general is not False)


def _finished(module: fx.GraphModule, model: nn.Module, inputs: Inputs) -> Program:
    leave_out(module, constants(model))  # torch.fx copies buffers as lasting ones
    without_writes(module)  # first: what only writes in place looks dead
    drop_guards(module)
    plainer(module)
    module.graph.eliminate_dead_code()
    shapes, result = _run(module, inputs)
    module.graph.lint()
    module.recompile()
    general = _is_general(module, model, inputs)
    if not general:
        _check(result, model, inputs)
    return Program(module, inputs, shapes, _paths(module), general is not False)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Runner(fx.Interpreter):
    """Runs the graph once: shapes, and the nodes that hand their input through unchanged."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be appended to our errors
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.identities: list[fx.Node] = []

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:
            text = f"{describe(n)} fails on the example inputs: {_first_line(error)}"
            raise TraceError(text) from error
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
            source = _first(n)
            if n.op.startswith("call") and source is not None and result is self.env.get(source):
                self.identities.append(n)
        return result


def _first(node: fx.Node) -> fx.Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def describe(node: fx.Node) -> str:
    """A node as an error message names it: its name, operator and module path."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    path = module_path(node)
    return f"node {node.name} ({target})" + (f" in module {path}" if path else "")


def module_path(node: fx.Node) -> str:
    """The path of the innermost module whose code made this node."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _run(module: fx.GraphModule, inputs: Inputs) -> tuple[dict[str, tuple[int, ...]], Any]:
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    required = [n for n in placeholders if not n.args]
    if not len(required) <= len(inputs) <= len(placeholders):
        raise TraceError(f"the model takes {len(required)} inputs, {len(inputs)} were given")
    runner = _Runner(module)
    with torch.no_grad():
        result = runner.run(*(t.detach().clone() for t in inputs))
    for node in runner.identities:
        source = _first(node)
        assert source is not None
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        runner.shapes.pop(node.name)
    return runner.shapes, result


def _check(result: Any, model: nn.Module, inputs: Inputs) -> None:
    """Compare with the model itself: not every write through a view survives tracing."""
    try:
        wanted = called(twin(model), inputs)
    except Exception as error:  # it takes its inputs by name, say
        raise TraceError(f"the model fails on the example inputs: {_first_line(error)}") from error
    if not tensors(wanted):
        raise TraceError(f"the model returns no tensors, but {type(wanted).__name__}")
    if not _agree(result, wanted):
        raise TraceError(
            f"the graph of {type(model).__name__} doesn't compute what the model does: it "
            "writes into a slice of a tensor, or is random in eval mode"
        )


def _is_general(module: fx.GraphModule, model: nn.Module, inputs: Inputs) -> bool | None:
    """Whether the graph is the model's for another number of examples, too; None: can't be told.

    A loop over the examples is as long as the batch; the model itself may be for one size. One
    more shows that; one less would leave such a loop with nothing to do.
    """
    if batch(inputs) is None:
        return None
    others = one_more(inputs)
    try:
        wanted = called(twin(model), others)
    except Exception:  # noqa: BLE001 (anybody's code)
        return False if is_exported(model) else None
    if not tensors(wanted):
        return None
    try:
        with quiet():  # a graph module prints where it fails
            return _agree(called(module, others), wanted)
    except Exception:  # noqa: BLE001 (whatever an operator raises for such sizes)
        return False


def _agree(result: Any, wanted: Any) -> bool:
    found, expected = tensors(result), tensors(wanted)
    return len(found) == len(expected) and all(map(_close, found, expected))


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    a, b = found.double(), expected.double()
    return bool(((a - b).norm() <= SAME * b.norm()) | ~b.isfinite().all())


def _paths(module: fx.GraphModule) -> dict[str, str]:
    return {node.name: module_path(node) for node in module.graph.nodes}

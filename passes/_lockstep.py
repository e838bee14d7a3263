"""Several networks, one walk: all batches at one node before the next, live values only."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pleas_fx.algebra.moments import is_finite
from pleas_fx.errors import CalibrationError
from pleas_fx.module_tree import execute

Batch = tuple[Tensor, ...]
MEMORY = 4 << 30  # bytes of activations held before they go to disk


class Store:
    """Values by name and batch; what exceeds the memory bound lies in temporary files."""

    def __init__(self, limit: int = MEMORY) -> None:
        self.limit = limit
        self.held = 0
        self.peak = 0
        self._values: dict[tuple[str, int], Any] = {}
        self._bytes: dict[tuple[str, int], int] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def put(self, name: str, batch: int, value: Any) -> None:
        """Keep a value."""
        size = _bytes(value)
        if isinstance(value, Tensor) and self.held + size > self.limit:
            value, size = self._spill(value), 0
        self.held += size
        self.peak = max(self.peak, self.held)
        self._values[name, batch] = value
        self._bytes[name, batch] = size

    def get(self, name: str, batch: int) -> Any:
        """A kept value."""
        value = self._values[name, batch]
        return torch.from_numpy(np.load(value)) if isinstance(value, Path) else value

    def has(self, name: str, batch: int) -> bool:
        """Whether a value is kept."""
        return (name, batch) in self._values

    def free(self, name: str, batch: int) -> None:
        """Forget a value."""
        value = self._values.pop((name, batch), None)
        self.held -= self._bytes.pop((name, batch), 0)
        if isinstance(value, Path):
            value.unlink()

    def _spill(self, value: Tensor) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="pleas_fx_")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, value.cpu().numpy())
        return path

    def close(self) -> None:
        """Drop everything, files included."""
        self._values.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _bytes(value: Any) -> int:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tree_leaves(value)
        if isinstance(t, Tensor)
    }
    return sum(storages.values())


class Network:
    """One graph on all batches, evaluated in whatever order the walk asks for.

    Nodes wait until a value is asked for; then each batch goes through all that wait, while its
    values are in the cache, and only what somebody still needs is kept.
    """

    def __init__(
        self, module: fx.GraphModule, batches: Sequence[Batch], store: Store, label: str
    ) -> None:
        self.module, self.batches, self.store, self.label = module, batches, store, label
        self.nodes = {n.name: n for n in module.graph.nodes}
        self.waiting = {n.name: len(n.users) for n in module.graph.nodes}
        self._inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._pending: list[fx.Node] = []
        self._awaited: set[str] = set()  # values that pending nodes make or use

    def run(self, name: str) -> None:
        """Let a node be evaluated; its parameters mustn't change any more."""
        node = self.nodes[name]
        if node.op == "output":
            return
        self._pending.append(node)
        self._awaited |= {node.name, *(n.name for n in node.all_input_nodes)}
        for operand in node.all_input_nodes:
            self.waiting[operand.name] -= 1

    def release(self, name: str) -> None:
        """One user less is waiting for a value."""
        self.waiting[name] -= 1
        if self.waiting[name] == 0 and name not in self._awaited:
            for batch in range(len(self.batches)):
                self.store.free(self._key(name), batch)

    def hold(self, name: str) -> None:
        """Keep a value until it is released once more."""
        self.waiting[name] += 1

    def value(self, name: str, batch: int) -> Any:
        """A node's value on a batch."""
        self._flush()
        return self.store.get(self._key(name), batch)

    def known(self, name: str, batch: int) -> bool:
        """Whether a node's value is there."""
        self._flush()
        return self.store.has(self._key(name), batch)

    def _flush(self) -> None:
        """Evaluate what waits, batch by batch; free every value after its last use."""
        pending, self._pending = self._pending, []
        self._awaited = set()
        last = {n.name: k for k, node in enumerate(pending) for n in (node, *node.all_input_nodes)}
        for batch in range(len(self.batches)):
            for k, node in enumerate(pending):
                with torch.inference_mode():
                    value = self._evaluate(node, batch)
                self.store.put(self._key(node.name), batch, value)
                del value
                for n in (node, *node.all_input_nodes):
                    if last[n.name] == k and self.waiting[n.name] == 0:
                        self.store.free(self._key(n.name), batch)

    def _key(self, name: str) -> str:
        return f"{self.label}:{name}"

    def _evaluate(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            index = self._inputs.index(node)
            given = self.batches[batch]
            return given[index] if index < len(given) else node.args[0]
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: self.store.get(self._key(n.name), batch)
        )
        return execute(self.module, node.op, node.target, args, kwargs)


def require_finite(rows: Tensor, batch: int, node: str) -> None:
    """Refuse what would poison a sum.

    Raises:
        CalibrationError: names the batch and the layer.
    """
    if not is_finite(rows):
        raise CalibrationError(f"batch {batch} gives NaN or Inf at node {node}")

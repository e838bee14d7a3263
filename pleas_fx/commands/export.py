"""``pleas-fx export``: a network as ONNX, in parity with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pleas_fx.commands.artefacts import saved_recipe
from pleas_fx.commands.inputs import Shape, inputs_for
from pleas_fx.commands.output import Answer, progress


def export(model: str, out: Path, shapes: Sequence[Shape]) -> Answer:
    """Write ONNX and say how close ONNX Runtime comes."""
    from pleas_fx.api import export_onnx
    from pleas_fx.sources import load_model

    with progress("export") as report:
        report("load")
        network = load_model(model)
        report("export")
        known = shapes or saved_recipe(Path(model)).input
        parity = export_onnx(network, inputs_for(network, known), out)
    document = {
        "command": "export",
        "out": str(out),
        "bytes": out.stat().st_size,
        "max_error": parity.max_error,
        "outputs": dict(parity.outputs),
        "batches": list(parity.batches),
        "exporter": parity.exporter,
    }
    text = f"written to {out}; ONNX Runtime's relative error: {parity}"
    return Answer(document, (text,))

"""The command line ``pleas-fx``. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pleas_fx.commands.output import INTERRUPTED, session

app = typer.Typer(
    name="pleas-fx",
    help="Merge trained CNNs with the same graph into one network of the size you want.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL_HELP = (
    "torchvision:NAME, timm:NAME or file.py:factory, each with @weights.safetensors or "
    "@weights.pt; a folder that merge wrote; or a .pt2 program."
)
DATA_HELP = "A folder of images, .npz[:key], .npy, .safetensors[:key], .pt[:key] or file.py:loader."

Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Models = Annotated[
    list[str], typer.Argument(help=f"{MODEL_HELP} Or one recipe.yaml.", show_default=False)
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="Shape of an example input, such as 1,3,224,224; one each."),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option("--calibration", help=f"{DATA_HELP} Once for all models, or once for each."),
]
Mean = Annotated[str | None, typer.Option(help="Of the pixels in [0, 1], one a channel.")]
Std = Annotated[str | None, typer.Option(help="Of the pixels in [0, 1], one a channel.")]
Samples = Annotated[int | None, typer.Option(help="Take this many examples of every data set.")]
Width = Annotated[float | None, typer.Option(help="Channels relative to one model.")]
Flops = Annotated[float | None, typer.Option(help="Executed FLOPs relative to one model.")]
Params = Annotated[float | None, typer.Option(help="Parameters relative to one model.")]
Latency = Annotated[float | None, typer.Option(help="Seconds a batch relative to one model.")]
Heads = Annotated[str | None, typer.Option(help="separate (one output a model), shared or joint.")]
Method = Annotated[
    str | None, typer.Option(help="pleas, average, permute, pleas-paper or side-by-side.")
]
Synthetic = Annotated[
    int | None,
    typer.Option(
        help="Inputs to make for each source, from what its norms keep; as many as are needed if "
        "not given.",
        min=0,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        help="Other plans to fit whole and choose from, 16 to 64 say: slower, and often better.",
        min=0,
    ),
]
Distil = Annotated[
    int | None,
    typer.Option(
        help="Steps of training all layers on the sources' answers, without labels; 300, say.",
        min=0,
    ),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same network.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        from pleas_fx import __version__

        print(f"pleas-fx {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass


@app.command()
def groups(
    model: Model,
    input: Input = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the network, each group in its colour, as a page."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show which channels of MODEL can be permuted together, with a certificate."""
    with session(as_json, debug) as current:
        from pleas_fx.commands.groups import groups as run
        from pleas_fx.commands.inputs import shape

        current.answer = run(model, [shape(text) for text in input or ()], html)


@app.command()
def plan(
    models: Models,
    calibration: Calibration = None,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    samples: Samples = None,
    width: Width = None,
    flops: Flops = None,
    params: Params = None,
    latency: Latency = None,
    heads: Heads = None,
    method: Method = None,
    seed: Seed = None,
    synthetic: Synthetic = None,
    trials: Trials = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a merge would do with every group of channels."""
    with session(as_json, debug) as current:
        from pleas_fx.commands.merging import complete, given
        from pleas_fx.commands.merging import plan as run

        typed = given(locals())
        current.answer = run(current, complete(tuple(models), typed), device)


@app.command()
def merge(
    models: Models,
    calibration: Calibration = None,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    samples: Samples = None,
    width: Width = None,
    flops: Flops = None,
    params: Params = None,
    latency: Latency = None,
    heads: Heads = None,
    method: Method = None,
    seed: Seed = None,
    synthetic: Synthetic = None,
    trials: Trials = None,
    distil: Distil = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The folder to write; out/merged.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge two or more MODELS, or what a recipe.yaml says, and write the artefact folder."""
    with session(as_json, debug) as current:
        from pleas_fx.commands.merging import complete, given
        from pleas_fx.commands.merging import merge as run

        typed = given(locals())
        current.answer = run(current, complete(tuple(models), typed), device)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that merge wrote.")],
    data: Annotated[str, typer.Option("--data", help=DATA_HELP)],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Whole numbers: .npy, .npz[:key], .safetensors[:key] or file.py:loader; "
            "else what a loader of data gives beside the images."
        ),
    ] = None,
    output: Annotated[
        int | None,
        typer.Option(help="Labels are the classes of this output; else of all side by side."),
    ] = None,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    samples: Samples = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the network in DIR on data: accuracy, and whether its ONNX file agrees."""
    with session(as_json, debug) as current:
        from pleas_fx.commands.evaluate import Question
        from pleas_fx.commands.evaluate import evaluate as run
        from pleas_fx.commands.merging import given

        typed = given(locals())
        current.answer = run(current, folder, Question(data, labels, output), typed)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "merged.onnx"
    ),
    input: Input = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write MODEL as ONNX with a dynamic batch, checked against ONNX Runtime."""
    with session(as_json, debug) as current:
        from pleas_fx.commands.export import export as run
        from pleas_fx.commands.inputs import shape

        current.answer = run(model, out, [shape(text) for text in input or ()])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("out"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge the two fixture networks of a checkout in every way and print the table."""
    with session(as_json, debug) as current:
        from pleas_fx.demo import run

        current.answer = run(out)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)

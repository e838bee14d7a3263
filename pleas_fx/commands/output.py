"""What a command prints: one JSON document or text on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pleas_fx.errors import ArtefactError, PleasError

if TYPE_CHECKING:
    from rich.console import RenderableType

USER_ERROR, BUG, INTERRUPTED = 1, 70, 130
PASSES = 8  # passes a merge reports at least; the bar is full when it ends

Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command, for programs and for people."""

    document: Mapping[str, Any]
    text: tuple[RenderableType, ...]


@dataclass(slots=True)
class Session:
    """One run of a command: set ``answer``, and it is printed at the end."""

    as_json: bool
    answer: Answer | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """One line to the person at the terminal; never on stdout."""
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr)

    def write(self) -> None:
        """Print the answer."""
        if self.answer is None:
            return
        if self.as_json:
            notes = {"notes": self.notes} if self.notes else {}
            print(to_json({**self.answer.document, **notes}))
            return
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True, markup=False)
        for part in self.answer.text:
            console.print(part)


@contextmanager
def session(as_json: bool, debug: bool) -> Iterator[Session]:
    """Run a command: print its answer, or one line that says what went wrong, and exit.

    Exit status: 1 for what a user can cause, 130 for an interrupt, 70 for a bug.
    """
    current = Session(as_json)
    try:
        # What a user's file or an exporter prints must not get into the JSON document.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            yield current
        current.write()
        sys.stdout.flush()
    except PleasError as error:
        _fail(current, debug, "error", error, USER_ERROR)
    except KeyboardInterrupt as error:
        _fail(current, debug, "interrupted", error, INTERRUPTED)
    except BrokenPipeError:
        raise  # typer ends quietly when nobody reads on
    except Exception as error:  # noqa: BLE001 - the outermost place: one line instead of a traceback
        _fail(current, debug, "this is a bug", error, BUG)


def _fail(current: Session, debug: bool, label: str, error: BaseException, status: int) -> None:
    if debug:
        traceback.print_exc()
    message = " ".join(str(error).split())
    if status == BUG:
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"{label}: {message}" if message else label, file=sys.stderr)
    if current.as_json:
        print(to_json({"error": {"type": type(error).__name__, "message": message}}))
    raise typer.Exit(status)


@contextmanager
def progress(title: str) -> Iterator[Reporter]:
    """A bar on stderr that moves with every pass; nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(title, total=PASSES)
        seen: set[str] = set()

        def report(name: str) -> None:
            shown.update(task, description=f"{title}: {name}" if name else title)
            if name and name not in seen:
                seen.add(name)
                shown.advance(task)

        yield report


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ArtefactError: the disk fails, or something else has that name; it is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pleas-") as folder:
            fresh = Path(folder) / "fresh"
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, path)
    except OSError as error:
        raise ArtefactError(f"can't write {path}: {error.strerror or error}") from error


def to_json(document: object) -> str:
    """A JSON document; NaN and infinity, which JSON lacks, are null."""
    return json.dumps(_plain(document), indent=2, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

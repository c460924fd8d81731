"""How every command starts, speaks and ends.

A command is ``run(parser, work, argv)``: arguments are parsed, ``work`` is called with them, and what it raises becomes
one line on standard error. Results go to standard output; notes, progress and errors go to standard error.

====  ================================================================================================================
code  meaning
====  ================================================================================================================
0     all that was asked for is done
1     something could not be done: a video that cannot be decoded, a full disk, a package that is not installed; what
      else was asked for is done
2     the command is wrong as it was given: an option, its value, a file of another kind; nothing was begun
130   interrupted; nothing half-written is left
====  ================================================================================================================
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn

from vsum_runtime import __version__
from vsum_runtime.runtime.errors import InputError, MissingPackageError, VsumError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

EXTRAS = {
    "cpu": ("av", "onnxruntime", "rich"),
    "features": ("h5py",),
    "plot": ("matplotlib",),
    "train": ("torch", "h5py", "safetensors", "rich"),
    "export": ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "h5py"),
    "text": ("transformers",),
    "serve": ("anyio", "httptools", "orjson", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "grpc": ("grpc", "google"),
    "completion": ("shtab",),
}
"""Extra -> modules that it brings."""

SAID = logging.INFO + 5
"""Level of what a command says of its own accord: more than -q lets through, less than a note."""
_QUIETEST_S = 1.5  # work that takes longer says what it is
_log = logging.getLogger("vsum_runtime")


class Parser(argparse.ArgumentParser):
    """Arguments that are wrong raise `InputError` in one line, instead of ending the process with the usage."""

    def error(self, message: str) -> NoReturn:
        about_one = message.startswith("argument ")
        cure = "" if about_one else f"; {self.prog} --help lists what there is"
        raise InputError(message.removeprefix("argument ") + cure)


def make_parser(prog: str, *, description: str, example: str) -> Parser:
    """A parser with what all commands understand."""
    parser = Parser(prog=prog, description=description, epilog=f"example: {example}")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands understand."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("-q", "--quiet", action="store_true", help="results and errors only")
    how_much.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help="print a script that lets this shell complete the command",
    )


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    *,
    extra: str = "cpu",
    interrupted: str = "nothing half-written is left",
) -> int:
    """Parse arguments, do the work, and give the exit code.

    Parameters
    ----------
    work
        called with the arguments; returns an exit code, None for 0
    extra
        the extra of the package that brings what the command needs
    interrupted
        what is true after an interrupt
    """

    def parsed_work() -> int | None:
        args = parser.parse_args(argv)
        with _speaking(quiet=args.quiet, verbose=args.verbose):
            return work(args)

    return end(parser.prog, parsed_work, extra=extra, interrupted=interrupted)


def end(
    prog: str, work: Callable[[], int | None], *, extra: str, interrupted: str = "nothing half-written is left"
) -> int:
    """Do the work of a command whose arguments are parsed elsewhere, and give the exit code."""
    try:
        code = work() or DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough; Python must not try again at exit
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except VsumError as error:
        return _failed(prog, str(error), WRONG if isinstance(error, InputError) else FAILED)
    except ImportError as error:
        if (error.name or "vsum_runtime").startswith("vsum_runtime"):
            raise
        return _failed(prog, _lacking(error, extra), FAILED)
    except OSError as error:
        return _failed(prog, f"{error.filename or 'the system'}: {error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _failed(prog, f"interrupted; {interrupted}", INTERRUPTED)
    except Exception as error:
        from vsum_runtime.runtime.releases import unsupported

        if not (reasons := unsupported()):
            raise
        return _failed(prog, f"{error or type(error).__name__}; {'; '.join(reasons)}", FAILED)


def say(text: str) -> None:
    """Say what is being done."""
    _log.log(SAID, text)


def note(text: str) -> None:
    """Say something that whoever gave the command should know."""
    _log.warning(text)


@contextmanager
def stage(what: str) -> Iterator[Callable[[float], None] | None]:
    """Say what is being done: on a terminal a bar, elsewhere a line where it takes long.

    Gives what takes the share that is done, 0 to 1; None where nobody looks at it.
    """
    bar = _bar(what) if sys.stderr.isatty() and _log.isEnabledFor(SAID) else None
    if bar is not None:
        with bar:
            task = bar.add_task(what, total=None)
            yield lambda share: bar.update(task, completed=share, total=1.0)
        return
    line = Timer(_QUIETEST_S, say, [what])
    line.daemon = True
    line.start()
    try:
        yield None
    finally:
        line.cancel()


def local_file(text: str) -> Path:
    """Argument type: a path on this machine."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise argparse.ArgumentTypeError(f"expected a file of this machine, got the address {text}; download it first")
    return Path(text)


def whole(least: int = 0) -> Callable[[str], int]:
    """Argument type: a whole number, ``least`` or more."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else None
        if number is None or number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return number

    return parse


def positive(text: str) -> float:
    """Argument type: a number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text!r}")
    return number


@contextmanager
def _speaking(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Send what the package logs to standard error while a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    before = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else SAID)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(before)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"note: {text}" if record.levelno == logging.WARNING else text


def _bar(what: str) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _failed(prog: str, message: str, code: int) -> int:
    sys.stderr.write(f"{prog}: {message}\n")
    return code


def _lacking(error: ImportError, extra: str) -> str:
    """One line for a package that is absent, or that cannot be loaded."""
    package = str(error.name).partition(".")[0]
    brings = [extra, *EXTRAS]
    found = next((name for name in brings if package in EXTRAS.get(name, ())), extra)
    if isinstance(error, ModuleNotFoundError):
        return str(MissingPackageError.of("this command", package, found))
    return (
        f'{package} is installed and cannot be loaded: {error}; pip install --force-reinstall "vsum-runtime[{found}]"'
    )


class _PrintCompletion(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            raise MissingPackageError.of(str(option), "shtab", "completion") from None
        _complete_files(parser, shtab.FILE)
        sys.stdout.write(shtab.complete(parser, shell=values) + "\n")
        parser.exit()


def _complete_files(parser: argparse.ArgumentParser, file: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, file)
        elif action.type in (Path, local_file) or any(word in str(action.metavar) for word in ("FILE", "DIR", "h5")):
            action.complete = file  # type: ignore[attr-defined]

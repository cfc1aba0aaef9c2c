"""What all commands share: options, exit codes, messages, progress."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from ckpt_tools.printable import printable
from surgery.errors import PetSurgeryError, Problem, ResourceError, UsageError
from surgery.version import __version__

if TYPE_CHECKING:
    from ckpt_tools.progress import Progress
    from ckpt_tools.reports import Report

__all__ = [
    "HELP",
    "INPUT",
    "PATH",
    "common_options",
    "given_options",
    "make_progress",
    "output_options",
    "print_report",
    "print_result",
    "printable",
    "refuse_others",
    "run",
    "say",
    "with_options",
]

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

PATH = click.Path(readable=False)
"""A string that shells complete as a path; what is wrong with it is for the operations to say."""


class _Input(click.Path):
    """The path of an input; an empty one, as of a variable that is not set, is not the folder where the shell is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "" and param is not None:
            raise UsageError(Problem(param.human_readable_name, "an empty path", "the path of an input"))
        return super().convert(value, param, ctx)


INPUT = _Input(readable=False)
"""As `PATH`, of an argument that is read."""

_INTERRUPTED = 130
_BUG = 1
_IO_FAILED = 7

Command = TypeVar("Command", bound=Callable[..., Any])
ReportT = TypeVar("ReportT", bound="Report")


def output_options(command: Command, more_formats: Sequence[str] = (), more_help: str = "") -> Command:
    """The options of commands whose output may be of another type, format, layout, or under other names.

    Args:
        command: The command.
        more_formats: Formats that it has besides.
        more_help: What these are.
    """
    options = (
        click.option(
            "--dst-strategy", type=PATH, metavar="FILE|DIR", help="How the output is cut for ranks.  [default: whole]"
        ),
        click.option(
            "--prefix",
            default="checkpoint_",
            show_default=True,
            metavar="TEXT",
            help="What the names of ranks' files begin with.",
        ),
        click.option(
            "--ranks",
            metavar="A-B",
            help="Write the files of these ranks alone, for a last call without --ranks that publishes all.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["keep", "bf16", "fp16", "fp32"]),
            default="keep",
            show_default=True,
            help="Element type of all floating-point tensors of the output.",
        ),
        click.option(
            "--format",
            type=click.Choice(["keep", "ckpt", "safetensors", "iteration", *more_formats]),
            default="keep",
            show_default=True,
            help=f"File format of the output; iteration is MindFormers' Checkpoint 2.0{more_help}.",
        ),
        click.option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest shard of a folder, e.g. 5GB.  [default: as the input's; of a file: 5GB]",
        ),
        click.option(
            "--names",
            type=PATH,
            default="keep",
            show_default=True,
            metavar="keep|hf|mindformers|FILE.json",
            help="Names of the output's tensors.",
        ),
    )
    return with_options(command, options)


def common_options(command: Command) -> Command:
    """The options that every command has."""
    options = (
        click.option(
            "-o", "--output", type=PATH, metavar="PATH", help="Where the output goes; its suffix chooses the format."
        ),
        click.option("--force", is_flag=True, help="Replace an existing output, atomically."),
        click.option("--dry-run", is_flag=True, help="Plan and check everything, print the plan, write nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary."),
        click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads.  [default: one for each core]"),
        click.option("--max-memory", metavar="SIZE", help="Anonymous memory at most, e.g. 512MB."),
        click.option(
            "--digest/--no-digest",
            default=True,
            show_default=True,
            help="Put digests of the tensors into the manifest.",
        ),
        click.option(
            "--executor",
            default="local",
            show_default=True,
            metavar="local|ray|ray://HOST:PORT",
            help="Who writes the files: this machine, or a Ray cluster with a shared file system.",
        ),
        click.version_option(__version__, message="%(prog)s %(version)s"),
    )
    return with_options(command, options)


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """A command with several options, listed in their order by --help."""
    for option in reversed(options):
        command = option(command)
    return command


def refuse_others(mode: str, taken: Sequence[str], expected: str) -> None:
    """Refuse options of the running command that say nothing in one of its modes.

    Args:
        mode: The option that chooses the mode.
        taken: The names of parameters that it takes.
        expected: What is expected instead, for the error.

    Raises:
        UsageError: The user gave others.
    """
    others = [option for name, option in given_options().items() if name not in taken]
    if others:
        raise UsageError(Problem(mode, f"{', '.join(others)} besides", expected, "Leave them out"))


def given_options() -> dict[str, str]:
    """The parameters of the running command that the user gave, each with its spelling, as `--no-check-crc`."""
    context = click.get_current_context()
    given = {}
    for parameter in context.command.params:
        name = parameter.name
        if name is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            is_off = parameter.secondary_opts and context.params[name] is False
            given[name] = (parameter.secondary_opts if is_off else parameter.opts)[0]
    return given


def run(command: click.Command, arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with the code that its outcome has in the contract.

    Errors that a user can mend are one paragraph on stderr; only a bug has a traceback.
    """
    _occupy_standard_descriptors()
    # A process of seconds leaves no cycles worth collecting, and each collection walks all of numpy and the plan.
    gc.disable()
    # The threads of numpy's BLAS, which start with it and then spin for a while; the writer's threads are enough.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no error
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, _terminate)
    try:
        command.main(arguments, command.name, standalone_mode=False, color=None if _may_colour() else False)
        code = 0
    except PetSurgeryError as error:
        for line in error.lines:
            _complain(line)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click puts Abort in the place of a KeyboardInterrupt, whose argument says what became of the output: as its
        # cause since 8.1.4, before that as the context alone.
        cause = (error.__cause__ or error.__context__ or error) if isinstance(error, click.Abort) else error
        _complain("; ".join(["interrupted", *map(str, cause.args)]))
        code = _INTERRUPTED
    except MemoryError:
        _complain("out of memory: lower --threads or --max-memory")
        code = _IO_FAILED
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {(error.strerror or str(error)).lower()}")
        code = _IO_FAILED
    except SystemExit as end:
        # click ends so behind shell completion, and where its own pages (--help, --version) meet a broken pipe.
        code = _IO_FAILED if end.code else 0
    except Exception:
        _complain("this is a bug in pet-surgery; please report it with what follows")
        traceback.print_exc()
        code = _BUG
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the outcome stands; what is left is to exit with its code
    _flush_quietly()
    gc.freeze()  # the interpreter's last collection would walk all that is about to go with the process
    raise SystemExit(code)


def say(message: str) -> None:
    """A line for the user, on stderr; where that is a broken pipe, nobody listens."""
    with suppress(OSError):
        click.echo(printable(message), err=True)


def print_result(text: str) -> None:
    """The command's result, on stdout.

    Raises:
        ResourceError: stdout is closed, full or a broken pipe.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        found = f"the report could not be printed: {(error.strerror or str(error)).lower()}"
        raise ResourceError(Problem("stdout", found, remedy="What the command wrote to files is complete")) from error


def print_report(report: ReportT, summarise: Callable[[ReportT], str], *, as_json: bool, quiet: bool) -> None:
    """What a command did: warnings for the user, then all of it as JSON, or a summary."""
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_result(report.to_json())
    elif not quiet:
        print_result(summarise(report))


def make_progress(quiet: bool) -> Progress:
    """A progress bar where stderr is a terminal, else silence."""
    if quiet or not sys.stderr.isatty():
        from ckpt_tools.progress import SILENT

        return SILENT
    from ckpt_tools.cli.bar import Bar

    return Bar()


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # As Ctrl-C: what was begun is cleaned up.
    raise KeyboardInterrupt


def _may_colour() -> bool:
    return not os.environ.get("NO_COLOR")


def _complain(text: str) -> None:
    colour = sys.stderr.isatty() and _may_colour()
    with suppress(OSError):
        click.echo(click.style("error: ", fg="red", bold=True) if colour else "error: ", err=True, nl=False)
    say(text)


def _occupy_standard_descriptors() -> None:
    """Where a standard stream is closed, keep its number from going to an output file, which prints would end up in."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # each takes the lowest number that is free
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")


def _flush_quietly() -> None:
    """Keep the interpreter from failing on a stdout that does not take what is left in its buffer."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

"""What all scripts share on the command line: options with their defaults, devices, and one-line errors.

Scripts parse before they import what takes seconds, where they can: torch is imported here only when needed.
"""

import argparse
import functools
import inspect
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from errno import ENOSPC, EPIPE
from pathlib import Path
from typing import Any, NamedTuple

from utils import __version__

# What users can cause, and RuntimeErrors, as some of torch's tell that memory is full: see one_line.
EXPECTED = ValueError, OSError, MemoryError, RuntimeError


class Option(NamedTuple):
    """An option of a script: its default, its meaning, and which values it takes.

    choices: these only. many: one or more names, as a list. kind: their type; by default that of the default,
    or str. least, most: bounds of a number; above, below: the same, themselves excluded. absent: what may be
    typed for the default, None. group: its heading in -h.
    """

    default: Any
    help: str
    choices: tuple | None = None
    many: bool = False
    kind: Any = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    absent: float | None = None
    group: str = ""

    @property
    def type(self):
        """The type of its values."""
        return list if self.many else self.kind or (str if self.default is None else type(self.default))

    @property
    def bounds(self):
        """The numbers that it takes, in words; "" where any will do."""
        if self.least is not None and self.most is not None:
            return f"{_shown(self.least)} .. {_shown(self.most)}"
        words = "at least", "more than", "at most", "less than"
        numbers = self.least, self.above, self.most, self.below
        return " and ".join(f"{word} {_shown(n)}" for word, n in zip(words, numbers) if n is not None)

    def need(self, value):
        """What this option needs in place of a value, in words; None if it takes the value."""
        if value is None and self.default is None:
            return None
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            return self.type.__name__
        if value == "" or (self.many and "" in value):
            return "a name"
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type is float and not abs(value) <= sys.float_info.max:
            return ", ".join(filter(None, ("a finite number", self.bounds)))
        within = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if within else self.bounds


def _shown(number):
    return f"{number:g}" if isinstance(number, float) else str(number)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as everything else here does."""

    def error(self, message):
        raise ValueError(f"{message}; -h shows the options")

    def _get_option_tuples(self, option_string):
        """The options that a word may abbreviate: none, which argparse does not grant those of one dash."""
        return []


def grouped(group, options):
    """A table of options under a heading of -h."""
    return {name: option._replace(group=group) for name, option in options.items()}


FOLDER = {
    "folder": Option(
        None, "model folder (default: one in etc, or opt/demo that `make demo` trains)", group="model"
    )
}
SEED = Option(0, "seed of everything that is drawn at random", least=0, most=2**32 - 1)
FIGURE = grouped(
    "figures",
    {
        "out": Option(
            None, "folder for the pictures (default: pic/ in the model folder, output/ for those in etc)"
        ),
        "show": Option(False, "open the pictures in a window too"),
        "jpg": Option(False, "the picture as a small JPEG too, as wide as a page"),
        "seed": SEED,
    },
)
PICTURE = {"img": Option(None, "picture (default: the middle 512x512 of etc/photos/roman-colosseum.png)")}
CUDA = {"cuda": Option(-1, "GPU to compute on; -1: the CPU", least=-1, group="model")}
DATA_FOLDER = {
    "data": Option("data", "folder of the data sets; CIFAR is downloaded to it if absent", group="data set")
}
SIDE = Option(
    None, "side of the patches of photos or folders", kind=int, least=1, most=8192, group="data set"
)
SCALES = Option(
    1, "scales at which images of folders are cut: full size, half, a quarter, ...", least=1, most=16,
    group="data set",
)  # fmt: skip
BASE_SCALE = Option(
    0.0, "added to the logscales of the details: the logarithm of a temperature", least=-20, most=20
)


def make_parser(doc, options):
    """An ArgumentParser with single-dash options, -h showing the script's docstring.

    options: name -> Option; False as a default makes a switch. The parsed namespace holds only what was
    typed, so that a script can tell a default from a choice: see `parse`.
    """
    parser = Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    version = f"neural-wavelet-flow {__version__}, .nwf files of version 2"
    parser.add_argument("-version", action="version", version=version, help="print the version and end")
    groups = {"": parser}
    for name, option in options.items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        add = groups[option.group].add_argument
        if option.default is False:
            add(f"-{name}", action="store_true", help=option.help)
        elif option.many:
            add(f"-{name}", nargs="+", help=option.help, metavar="NAME")
        else:
            default = "" if option.default is None else f"default: {option.default}"
            notes = "; ".join(filter(None, (default, option.bounds)))
            text = f"{option.help} ({notes})" if notes else option.help
            kind = option.type
            names = {"choices": option.choices} if option.choices else {"metavar": kind.__name__.upper()}
            add(f"-{name}", type=kind, help=text, **names)
    return parser


def parse(doc, options, argv):
    """Parse argv. Returns the dict of all options, and the dict of those that were typed.

    Raises ValueError for a value that its option does not take.
    """
    typed = vars(make_parser(doc, options).parse_args(argv))
    for name, value in typed.items():
        if value == options[name].absent:
            typed[name] = None
    check_values(typed, {name: options[name] for name in typed})
    return {name: option.default for name, option in options.items()} | typed, typed


def refuse(typed, names, why):
    """Raise ValueError if one of these options was typed, which would have no effect."""
    for name in names:
        if name in typed:
            raise ValueError(f"-{name} has no effect {why}")


def check_values(values, options, place=None):
    """Raise ValueError for a value that its option does not take.

    values: name -> value; what is absent has the default. place: the file that holds them, if one does.
    """
    for name, option in options.items():
        value = values.get(name, option.default)
        need = option.need(value)
        if need:
            found = f"-{name} {value}" if place is None else f"{place}: {name} {value!r}"
            raise ValueError(f"{found}: need {need}")


def script(main):
    """Make main(argv=None) a script: what a user can cause ends as one line on stderr and exit status 2.

    Ctrl-C, where main does not take it, ends so with status 130, and SIGTERM, so that nothing half-done is
    left behind, with 143. Names that the locale cannot print are printed with escapes.
    """
    name = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def run(argv=None):
        status = 2
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with _terminated():
                result = main(argv)
                sys.stdout.flush()
                return result
        except (*EXPECTED, FloatingPointError) as error:
            message = one_line(error)
            # files have names; what is left is where the rows go
            if isinstance(error, OSError) and error.errno in (ENOSPC, EPIPE) and error.filename is None:
                message = f"standard output: {error.strerror}"
                with suppress(OSError, ValueError):  # or the end of Python tries once more
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt as stopped:
            message, status = ("terminated", 143) if stopped.args else ("interrupted", 130)
        print(f"{name}: {message}", file=sys.stderr)
        raise SystemExit(status)

    return run


@contextmanager
def _terminated():
    """Within: SIGTERM raises KeyboardInterrupt("SIGTERM"), where signals can be taken."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def naming(name):
    """Within: a ValueError is one line that names this, unless it does already."""
    try:
        yield
    except ValueError as error:
        raise ValueError(line_of(name, error)) from None


def line_of(name, error):
    """one_line of an error of something named, with the name in front unless it is there already."""
    message = one_line(error)
    return message if str(name) in message else f"{name}: {message}"


def one_line(error):
    """What to say of one of EXPECTED. Raises it if it is a RuntimeError that tells a fault of the program."""
    message = memory_message(error)
    if isinstance(error, RuntimeError) and not message:
        raise error
    if not message and isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return message or " ".join(str(error).split())


def memory_message(error):
    """What to say of an error for want of memory, torch's RuntimeErrors among them; None for any other."""
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full: give a smaller -batch, or compute on the CPU"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "this machine's memory does not hold a model, picture or batch of that size"
    return None


def pick_device(cuda):
    """The torch.device of -cuda N; of several processes of torchrun's, each has the next GPU.

    Raises ValueError if there is no such GPU.
    """
    import torch

    if cuda < 0:
        return torch.device("cpu")
    cuda += int(os.environ.get("LOCAL_RANK", 0))
    count = torch.cuda.device_count()
    if cuda >= count:
        raise ValueError(f"-cuda {cuda}: this machine has {count} GPUs; -cuda -1 computes on the CPU")
    return torch.device("cuda", cuda)

"""What all scripts share on the command line: options with their defaults, devices, and one-line errors."""

import argparse
import functools
import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Option(NamedTuple):
    """An option of a script: its default (whose type it takes), meaning, and choices if it has any.

    many: it takes one or more names, and gives their list.
    """

    default: Any
    help: str
    choices: tuple | None = None
    many: bool = False


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as everything else here does."""

    def error(self, message):
        raise ValueError(f"{message}; -h shows the options")


FOLDER = {"folder": Option(None, "model folder (default: one in etc, or opt/demo that `make demo` trains)")}
FIGURE = {
    "out": Option(
        None, "folder for the pictures (default: pic/ in the model folder, output/ for those in etc)"
    ),
    "show": Option(False, "open the pictures in a window too"),
    "seed": Option(0, "seed of everything that is drawn at random"),
}
PICTURE = {"img": Option(None, "picture (default: the middle 512x512 of etc/photos/roman-colosseum.png)")}
CUDA = {"cuda": Option(-1, "GPU to compute on; -1: the CPU")}


def make_parser(doc, options):
    """An ArgumentParser with single-dash options, -h showing the script's docstring.

    options: name -> Option; False as a default makes a switch. The parsed namespace holds only what was
    typed, so that a script can tell a default from a choice: see `parse`.
    """
    parser = _Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, (default, text, choices, many) in options.items():
        if default is False:
            parser.add_argument(f"-{name}", action="store_true", help=text)
        elif many:
            parser.add_argument(f"-{name}", nargs="+", help=text, metavar="NAME")
        else:
            shown = "" if default is None else f" (default: {default})"
            kind = str if default is None else type(default)
            names = {"choices": choices} if choices else {"metavar": kind.__name__.upper()}
            parser.add_argument(f"-{name}", type=kind, help=text + shown, **names)
    return parser


def parse(doc, options, argv):
    """Parse argv. Returns the dict of all options, and the dict of those that were typed."""
    typed = vars(make_parser(doc, options).parse_args(argv))
    return {name: option.default for name, option in options.items()} | typed, typed


def check_types(values, options, where):
    """Raise ValueError, naming `where`, for a value that could not have been typed as an option."""
    for name, (default, _, choices, _) in options.items():
        value, kind = values.get(name, default), type(default)
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(f"{where}: {name} is {value!r}, need {kind.__name__}")
        if choices and value not in choices:
            raise ValueError(f"{where}: {name} is {value!r}, need one of {', '.join(choices)}")


def script(main):
    """Make main(argv=None) a script: what a user can cause ends as one line on stderr and exit status 2.

    Ctrl-C, where main does not take it, ends so with status 130.
    """
    name = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def run(argv=None):
        status = 2
        try:
            return main(argv)
        except RuntimeError as error:
            message = memory_message(error)
            if not message:
                raise
        except (ValueError, OSError, FloatingPointError) as error:
            message = " ".join(str(error).split())
        except KeyboardInterrupt:
            message, status = "interrupted", 130
        print(f"{name}: {message}", file=sys.stderr)
        raise SystemExit(status)

    return run


def memory_message(error):
    """What to say of a RuntimeError of torch's for want of memory; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: give a smaller -batch, or compute on the CPU"
    if "can't allocate memory" in str(error):
        return "this machine's memory does not hold a model, picture or batch of that size"
    return None


def check_least(options, least, *names):
    """Raise ValueError unless each of the named options is None or at least so much."""
    for name in names:
        if options[name] is not None and options[name] < least:
            raise ValueError(f"-{name} {options[name]}: need at least {least}")


def pick_device(cuda):
    """The torch.device of -cuda N. Raises ValueError if there is no such GPU."""
    if cuda < 0:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if cuda >= count:
        raise ValueError(f"-cuda {cuda}: this machine has {count} GPUs; -cuda -1 computes on the CPU")
    return torch.device("cuda", cuda)


def seeded(seed, device="cpu"):
    """A random generator of -seed on a device. Raises ValueError for what is no seed."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"-seed {seed}: need at least 0 and less than 2^32")
    return torch.Generator(device).manual_seed(seed)

"""Ctrl-C is one line while a script is still importing, too: to be imported before what takes seconds."""

import sys
from pathlib import Path


def _in_one_line(kind, error, trace, otherwise=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
    else:
        otherwise(kind, error, trace)


sys.excepthook = _in_one_line

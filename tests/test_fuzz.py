"""The fuzzing of .nwf files: a few of them here (tests/fuzz.py has more), and it finds what is wrong."""

import random

import fuzz
import pytest
from PIL import Image

# Of 11 milliseconds each: a few seconds in all.
COUNT = 500


def test_changed_files_are_refused_in_one_line(capsys):
    fuzz.main(["-count", str(COUNT)])
    assert f"{COUNT} files, 0 faults" in capsys.readouterr().out


def always(picture):
    return lambda *args, **how: picture


def raises(error):
    def fail(*args, **how):
        raise error

    return fail


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (always(Image.new("RGB", (24, 20))), "another picture"),
        (always(Image.new("RGB", (99, 1))), "99x1 pixels"),
        (raises(KeyError("a")), "KeyError"),
        (raises(ValueError("two\nlines")), "no line"),
    ],
)
def test_faults_are_found(found, word, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "unpack", found)
    with pytest.raises(SystemExit) as end:
        fuzz.main(["-count", "60", "-first", "1000"])
    out = capsys.readouterr().out
    assert end.value.code == 1 and word in out and "-seed 0 -first 10" in out


def test_a_number_and_a_seed_are_the_same_file_again():
    data = fuzz.stored_files()[0][0]
    one, again, other = (fuzz.mutant(data, random.Random(f"0 {n}")) for n in (3, 3, 4))
    assert one == again != other

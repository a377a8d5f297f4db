"""Bounds of options: one line for what lies outside, from the command line and from parameter.json; help."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark_ablation
import benchmark_codec
import benchmark_rates
import pytest

import easyEncode
import easyEncodeTrans
import easyGenerate
import easymain
import FIR
import flow
import legall_lena
import progressive
import simpleBigWavelet
from flow.checkpoint import OPTIMIZERS
from flow.codec.options import TEST_SET
from flow.folder import STORED, read_options
from flow.lifting import STARTS
from flow.model import build
from flow.options import ARCHITECTURE, TRAINING
from utils.box import ROOT
from utils.options import Option, check_values, memory_message, parse, script

SCRIPTS = {
    script.__name__: script
    for script in (
        *(easymain, easyEncode, easyGenerate, progressive, simpleBigWavelet, legall_lena, FIR),
        *(benchmark_ablation, benchmark_codec, benchmark_rates),
        SimpleNamespace(__name__="easyEncodeTrans", OPTIONS=TEST_SET, main=easyEncodeTrans.main),
    )
}
NUMBERS = [
    (name, option)
    for name, script in SCRIPTS.items()
    for option, meaning in script.OPTIONS.items()
    if meaning.type in (int, float)
]


def outside(option):
    """Values that an option does not take, each just outside of its bounds or no number."""
    values = [bound + step for bound, step in ((option.least, -1), (option.most, 1)) if bound is not None]
    values += [bound for bound in (option.above, option.below) if bound is not None]
    return values + ([math.nan, math.inf] if option.type is float else [])


def inside(option):
    """The bounds that an option takes."""
    return [option.type(bound) for bound in (option.least, option.most) if bound is not None]


def refused(capsys, main, argv):
    """Run a script, which must end with status 2 and one line on stderr; return the line."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    line, *others = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and not others
    return line


@pytest.mark.parametrize(("script", "name"), NUMBERS)
def test_a_value_out_of_bounds_is_one_line(script, name, capsys):
    option = SCRIPTS[script].OPTIONS[name]
    assert option.bounds and outside(option)
    for value in outside(option):
        line = refused(capsys, SCRIPTS[script].main, [f"-{name}", str(value)])
        assert line.startswith(f"{script}.py: -{name} {option.type(value)}: need ")
        assert line.endswith(option.bounds)


@pytest.mark.parametrize(("script", "name"), NUMBERS)
def test_bounds_themselves_are_taken(script, name):
    option = SCRIPTS[script].OPTIONS[name]
    for value in inside(option):
        assert parse("", {name: option}, [f"-{name}", repr(value)]) == ({name: value}, {name: value})


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_bounds(script, capsys):
    with pytest.raises(SystemExit) as caught:
        SCRIPTS[script].main(["-h"])
    text = "".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for name, option in SCRIPTS[script].OPTIONS.items():
        if option.bounds:
            default = "" if option.default is None else f"default: {option.default}; "
            wanted = f"-{name} {option.type.__name__.upper()} {option.help} ({default}{option.bounds})"
            assert "".join(wanted.split()) in text


@pytest.mark.parametrize("name", [name for name, option in STORED.items() if option.bounds])
def test_a_value_out_of_bounds_in_a_file_names_it(name, tmp_path):
    path, option = tmp_path / "parameter.json", STORED[name]
    for value in (*outside(option), "1", [1], True):
        path.write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match="parameter.json: ") as caught:
            read_options(tmp_path)
        assert f"{path}: {name} {value!r}: need " in str(caught.value) and "\n" not in str(caught.value)
    for value in inside(option):
        path.write_text(json.dumps({name: value}))
        assert read_options(tmp_path)[name] == value


@pytest.mark.parametrize("script", SCRIPTS)
def test_abbreviations_and_empty_names_are_refused(script, capsys):
    main, options = SCRIPTS[script].main, SCRIPTS[script].OPTIONS
    for name in options:
        if name[:-1] not in options:
            assert f"unrecognized arguments: -{name[:-1]}" in refused(capsys, main, [f"-{name[:-1]}", "1"])
    for name in ("img", "out", "folder"):
        if name in options:
            line = refused(capsys, main, [f"-{name}", ""])
            assert f"-{name} " in line and line.endswith("need a name")


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        ("easyGenerate", "-mean -baseScale 1", "-baseScale has no effect beside -mean"),
        ("easyGenerate", "-depth 2", "-depth has no effect without -from coarse"),
        ("progressive", "-img a.png -target CIFAR", "-target has no effect beside -img"),
        ("progressive", "-measure 3 -exdepth 1", "-exdepth has no effect beside -measure"),
        ("progressive", "-exdepth 0 -exsize 9", "-exsize has no effect beside -exdepth 0"),
        ("legall_lena", "-img a.png -data b", "-data has no effect without -img target"),
        ("easyEncode", "-img a.png -target CIFAR", "-target has no effect beside -img"),
        ("easyEncode", "-decode a.nwf -nbins 9", "-nbins has no effect beside -decode"),
        ("easyEncode", "-info a.nwf -out b", "-out has no effect beside -info"),
        ("easyEncode", "-img a -verify -noVerify", "-noVerify has no effect beside -verify"),
    ],
)
def test_what_has_no_effect_is_refused(script, argv, message, capsys):
    assert refused(capsys, SCRIPTS[script].main, argv.split()) == f"{script}.py: {message}"


@pytest.mark.parametrize("script", [name for name in SCRIPTS if "benchmark" not in name])
def test_ctrl_c_while_importing_is_one_line(script, tmp_path):
    """As if it came where torch is found."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    made = subprocess.run(
        [sys.executable, f"{script}.py", "-folder", "x"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert made.returncode and made.stderr == f"{script}.py: interrupted\n"


@pytest.mark.parametrize("script", [name for name in SCRIPTS if "benchmark" not in name])
def test_help_is_there_at_once(script):
    """Without what takes seconds to import, by its name, in groups, with examples."""
    code = """import sys
for name in ("torch", "numpy", "matplotlib", "PIL"):
    sys.modules[name] = None
import importlib
importlib.import_module(sys.argv[1]).main(["-h"])"""
    made = subprocess.run([sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert f"\n    python {script}.py" in made.stdout
    for group in {option.group for option in SCRIPTS[script].OPTIONS.values()} - {""}:
        assert f"\n{group}:\n" in made.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_the_version(script, capsys):
    with pytest.raises(SystemExit) as caught:
        SCRIPTS[script].main(["-version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"neural-wavelet-flow {flow.__version__}, .nwf files of version 2\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("argv", ["-info X", "-decode X -out -", "-decode X -out out -force"])
def test_a_full_standard_output_is_named(argv, tmp_path):
    """In one line: Python's own, of what it could not write at its end, is not there."""
    (tmp_path / "X").write_bytes((ROOT / "tests" / "fixtures" / "raw.nwf").read_bytes())
    argv = [sys.executable, ROOT / "easyEncode.py", *argv.split()]
    with Path("/dev/full").open("w") as full:
        made = subprocess.run(argv, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert made.returncode == 2 and made.stderr == "easyEncode.py: standard output: No space left on device\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce] can't allocate memory: 9 bytes")])
def test_want_of_memory_is_one_line(error, capsys):
    @script
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"test_options.py: {memory_message(error)}\n"
    assert "memory does not hold" in memory_message(error)


def test_tables_name_what_there_is():
    """They are read before the modules that have it."""
    assert ARCHITECTURE["lifting"].choices == ("none", *STARTS)
    assert TRAINING["optimizer"].choices == tuple(OPTIMIZERS)


def test_names_and_words():
    exact = {"least": 2, "most": 5}
    assert Option(3, "", **exact).bounds == "2 .. 5"
    assert Option(0.5, "", above=0, most=1).bounds == "more than 0 and at most 1"
    assert Option(0.5, "", least=0, below=1).bounds == "at least 0 and less than 1"
    assert Option(None, "", kind=int, **exact).need(None) is None
    assert Option(3, "", **exact).need(None) == "int"
    assert Option("a", "", ("a", "b")).need("c") == "one of a, b"
    assert Option(1.0, "").need(math.inf) == Option(1.0, "").need(10**400) == "a finite number"
    assert Option(1.0, "").need(3) is None and Option(1, "").need(3.0) == "int"


def test_what_is_typed_for_nothing():
    option = TEST_SET["earlyStop"]
    assert parse("", {"earlyStop": option}, ["-earlyStop", "-1"]) == ({"earlyStop": None},) * 2
    assert parse("", {"earlyStop": option}, []) == ({"earlyStop": None}, {})
    with pytest.raises(ValueError, match="-earlyStop 0: need at least 1"):
        parse("", {"earlyStop": option}, ["-earlyStop", "0"])


def test_what_the_first_users_type_is_taken():
    typed = "-cuda -1 -clamp -1 -hchnl 350 -repeat 3 -nhidden 3".split()
    options, _ = parse("", easymain.OPTIONS, typed)
    assert (options["cuda"], options["clamp"]) == (-1, -1.0)
    check_values(options, easymain.OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"), [("width", 10**30), ("repeat", 100_000), ("hchnl", 0), ("blocks", 7)]
)
def test_no_model_is_built_out_of_bounds(name, value):
    with pytest.raises(ValueError, match=rf"^-{name} {value}: need \d+ \.\. \d+$"):
        build({"prior": "bands", name: value})

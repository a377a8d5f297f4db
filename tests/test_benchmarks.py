"""The benchmarks: the smallest case of the codec's, and what it reads of the past."""

import csv
import json

import benchmark_codec
import benchmark_curve
import benchmark_storage
import benchmark_times
import pytest
from benchmark_codec import CONDITIONS, Case, Figures, Past, read_past, run_limited, spread, steady_program
from PIL import Image

PRINTED = """\
paper  photograph  encode 18.9017 s an image, 0.042 MB/s, 99% networks; \
decode 19.0101 s an image, 0.041 MB/s, 99% networks; 137 MiB
paper  patches     encode 0.0764 s an image, 0.040 MB/s, 99% networks; \
decode 0.0802 s an image, 0.038 MB/s, 99% networks; 125 MiB
"""


def test_smallest_case_as_the_table_shows_it(capsys):
    benchmark_codec.main(["-case", "small,0,1", "-runs", "2", "-count", "1", "-threads", "1"])
    figures = Figures(*json.loads(capsys.readouterr().out))
    assert len(figures.encode) == len(figures.decode) == 2
    assert 0 < min(figures.encode + figures.decode) and all(0 < share < 1 for share in figures.networks)
    assert figures.memory >= 0 and figures.size > 32
    assert str(Case("small", 0)) == "small, 32x32"


def test_effort_looks_for_corrections(capsys):
    sizes = []
    for effort in "15":
        benchmark_codec.main(["-case", "model,512,1", "-effort", effort, "-runs", "1"])
        sizes.append(Figures(*json.loads(capsys.readouterr().out)).size)
    assert 0 < abs(sizes[1] - sizes[0]) < 0.01 * sizes[0]  # of this photograph they say that there are none


def test_times_and_rates_of_codecs(tmp_path):
    picture = tmp_path / "small.png"
    Image.open(benchmark_codec.PHOTOS / "casa-mila.png").crop((0, 200, 60, 250)).save(picture)
    benchmark_times.main(["-img", str(picture), "-out", str(tmp_path), "-repeat", "1"])
    rows = list(csv.DictReader((tmp_path / "times.csv").open()))
    assert {"PNG", "WebP", "ours"} <= {row["codec"] for row in rows}
    assert all(0 < float(row["bits"]) < 8 and float(row["decode"]) > 0 for row in rows)
    assert (tmp_path / "times.pdf").exists()


def test_storage_of_what_is_there_and_of_what_is_not(tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "even.png")
    benchmark_storage.main(["-img", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1].split()[1:3] == ["1", "0"]
    with pytest.raises(SystemExit) as end:
        benchmark_storage.main(["-img", str(tmp_path), "absent"])
    output = capsys.readouterr()
    assert end.value.code == 2 and not output.out and "absent: no such file" in output.err


def test_curves_over_images_and_hours(tmp_path):
    folder = tmp_path / "one"
    (folder / "records").mkdir(parents=True)
    (folder / "parameter.json").write_text('{"target": "photos", "patch": 32, "crops": 500}')
    losses = "epoch,train_bpd,test_bpd,rate,seconds\n1,5,4.5,0.1,1800\n2,4,3.5,0.1,5400\n"
    (folder / "records" / "losses.csv").write_text(losses)
    argv = ["-folder", str(folder), "-out", str(tmp_path)]
    for more, name, seen in (([], "curve", ["500", "1000"]), (["-hours"], "hours", ["0.5", "2.0"])):
        benchmark_curve.main([*argv, *more])
        rows = list(csv.reader((tmp_path / f"{name}.csv").open()))[1:]
        assert rows == [["one", seen[0], "4.5"], ["one", seen[1], "3.5"]]
        assert (tmp_path / f"{name}.png").exists()


def test_lines_of_the_past():
    assert read_past(PRINTED, Case("paper", 512)) == Past(18.9017, 19.0101, 137)
    assert read_past(PRINTED, Case("paper", 0, 50)) == Past(0.0764, 0.0802, 125)
    with pytest.raises(ValueError, match="small"):
        read_past(PRINTED, Case("small", 512))


def test_pictures_are_enlarged_and_cut_small(tmp_path):
    assert benchmark_codec.photograph(40).shape == (1, 3, 40, 40)
    assert benchmark_codec.photograph(600).shape == (1, 3, 600, 600)
    benchmark_codec.write_pictures(tmp_path)
    data = {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert len(data) == benchmark_codec.PICTURES


@pytest.mark.parametrize("condition", CONDITIONS)
def test_programs_of_processes_are_programs(condition):
    program = steady_program("past", condition, 3)
    compile(program, condition, "exec")
    assert "from flow.codec import" in program and "set_num_threads(3)" in program


def test_processes_that_take_too_long_are_ended(tmp_path):
    assert run_limited(tmp_path, "print(1.5)") == 1.5
    assert run_limited(tmp_path, "import signal\nsignal.raise_signal(signal.SIGALRM)") == float("inf")


def test_spread_of_processes_that_were_ended():
    assert spread([1.0, 2.0, 4.0]) == ("1.000 s", "2.000 s", "4.000 s", "4.00")
    assert spread([2.0, float("inf")]) == ("2.000 s", "2.000 s", "> 60 s", "> 30.0")
    assert spread([float("inf")]) == ("> 60 s", "> 60 s", "> 60 s", "-")


@pytest.mark.parametrize(
    "argv, word",
    [(("-models", "large"), "large"), (("-side", "4k"), "4k"), (("-against", "no-such"), "no-such")],
)
def test_one_line_for_what_users_get_wrong(argv, word, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark_codec.main(argv)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and word in errors and len(errors.splitlines()) == 1

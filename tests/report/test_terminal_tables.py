"""Tables and output files: percent only here, narrow enough for a terminal, nothing written over."""

from io import StringIO

import pytest
from rich.console import Console

from hcnr_jax.errors import InputError
from hcnr_jax.report.percent import percent
from hcnr_jax.report.result_file import check_new_file, write_record
from hcnr_jax.report.terminal_tables import across_sets_lines, grades_table, scores_table


def test_percent():
    assert percent(0.7125) == "71.2" and percent(None) == "-"
    assert percent(0.7125, interval={"low": 0.6, "high": 0.796}) == "71.2 [60, 80]"


def interval(value):
    return {"low": value - 0.1, "high": value + 0.1}


def test_a_row_of_every_kind_fits_eighty_columns():
    honesty = {
        "questions": 1234,
        "f1": 0.5,
        "refusal_on_unanswerable": 1.0,
        "refusal_on_answerable": 0.25,
        "refusal_delta": 0.75,
        "accuracy_on_answerable": None,
        "intervals": {"f1": interval(0.5)},
    }
    task = {"questions": 99, "accuracy": 0.3, "refused": 0.01, "intervals": {"accuracy": interval(0.3)}}
    measured = {"auroc": 0.875, "expected_calibration_error": 0.125}
    scores = {
        "honesty": {"selfaware": honesty, "pooled": honesty},
        "task": {"hotpotqa": task, "pooled": task},
        "calibration": {"selfaware": measured, "pooled": measured},
    }
    console = Console(file=StringIO(), width=80)
    console.print(scores_table("scores", scores))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 + 4 and max(map(len, lines)) <= 80
    said = [" ".join(line.split()) for line in lines]
    assert said[3] == "selfaware 1234 50.0 [40, 60] 100.0 25.0 75.0 - 0.875 0.125"
    assert said[4].startswith("all honesty") and said[6] == "all task 99 1.0 30.0 [20, 40]"


def test_grades_fit_eighty_columns_and_need_gold_answers():
    grades = {
        "questions": 1234,
        "fractions": {"correct": 0.5, "incorrect": 0.25, "not_attempted": 0.25},
        "accuracy_given_attempted": 2 / 3,
        "index": 0.25,
        "intervals": {"index": interval(0.25)},
    }
    scores = {"honesty": {"selfaware": {"grades": grades}, "nec": {"grades": None}, "pooled": {"grades": grades}}}
    console = Console(file=StringIO(), width=80)
    console.print(grades_table(scores))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 + 2 and max(map(len, lines)) <= 80
    assert " ".join(lines[3].split()) == "selfaware 1234 50.0 25.0 25.0 66.7 25.0 [15, 35]"
    assert grades_table({"honesty": {"nec": {"grades": None}}}) is None


def test_the_worst_set_and_the_mean_without_each_set_take_one_line():
    without = {"kuq": {"refusal_delta": 0.1}, "nec": {"refusal_delta": 0.6}, "falseqa": {"refusal_delta": 0.3}}
    found = {
        "worst_set": {"name": "nec", "refusal_delta": -0.1},
        "mean": {"refusal_delta": 1 / 3},
        "leave_one_out": without,
    }
    assert across_sets_lines({"across_sets": {"honesty": found}}) == [
        "honesty: worst set nec (delta -10.0); mean delta of 3 sets 33.3, from 10.0 without kuq to 60.0 without nec"
    ]
    assert across_sets_lines({"across_sets": {}}) == []


def test_result_files_are_new(tmp_path):
    path = tmp_path / "made" / "r.json"
    write_record(check_new_file(path), {"value": float("nan")})
    assert path.read_text() == '{\n "value": null\n}\n'
    with pytest.raises(InputError, match=r"--out .*r\.json exists; nothing is overwritten"):
        write_record(path, {})
    with pytest.raises(InputError, match="is a folder"):
        check_new_file(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written to \(is no folder\)"):
        check_new_file(path / "below" / "r.json")

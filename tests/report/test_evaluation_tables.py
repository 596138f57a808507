"""The tables of differences between two models, and of a judge's agreement."""

from io import StringIO

from rich.console import Console

from hcnr_jax.report.evaluation_tables import agreement_table, differences_table


def test_differences_have_signs_and_fit_eighty_columns():
    cell = {"value": -0.125, "low": -0.25, "high": 0.01}
    honesty = dict.fromkeys(("f1", "refusal_delta", "refusal_on_answerable", "index"), cell)
    sets = {
        "honesty": {"selfaware": honesty | {"accuracy_on_answerable": None}},
        "task": {"pooled": {"accuracy": cell}},
    }
    console = Console(file=StringIO(), width=80)
    console.print(differences_table("m minus n", sets))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert max(map(len, console.file.getvalue().splitlines())) <= 80
    assert lines[3:] == [
        "selfaware -12.5 -12.5 -12.5 -12.5",
        " ".join(4 * ["[-25.0, +1.0]"]),
        "all task -12.5",
        "[-25.0, +1.0]",
    ]


def test_agreement_fits_eighty_columns():
    found = {
        "questions": 1234,
        "unreadable": 1234,
        "agreement": 0.9875,
        "kappa": 0.9,
        "only_judge_refused": {"count": 12},
    }
    found |= {"only_detector_refused": {"count": 3}}
    none = found | {"agreement": None, "kappa": None}
    console = Console(file=StringIO(), width=80)
    console.print(agreement_table("http://localhost:8000/v1", {"honesty": {"selfaware": found, "pooled": none}}))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "selfaware 1234 98.8 0.900 12 3 1234",
        "all honesty 1234 - - 12 3 1234",
    ]

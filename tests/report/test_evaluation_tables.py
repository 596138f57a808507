"""The table of differences between two models."""

from io import StringIO

from rich.console import Console

from hcnr_jax.report.evaluation_tables import differences_table


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

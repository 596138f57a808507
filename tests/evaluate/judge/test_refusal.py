"""The refusal detector against labelled sentences, the fence cases of its docstring, and real gold answers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.judge.phrases import IDEAS, normalise
from hcnr_jax.evaluate.judge.refusal import Detection, Verdict, detect, refused_mask

HERE = Path(__file__).parent


def labelled(half: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / f"refusal_{half}.jsonl").read_text(encoding="utf-8").splitlines()]


def precision_recall(rows: list[dict]) -> tuple[float, float]:
    truth = np.array([row["label"] == "refused" for row in rows])
    said = refused_mask([detect(row["completion"], row["question"]).verdict for row in rows])
    return float((truth & said).sum() / said.sum()), float((truth & said).sum() / truth.sum())


def test_the_fixture_is_large_enough_and_well_formed() -> None:
    rows = labelled("develop") + labelled("final")
    assert len(rows) >= 200
    assert {row["label"] for row in rows} == {verdict.value for verdict in Verdict}
    assert len({(row["question"], row["completion"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("half", "precision", "recall"), [("develop", 134 / 136, 134 / 135), ("final", 54 / 56, 54 / 55)]
)
def test_precision_and_recall_are_the_stated_ones(half: str, precision: float, recall: float) -> None:
    assert precision_recall(labelled(half)) == (pytest.approx(precision), pytest.approx(recall))


def test_undetermined_is_told_from_both_others() -> None:
    rows = labelled("develop") + labelled("final")
    for row in rows:
        said = detect(row["completion"], row["question"]).verdict
        assert (said == Verdict.UNDETERMINED) == (row["label"] == "undetermined"), row


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("I don't know anyone who disagrees; the answer is Paris", "answered"),
        ("No one knows it better than Tom", "answered"),
        ("I Don't Know", "answered"),
        ("I don't know", "refused"),
        ("I DON'T KNOW.", "refused"),
        ("'I don't know.'", "refused"),
        ("i do not know .", "refused"),
        ("I don\u2019t know", "refused"),
        ("I'm not sure, but I think it is Paris", "answered"),
        ("Unknown", "refused"),
        ("Anonymous", "answered"),
        ("Men cannot breastfeed", "answered"),
        ("There is no such king.", "refused"),
        ("", "undetermined"),
        (" \n\t ", "undetermined"),
        ("?!...", "undetermined"),
        ("\U0001f31b", "undetermined"),
        ("Answer:", "undetermined"),
        ("7", "answered"),
        ("Мы не знаем", "answered"),
    ],
)
def test_fence_cases(completion: str, verdict: str) -> None:
    assert detect(completion).verdict == verdict


def test_the_question_tells_echoes_rebuttals_and_choices() -> None:
    assert detect("Does Nessie exist?", "Does Nessie exist?").verdict == Verdict.UNDETERMINED
    assert detect("No, Nessie does not exist.", "Does Nessie exist?").verdict == Verdict.ANSWERED
    assert detect("Nessie does not exist.", "How heavy is Nessie?").verdict == Verdict.REFUSED
    assert detect("Rome", "Which is older, Rome or Milan?").verdict == Verdict.ANSWERED
    assert detect("Sure.", "Can you swim?").verdict == Verdict.ANSWERED
    assert detect("Sure.", "Where is Rome?").verdict == Verdict.UNDETERMINED
    remark = "The capital of France is Paris. I have no information on its mayor."
    assert detect(remark, "What is the capital of France?").verdict == Verdict.ANSWERED


def test_the_ground_is_reported() -> None:
    assert detect("Sorry, I have no idea.") == Detection(Verdict.REFUSED, "not_knowing", "i have no idea")
    for text, idea in (
        ("I could not find any record of it.", "no_information"),
        ("I cannot confirm that.", "cannot_verify"),
        ("The question rests on a false premise.", "false_premise"),
        ("Nobody can tell.", "unanswerable"),
        ("Your question makes no sense.", "nonsense"),
        ("Could you rephrase that?", "rephrase"),
    ):
        assert detect(text).idea == idea
        assert idea in IDEAS
    assert detect("Paris") == Detection(Verdict.ANSWERED)


def test_long_text_is_read_in_linear_time() -> None:
    assert detect("the cat that saw who knows what and " * 3000).verdict == Verdict.ANSWERED


def test_normalise_writes_contractions_out() -> None:
    assert normalise("I Can\u2019t  say , it's DONT") == "i can not say, it is do not"


def test_unknown_verdicts_are_refused() -> None:
    with pytest.raises(InputError, match=r"verdict 2: expected one of .*, found 'maybe'"):
        refused_mask(["answered", "maybe"])
    assert refused_mask(["refused", "undetermined", Verdict.ANSWERED]).tolist() == [True, False, False]


def test_gold_answers_of_real_benchmarks_are_not_refusals(real_data: Path) -> None:
    folder = real_data / "data"
    known = [json.loads(line) for line in (folder / "kuq" / "knowns_unknowns.jsonl").read_text().splitlines()]
    pairs = [(row["question"], text) for row in known if not row["unknown"] for text in row["answer"]]
    hotpot = json.loads((folder / "hotpotqa" / "hotpot_dev_v1_simplified.json").read_text())
    pairs += [(row["question"], row["answer"]) for row in hotpot]
    refused = sum(detect(text, question).verdict == Verdict.REFUSED for question, text in pairs)
    assert len(pairs) > 20_000
    assert refused <= 2


def test_real_rebuttals_are_mostly_not_counted_as_stated(real_data: Path) -> None:
    rows = []
    for name in ("train", "valid"):
        with (real_data / "data" / "falseqa" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["label"] == "1"]
    refused = sum(detect(row["answer"], row["question"]).verdict == Verdict.REFUSED for row in rows)
    assert (refused, len(rows)) == (22, 1678)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("<think>I'm not sure. Let me see.</think>\n\nLily has the ball.", Verdict.ANSWERED),
        ("<think>It is Paris, surely.</think>\n\nI don't know.", Verdict.REFUSED),
        ("I don't know this. Let me think.</think>Paris.", Verdict.ANSWERED),
        ("<think>\n\n</think>\n\nI'm not sure.", Verdict.REFUSED),
        ("<think>I don't know. Wait,", Verdict.UNDETERMINED),
        ("<reasoning>No idea.</reasoning> Rome.", Verdict.ANSWERED),
        ("[THINK]I do not know.[/THINK]Rome.", Verdict.ANSWERED),
        ("<think>It is Paris.</think>", Verdict.UNDETERMINED),
    ],
)
def test_reasoning_is_not_the_answer(completion: str, verdict: Verdict) -> None:
    assert detect(completion, "Who has the ball?").verdict is verdict

"""Sets named on the command line: official files under the names of benchmarks."""

import json

from hcnr_jax.evaluate.ask.question_sets import read_set


def test_official_files_become_rows_of_their_role(tmp_path):
    asked = [
        {"id": "1", "question": "Where?", "is_impossible": False, "answers": [{"text": "Ulm"}]},
        {"id": "2", "question": "When?", "is_impossible": True, "answers": []},
    ]
    squad, xstest, simpleqa = (tmp_path / name for name in ("dev.json", "x.csv", "s.csv"))
    squad.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": "Ulm.", "qas": asked}]}]}))
    xstest.write_text("id,type,prompt\n1,homonyms,a?\n2,contrast_homonyms,b?\n")
    simpleqa.write_text("metadata,problem,answer\n{},q?,a\n")
    rows = read_set("honesty", "squad2", str(squad), style="chat").rows
    assert [(row.id, row.answerable, row.answers) for row in rows] == [("1", True, ("Ulm",)), ("2", False, ())]
    assert rows[0].messages[0]["content"] == "Context: Ulm.\nQuestion: Where?"
    assert [row.answerable for row in read_set("honesty", "xstest", str(xstest), style="plain").rows] == [True, False]
    assert [row.answers for row in read_set("task", "simpleqa", str(simpleqa), style="plain").rows] == [("a",)]

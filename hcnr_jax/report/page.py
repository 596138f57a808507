"""Writes one self-contained HTML page an experiment: findings, pictures, tables, answers and settings.

Nothing is fetched: style, script and pictures are inside, so that the file can be sent as it is. All text that comes
from data is escaped. Answers are stored as JSON, which the script inserts as text, never as markup.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
.words{text-align:left}td.words:last-child{white-space:normal;min-width:18rem}
thead th{background:#f5f5f5;position:sticky;top:0}
tbody tr:hover{background:#fafae8}img{max-width:100%}li{margin:.2rem 0}
.answers td,.answers th{text-align:left;white-space:normal}
.refused{color:#0072B2}.right{color:#009E73}.wrong{color:#D55E00}
label{margin-right:1rem}pre{background:#f7f7f7;padding:1rem;overflow:auto;font-size:12px}
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById('answers').textContent);
const body = document.querySelector('.answers tbody');
const pick = id => document.getElementById(id).value;
function cell(row, text, kind) {
  const td = document.createElement('td');
  td.textContent = text;
  if (kind) td.className = kind;
  row.appendChild(td);
}
function show() {
  const [pair, kind, text] = [pick('pair'), pick('kind'), pick('text').toLowerCase()];
  const changed = document.getElementById('changed').checked;
  const found = data.questions.filter(q => (!pair || q.pair === pair) && (!kind || q.kind === kind)
    && (!text || q.question.toLowerCase().includes(text))
    && (!changed || new Set(data.models.map(m => (q.said[m] || [])[0])).size > 1));
  body.replaceChildren();
  for (const q of found.slice(0, 200)) {
    const row = document.createElement('tr');
    cell(row, q.question); cell(row, q.kind); cell(row, q.gold);
    for (const m of data.models) { const a = q.said[m] || ['', '']; cell(row, a[0], a[1]); }
    body.appendChild(row);
  }
  document.getElementById('count').textContent = `${Math.min(found.length, 200)} of ${found.length} questions shown`;
}
for (const id of ['pair', 'kind', 'text', 'changed']) document.getElementById(id).addEventListener('input', show);
show();
"""


class Picture(NamedTuple):
    """Names a PNG and says what it shows."""

    path: Path
    caption: str


class Page(NamedTuple):
    """Holds the parts of a page.

    Args:
        title: of the page.
        notes: how to read the tables.
        findings: sentences.
        pictures: in order.
        tables: (title, Markdown table).
        answers: records of `answers.jsonl`.
        settings: everything that says how the results were made.
    """

    title: str
    notes: Sequence[str]
    findings: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[tuple[str, str]]
    answers: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]


def render(page: Page) -> str:
    """Write the page as one HTML text."""
    parts = [f"<h1>{_safe(page.title)}</h1>"]
    if page.findings:
        parts.append("<ul>" + "".join(f"<li>{_safe(text)}</li>" for text in page.findings) + "</ul>")
    parts += [_picture(picture) for picture in page.pictures]
    for title, table in page.tables:
        parts += [f"<h2>{_safe(title)}</h2>", table_of(table)]
    parts += ["<h2>How to read this</h2>", *(f"<p>{_safe(note)}</p>" for note in page.notes)]
    if page.answers:
        parts.append(_answers(page.answers))
    shown = json.dumps(page.settings, indent=1, ensure_ascii=False)
    parts += ["<h2>Settings, versions, hashes</h2>", f"<pre>{_safe(shown)}</pre>"]
    head = f'<meta charset="utf-8"><title>{_safe(page.title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def table_of(markdown: str) -> str:
    """Convert a Markdown table of `report.markdown` to HTML."""
    lines = [line.strip().strip("|") for line in markdown.strip().splitlines()]
    rows = [[cell.strip().replace("\\|", "|") for cell in line.split(" | ")] for line in lines]
    kinds = ["" if mark.endswith(":") else ' class="words"' for mark in rows[1]]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{kind}>{_safe(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    head, body = line(rows[0], "th"), "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = _safe(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """Write the table of questions with every model's answer, and its filters."""
    models = list(dict.fromkeys(answer["method"] for answer in answers))
    questions = _questions(answers)
    pairs, kinds = (sorted({question[name] for question in questions}) for name in ("pair", "kind"))
    hidden = "" if len(pairs) > 1 else " hidden"
    # `</script>` inside a string would end the element.
    data = json.dumps({"models": models, "questions": questions}, ensure_ascii=False).replace("</", "<\\/")
    head = "".join(f"<th>{_safe(name)}</th>" for name in ("question", "kind", "gold", *models))
    return (
        "<h2>Answers, before and after</h2><p>"
        f"<label{hidden}>pair {_select('pair', pairs)}</label><label>kind {_select('kind', kinds)}</label>"
        '<label>text <input id="text"></label><label><input type="checkbox" id="changed" checked> only where models '
        'differ</label><span id="count"></span></p>'
        f'<table class="answers"><thead><tr>{head}</tr></thead><tbody></tbody></table>'
        f'<script type="application/json" id="answers">{data}</script><script>{_SCRIPT}</script>'
    )


def _questions(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry a question of a pair: every model's answer and its reading: refused, right or wrong."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for answer in answers:
        gold = "(no answer)" if answer["answerable"] is False else ", ".join(answer["answers"])
        about = {"pair": answer["pair"], "kind": answer["kind"] or answer["role"], "question": answer["question"]}
        entry = found.setdefault((answer["pair"], answer["role"], answer["line"]), about | {"gold": gold, "said": {}})
        entry["said"][answer["method"]] = [answer["completion"], _reading(answer)]
    return list(found.values())


def _reading(answer: Mapping[str, Any]) -> str:
    if answer["verdict"] == "refused":
        return "refused"
    return "right" if answer["correct"] else "wrong"


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(f'<option value="{_safe(value)}">{_safe(value)}</option>' for value in values)
    return f'<select id="{name}"><option value="">all</option>{options}</select>'


def _safe(text: str) -> str:
    return html.escape(text, quote=True)

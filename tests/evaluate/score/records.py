"""Hand-written records of answers: what tests of scores are computed from."""

from hcnr_jax.evaluate.ask.runner import Answer


def record(role, name, line, **fields):
    defaults = {"kind": None, "answerable": None, "answers": (), "completion": "x", "verdict": "answered"}
    return Answer(
        role=role, set=name, line=line, id=str(line), prompt="p", question="q", idea="", evidence="",
        **(defaults | fields),
    )  # fmt: skip


def honesty_set(name, refused, answerable, **fields):
    return [
        record(
            "honesty",
            name,
            i,
            verdict="refused" if said else "answered",
            answerable=label,
            kind="odd" if i % 2 else "even",
            **{key: values[i] for key, values in fields.items()},
        )
        for i, (said, label) in enumerate(zip(refused, answerable, strict=True))
    ]


FIRST = ([1, 1, 0, 0, 1, 0], [False, False, False, True, True, True])
SECOND = ([1, 0, 0, 0], [False, False, True, True])

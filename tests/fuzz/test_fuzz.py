"""Thousands of broken inputs: each is taken, or refused with exit code 2 and a message that names what to mend.

pytest tests/fuzz                     a few hundred inputs
pytest tests/fuzz --fuzz 20000        as many as asked for
"""

import shutil
import tempfile
from pathlib import Path

import peft
import pytest
import transformers
from hypothesis import HealthCheck, Phase, given, settings

from tests.checkpoints.test_lora import write_adapter
from tests.fuzz.mutations import Mutation, apply, copy_pair, mutations
from tests.restoration.test_what_users_bring import check_loads
from tests.restoration.worlds import call, make_world
from tests.tiny import CHAT_TEMPLATE, write_rows

# One of so many inputs that are taken is restored whole.
WHOLE = 20


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A folder with base, tuned, an adapter, and rows of both shapes."""
    folder = tmp_path_factory.mktemp("pairs") / "pair"
    world = make_world(folder, chat_template=CHAT_TEMPLATE)
    turns = [{"role": "user", "content": "what is the sky ?"}, {"role": "assistant", "content": "blue ."}]
    world.task.unlink()
    plain = {"prompt": "who is king ?", "completion": " Paris .", "answerable": True, "answers": ["Paris"]}
    write_rows(world.task, [{"messages": turns}, plain, {"prompt": turns[:1], "completion": turns[1:]}] * 2)
    write_adapter(world.base, folder / "adapter")
    return folder


def outcome(pairs: Path, tuned: str, changes: list[Mutation], whole: bool = False) -> str:
    """Run `hcnr restore --dry-run` on the changed inputs; fail for anything but success or one clear refusal.

    whole: where the inputs are taken, restore them too, and load what is written in transformers.
    """
    place = Path(tempfile.mkdtemp(dir=pairs.parent))
    try:
        folder = copy_pair(pairs, place / "in")
        for change in changes:
            apply(folder, change)
        names = [
            folder / "base",
            folder / tuned,
            "--honesty",
            folder / "honesty.jsonl",
            "--task",
            folder / "task.jsonl",
        ]
        ended = call("restore", *names, "--out", place / "out", "--samples", 4, "--dry-run")
        messages = [line for line in ended.err.splitlines() if line.startswith("hcnr ")]
        assert ended.code in (0, 2), ended.err
        assert "Traceback" not in ended.err and "an error that is not handled" not in ended.err, ended.err
        if ended.code == 2:
            assert len(messages) == 1, ended.err
            said = ended.err[ended.err.index("hcnr ") :]
            assert str(folder) in said or "BASE and TUNED" in said or "tensor " in said or "--" in said, said
        if ended.code == 0 and whole:
            made = call("restore", *names, "--out", place / "out", "--samples", 4)
            assert made.code in (0, 2) and "an error that is not handled" not in made.err, made.err
            if made.code == 0 and not (place / "out" / "adapter_config.json").exists():
                check_loads(place / "out")
            if made.code == 0 and _loads_in_peft(folder / "base", folder / tuned):
                assert _loads_in_peft(folder / "base", place / "out")
        return messages[0] if messages else "taken"
    finally:
        shutil.rmtree(place)


def _loads_in_peft(base: Path, adapter: Path) -> bool:
    """Whether PEFT loads an adapter; a broken one may be read here and not there."""
    if not (adapter / "adapter_config.json").exists():
        return False
    try:
        peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    except Exception:  # whatever PEFT raises
        return False
    return True


def _settings(request: pytest.FixtureRequest) -> settings:
    count = request.config.getoption("--fuzz")
    return settings(
        max_examples=count or 150,
        deadline=None,
        database=None,
        derandomize=not count,
        phases=[Phase.generate],  # a failure is reported as it was drawn: each try reads whole folders
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize(("kind", "tuned"), [("pair", "tuned"), ("adapter", "adapter")])
def test_every_broken_input_is_taken_or_refused_clearly(pairs, request, kind, tuned) -> None:
    seen: dict[bool, int] = {True: 0, False: 0}

    @_settings(request)
    @given(mutations(kind))
    def run(changes: list[Mutation]) -> None:
        seen[outcome(pairs, tuned, changes, whole=seen[True] % WHOLE == 0) == "taken"] += 1

    run()
    assert seen[False] > seen[True] / 10 and seen[True] > 0, f"taken {seen[True]}, refused {seen[False]}"

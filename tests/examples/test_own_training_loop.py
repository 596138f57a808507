"""The example with its own loop and mesh runs, keeps its shardings, and equals itself on one device."""

import re

import jax

from tests.examples.load import load_example


def test_it_restores_inside_its_own_jit_on_its_own_mesh(capsys, monkeypatch) -> None:
    example = load_example("own_training_loop")
    example.main()
    said = capsys.readouterr().out
    assert "on 4 devices, every sharding kept: True" in said and "48 neurons restored in 4 kernels" in said
    losses = re.findall(r"(\w+): loss (\S+) on honesty rows, (\S+) on task rows", said)
    assert [name for name, *_ in losses] == ["base", "tuned", "restored"]
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    example.main()
    alone = re.findall(r"(\w+): loss (\S+) on honesty rows, (\S+) on task rows", capsys.readouterr().out)
    for (_, *split), (_, *whole) in zip(losses, alone, strict=True):
        assert all(abs(float(a) - float(b)) <= 0.002 for a, b in zip(split, whole, strict=True))

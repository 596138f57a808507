"""The example on an NNX model of the user's own runs to its end: every kernel but the readout's is restored."""

import re

from tests.examples.load import load_example


def test_it_restores_attention_and_mlp(capsys) -> None:
    load_example("own_nnx_model").main()
    said = capsys.readouterr().out
    assert "56 of 112 neurons restored in 6 of 6 kernels" in said and "restored: Model, logits (8, 4)" in said
    kernels = re.findall(r"^(\S+): honesty distance \S+ tuned, \S+ put back, \S+ compensated; \d+ of \d+", said, re.M)
    attention = [f"attention/{name}/kernel" for name in ("query", "key", "value", "out")]
    assert kernels == [*attention, "up/kernel", "down/kernel"]

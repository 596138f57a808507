"""The example on a model of the user's own runs to its end, and restores what it says."""

import re

from tests.examples.load import load_example


def test_it_scores_selects_restores_and_compensates(capsys) -> None:
    load_example("own_model").main()
    said = capsys.readouterr().out
    kept = re.search(r"kept kernels: (.*)", said)
    changed = re.search(r"(\d+) of (\d+) weights changed", said)
    assert kept and changed
    kernels = kept[1].split(", ")
    assert 0 < len(kernels) < 4 and 0 < int(changed[1]) < int(changed[2])
    for kernel in kernels:
        found = re.search(re.escape(kernel) + r": honesty distance (\S+) tuned, \S+ put back, (\S+) compensated", said)
        assert found and 0 < float(found[2]) < float(found[1])

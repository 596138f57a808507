"""What a user is told of a solve that failed."""

from hcnr_jax.method.solve import Outcome
from hcnr_jax.restoration.correct import REMEDY


def test_every_failure_has_a_remedy():
    assert set(REMEDY) == set(Outcome) - {Outcome.OK}
    assert "--damping" in REMEDY[Outcome.NOT_POSITIVE_DEFINITE]
    assert "--solver dense" in REMEDY[Outcome.NOT_CONVERGED]

"""Tests whether a model still knows what it does not know, with logistic-regression probes on hidden states by
layer.

Figure 3 of arXiv 2511.12991: probes trained on the base model's last-prompt-token hidden states tell unanswerable from
answerable questions. Where the knowledge survived, the same probes also work on the states of the tuned or restored
model.

`hidden` is [layers, questions, width]: the residual stream after the embedding (index 0) and after each block, hence L
+ 1 layers. `labels` is True for the positive class, which is *unanswerable* throughout this project. In every model,
states are standardised with the mean and deviation of the base training split. The best layer is chosen by
cross-validation on the base training split, never on the questions reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.evaluate.score.calibration import auroc
from hcnr_jax.evaluate.score.statistics import Interval, Method, auroc_of, bootstrap

Hidden = Float[np.ndarray, "layers n d"]
Labels = Bool[np.ndarray, " labels"]

_MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class Probes:
    """Holds one linear probe a layer, in raw state coordinates: logit = hidden @ weight + bias.

    The standardisation of the states is folded into weight and bias. cross_validated: mean AUROC over folds of the base
    training split, by layer. best_layer: its argmax, ties to the lower layer.
    """

    weight: Float[np.ndarray, "layers d"]
    bias: Float[np.ndarray, " layers"]
    cross_validated: tuple[float, ...]
    best_layer: int
    train_questions: int


@dataclass(frozen=True)
class ProbeResult:
    """Holds the AUROC of the base model's probes on each model's test states: `auroc[model][layer]`, layer 0 the
    embedding.
    """

    best_layer: int
    cross_validated: tuple[float, ...]
    train_questions: int
    test_questions: int
    auroc: dict[str, tuple[Interval, ...]]

    def best(self, model: str) -> Interval:
        """Return the model's AUROC in the layer chosen on base. InputError where the model was not probed."""
        if model not in self.auroc:
            raise InputError(f"probe: expected one of {', '.join(self.auroc)}, found {model!r}")
        return self.auroc[model][self.best_layer]

    def to_json(self) -> dict[str, object]:
        """Plain values: settings, cross-validated AUROC by layer, and by model the intervals by layer and in the best
        layer.
        """
        return {
            "best_layer": self.best_layer,
            "cross_validated": list(self.cross_validated),
            "train_questions": self.train_questions,
            "test_questions": self.test_questions,
            "auroc": {name: [interval.to_json() for interval in layers] for name, layers in self.auroc.items()},
            "auroc_best_layer": {name: self.best(name).to_json() for name in self.auroc},
        }


def _check(hidden: np.ndarray, labels: np.ndarray, what: str) -> None:
    if hidden.shape[1] != len(labels):
        raise InputError(
            f"probe: {what}: expected one label a question, found {hidden.shape[1]} states and {len(labels)} labels"
        )
    for layer, states in enumerate(hidden):
        if not np.isfinite(states).all():
            row = int(np.argmax(~np.isfinite(states).all(axis=1)))
            raise InputError(
                f"probe: {what}: expected finite hidden states, found NaN or Inf in layer {layer}, question "
                f"{row + 1}; check the model's weights"
            )
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        raise InputError(
            f"probe: {what}: expected answerable and unanswerable questions, found {positive} unanswerable of "
            f"{len(labels)}; "
            "add questions of the missing class"
        )


def _fit_layer(
    states: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"], penalty: float
) -> tuple[np.ndarray, float]:
    """Minimise `sum log-loss + penalty/2 |w|^2` on standardised states; return weight [d] and bias in raw
    coordinates.
    """
    mean = states.mean(axis=0, dtype=np.float64)
    centred = states.astype(np.float64) - mean[None]
    deviation = np.sqrt((centred**2).mean(axis=0))
    scale = np.where(deviation > 0, deviation, 1.0)
    features = centred / scale[None]
    # With fewer questions than dimensions the minimiser lies in the questions' span: solving there is exact, smaller.
    span = np.linalg.qr(features.T)[0] if features.shape[0] < features.shape[1] else None
    model = LogisticRegression(C=1.0 / penalty, max_iter=_MAX_ITERATIONS, tol=1e-6)
    model.fit(features if span is None else features @ span, labels)
    if int(model.n_iter_[0]) >= _MAX_ITERATIONS:
        raise RunError(
            f"probe: logistic regression did not converge in {_MAX_ITERATIONS} iterations; raise `penalty` ({penalty})"
        )
    weight = (model.coef_[0] if span is None else span @ model.coef_[0]) / scale
    return weight, float(model.intercept_[0]) - float(mean @ weight)


def fit_probes(hidden: Hidden, labels: Labels, *, folds: int = 5, penalty: float = 1.0, seed: int = 0) -> Probes:
    """Train one probe a layer on the base model's training split and choose the best layer by stratified
    cross-validation there.

    Args:
        hidden: base states of the training questions. labels: True = unanswerable.
        folds: of the cross-validation. penalty: L2 weight on standardised coordinates (scikit-learn's 1 / C). seed:
            of the fold split.

    Raises:
        InputError: unequal lengths, NaN or Inf, one class, folds below 2 or above the smaller class, penalty not
        positive. RunError: a regression that did not converge.
    """
    _check(hidden, labels, "training split")
    smaller = int(min(labels.sum(), (~labels).sum()))
    if not 2 <= folds <= smaller:
        raise InputError(
            f"probe: folds: expected 2 to {smaller} (the questions of the smaller class), found {folds}; lower "
            f"folds or add questions"
        )
    if not penalty > 0:
        raise InputError(f"probe: penalty: expected a positive number, found {penalty}")
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))
    weights, biases, validated = [], [], []
    for states in hidden:
        scores = []
        for train, held in splits:
            weight, bias = _fit_layer(states[train], labels[train], penalty)
            scores.append(auroc(states[held].astype(np.float64) @ weight + bias, labels[held]))
        validated.append(float(np.mean(scores)))
        weight, bias = _fit_layer(states, labels, penalty)
        weights.append(weight)
        biases.append(bias)
    return Probes(np.stack(weights), np.array(biases), tuple(validated), int(np.argmax(validated)), len(labels))


def apply_probes(probes: Probes, hidden: Hidden) -> Float[np.ndarray, "layers n"]:
    """Compute the logits of "unanswerable" of each layer's probe on any model's states (float64).

    Raises:
        InputError: another number of layers or another width than the probes were trained on.
    """
    expected, found = probes.weight.shape, (hidden.shape[0], hidden.shape[2])
    if expected != found:
        raise InputError(
            f"probe: expected hidden states of (layers, width) {expected} as in base, "
            f"found {found}; probe models of base's shape"
        )
    logits = [states.astype(np.float64) @ weight for states, weight in zip(hidden, probes.weight, strict=True)]
    return np.stack(logits) + probes.bias[:, None]


def evaluate_probes(
    probes: Probes,
    hidden: Mapping[str, np.ndarray],
    labels: Labels,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    method: Method = "percentile",
    seed: int = 0,
) -> ProbeResult:
    """Compute the AUROC by layer of the base probes on each model's test states, with intervals.

    The intervals resample within classes. Percentile intervals are the default: near 1 all draws of the AUROC can lie
    on one side of the estimate, where BCa is undefined.

    Args:
        probes: trained on BASE.
        hidden: model name -> states [layers, n, d] of the same test questions, none of them trained on.
        labels: True = unanswerable.
        draws: of `statistics.bootstrap`.
        confidence: of the interval.
        method: percentile or bca.
        seed: of the draws.

    Raises:
        InputError: no model, unequal lengths, NaN or Inf, one class, another shape than the probes'.
    """
    if not hidden:
        raise InputError("probe: expected the hidden states of one model or more, found none")
    intervals = {}
    for name, states in hidden.items():
        _check(states, labels, f"{name}, test split")
        intervals[name] = tuple(
            bootstrap(
                auroc_of(scores, labels),
                len(labels),
                draws=draws,
                confidence=confidence,
                method=method,
                strata=labels,
                seed=seed,
            )
            for scores in apply_probes(probes, states)
        )
    return ProbeResult(probes.best_layer, probes.cross_validated, probes.train_questions, len(labels), intervals)

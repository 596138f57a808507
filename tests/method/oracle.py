"""The method again, in plain dense float64 numpy: what the package is held against.

Written from the definition alone, in the paper's orientation (a weight is out x in, neuron k is column k), with
no factorisation trick, no streaming and no sharing of code with the package. Slow, small and obvious.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray


def f64(x: object) -> Array:
    """Anything array-like as float64 numpy; bfloat16 goes by way of float32, which holds it exactly."""
    return np.asarray(x).astype(np.float32 if np.asarray(x).dtype.name == "bfloat16" else np.float64).astype(np.float64)


# ---------------------------------------------------------------- stage 1: which neurons


def scores(gradients: Array, granularity: str, weights: Array | None = None) -> Array:
    """Fisher scores from per-example gradients (examples, out, in): mean over examples of the squared sums."""
    squares = f64(gradients) ** 2
    weights = np.ones(len(squares)) if weights is None else f64(weights)
    mean = np.einsum("n,noi->oi", weights, squares) / weights.sum()
    return {"input": mean.sum(0), "output": mean.sum(1), "weight": mean}[granularity]


def priority(honesty: Array, task: Array, kind: str) -> Array:
    """r of one kernel. kl normalises each score to sum 1 first; honesty leaves the task term out.

    Where one set of scores is all zero the formula has no value; 0 stands for it here.
    """
    honesty, task = f64(honesty), f64(task)
    if kind == "honesty":
        return honesty
    if not honesty.any() or not task.any():
        return np.zeros_like(honesty)
    p, q = honesty + 1e-12 * honesty.mean(), task + 1e-12 * task.mean()
    if kind == "kl":
        p, q = p / p.sum(), q / q.sum()
    return p * np.log(p / q)


def half_even(x: float) -> int:
    """Round to the nearest integer, halves to the even one."""
    low = int(np.floor(x))
    if x - low == 0.5:
        return low if low % 2 == 0 else low + 1
    return low if x - low < 0.5 else low + 1


def top(values: Array, ratio: float) -> Array:
    """Exactly round(ratio * size) True at the largest values; a tie goes to the lower (flat) index."""
    flat = f64(values).ravel()
    ranked = sorted(range(flat.size), key=lambda i: (-flat[i], i))
    mask = np.zeros(flat.size, bool)
    mask[ranked[: half_even(ratio * flat.size)]] = True
    return mask.reshape(np.shape(values))


def perturbation(base: Array, tuned: Array, mask: Array) -> float:
    """d = ||(tuned - base) * mask||_F / ||base * mask||_F of one kernel (out, in); 0/0 is 0, x/0 refused."""
    above = np.sqrt(((f64(tuned) - f64(base)) ** 2 * mask).sum())
    below = np.sqrt((f64(base) ** 2 * mask).sum())
    if below == 0 and above > 0:
        raise ZeroDivisionError("x/0")
    return 0.0 if above == 0 else float(above / below)


def keep(d: Mapping[tuple[int, str], float], ratio: float, order: Sequence[str]) -> set[tuple[int, str]]:
    """The round(ratio * L) kernels of largest d; ties by block, then by the place of the name in `order`."""
    ranked = sorted(d, key=lambda key: (-d[key], key[0], order.index(key[1])))
    return set(ranked[: half_even(ratio * len(d))])


# ---------------------------------------------------------------- stage 2: restore and compensate


def moment(x: Array, y: Array | None = None) -> Array:
    """mean over tokens of x y^T, x (tokens, in)."""
    x = f64(x)
    return x.T @ (x if y is None else f64(y)) / len(x)


def damped(h: Array, damping: float) -> Array:
    """H + damping * mean(diag H) * I."""
    return h + damping * np.diag(h).mean() * np.eye(len(h))


def distance(e: Array, h: Array) -> float:
    """d_hon = tr(E H E^T)."""
    return float(np.trace(f64(e) @ h @ f64(e).T))


def compensate(
    base: Array, tuned: Array, mask: Array, h: Array, method: str, damping: float = 0.01, h_task=None, w: float = 0.0
) -> Array:
    """The restored kernel (out, in) with local inputs; h and h_task are undamped second moments (in, in)."""
    base, tuned = f64(base), f64(tuned)
    r, t = np.flatnonzero(mask), np.flatnonzero(~np.asarray(mask))
    d = tuned - base
    e = d.copy()
    hh = damped(h, damping)
    if method == "none":
        e[:, r] = 0
    elif method == "paper":
        inverse = np.linalg.inv(hh)
        e[:, r] = sum((np.outer(d[:, k], inverse[k, r]) / inverse[k, k] for k in t), np.zeros((len(d), len(r))))
    elif method == "exact":
        e[:, r] = -d[:, t] @ hh[np.ix_(t, r)] @ np.linalg.inv(hh[np.ix_(r, r)])
    elif method == "two_sided":
        ht = damped(h_task * (np.trace(h) / np.trace(h_task)), damping)
        right = -d[:, t] @ hh[np.ix_(t, r)] + w * d[:, r] @ ht[np.ix_(r, r)]
        e[:, r] = right @ np.linalg.inv(hh[np.ix_(r, r)] + w * ht[np.ix_(r, r)])
    else:
        raise KeyError(method)
    return base + e


def propagated(
    base: Array,
    tuned: Array,
    mask: Array,
    x: Array,
    x_now: Array,
    z: Array,
    z_now: Array,
    w: float,
    damping: float = 0.01,
) -> Array:
    """The restored kernel (out, in); inputs (tokens, in) of the reference models and of the model restored so far."""
    base, tuned = f64(base), f64(tuned)
    r, t = np.flatnonzero(mask), np.flatnonzero(~np.asarray(mask))
    a_h, b_h = moment(x_now), moment(z_now)
    a, b = damping * np.diag(a_h).mean(), damping * np.diag(b_h).mean()
    s = w * np.trace(a_h) / np.trace(b_h)
    eye = np.eye(len(a_h))
    total = a_h + a * eye + s * (b_h + b * eye)
    right = base @ moment(x, x_now) + a * base + s * (tuned @ moment(z, z_now) + b * tuned)
    out = tuned.copy()
    out[:, r] = (right[:, r] - tuned[:, t] @ total[np.ix_(t, r)]) @ np.linalg.inv(total[np.ix_(r, r)])
    return out


# ---------------------------------------------------------------- whole models

# One block: (block weights, hidden (batch, tokens, dim), valid (batch, tokens), linear) -> hidden, where
# linear(path, x) applies the kernel (and bias) at `path` and lets the caller see x.
Block = Callable[[Mapping[str, Array], Array, Array, Callable[[str, Array], Array]], Array]


def run_block(
    block: Block, weights: Mapping[str, Array], hidden: Array, valid: Array
) -> tuple[Array, dict[str, Array]]:
    """One block and the inputs (valid tokens, in) of each of its kernels; kernels (in, out) and biases by path."""
    seen: dict[str, Array] = {}

    def linear(path: str, x: Array) -> Array:
        seen[f"{path}/kernel"] = x[valid]
        return x @ weights[f"{path}/kernel"] + weights.get(f"{path}/bias", 0.0)

    return block(weights, hidden, valid, linear), seen


def inputs_of(
    block: Block, blocks: Sequence[Mapping[str, Array]], hidden: Array, valid: Array
) -> list[dict[str, Array]]:
    """The kernel inputs of every block of a model, from the embedded tokens on."""
    found = []
    for weights in blocks:
        hidden, seen = run_block(block, weights, hidden, valid)
        found.append(seen)
    return found


def sweep(
    block: Block,
    groups: Sequence[Sequence[str]],
    base: Sequence[Mapping[str, Array]],
    tuned: Sequence[Mapping[str, Array]],
    masks: Sequence[Mapping[str, Array]],
    honesty: tuple[Array, Array, Array],
    task: tuple[Array, Array],
    method: str,
    inputs: str,
    w: float = 0.0,
    damping: float = 0.01,
    moments_at: str = "base",
) -> dict[tuple[int, str], Array]:
    """Every restored kernel (in, out) by (block, path).

    `base` and `tuned` hold each block's weights by path; `masks[l][path]` exists for kept kernels only. `honesty` is
    (base's embedded tokens, tuned's embedded tokens, valid), `task` is (tuned's embedded tokens, valid). The model
    restored so far differs from tuned in the kernels solved so far; it is run afresh, whole, for every group.
    `moments_at` says from which model local moments on honesty tokens are taken.
    """
    at_tuned = inputs == "local" and moments_at == "tuned"
    x_ref = inputs_of(block, tuned if at_tuned else base, honesty[1] if at_tuned else honesty[0], honesty[2])
    z_ref = inputs_of(block, tuned, *task)
    now = [dict(weights) for weights in tuned]
    solved: dict[tuple[int, str], Array] = {}
    for layer in range(len(base)):
        for group in groups:
            x_now = inputs_of(block, now, honesty[1], honesty[2])[layer]
            z_now = inputs_of(block, now, *task)[layer]
            for path in group:
                if path not in masks[layer]:
                    continue
                mask, wb, wt = masks[layer][path], base[layer][path].T, tuned[layer][path].T
                x, z = x_ref[layer][path], z_ref[layer][path]
                if inputs == "propagated" and method != "none":
                    weight = 0.0 if method == "exact" else w
                    new = propagated(wb, wt, mask, x, x_now[path], z, z_now[path], weight, damping)
                else:
                    new = compensate(wb, wt, mask, moment(x), method, damping, moment(z), w)
                solved[layer, path] = new.T
            for path in group:
                if (layer, path) in solved:
                    now[layer][path] = solved[layer, path]
    return solved

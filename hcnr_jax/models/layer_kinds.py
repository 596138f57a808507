"""Reads what differs from layer to layer: attention windows, and which layers rotate queries and keys."""

from hcnr_jax.models.config_reader import ConfigReader
from hcnr_jax.models.families.family import Family


def rotated_layers(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Return whether each layer rotates its queries and keys (`no_rope_layers`, where 1 means that the layer does)."""
    if not read.handles("no_rope_layers"):
        return (True,) * layers
    if (flags := read.value("no_rope_layers")) is None:
        interval = read.positive_int("no_rope_layer_interval")
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(flags, list | tuple) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise read.refusal("no_rope_layers", f"a list of {layers} numbers 0 or 1 (num_hidden_layers) or null")
    return tuple(bool(flag) for flag in flags[:layers])


def layer_windows(read: ConfigReader, family: Family, layers: int, rotated: tuple[bool, ...]) -> tuple[int | None, ...]:
    """Return the window of each layer in tokens, by `layer_types` or else by the family's rule (`Family.windows`).

    Args:
        read: the config.
        family: gives the rule.
        layers: number of layers.
        rotated: whether each layer rotates its queries and keys.

    Raises:
        InputError: an attribute is out of range, or `layer_types` differs from a rule that leaves no choice.
    """
    chooses = family.windows != "all"
    sliding = (
        read.boolean("use_sliding_window") if read.handles("use_sliding_window") else read.handles("sliding_window")
    )
    window = read.positive_int("sliding_window") if sliding and read.value("sliding_window") is not None else None
    slides = _slides(read, family, layers, rotated)
    by_rule = tuple(window if slide else None for slide in slides)
    if (types := read.value("layer_types")) is None:
        if family.windows == "pattern" and window is None and any(slides):
            raise read.refusal("sliding_window", "a positive integer, which the sliding layers need")
        return by_rule
    if not isinstance(types, list | tuple) or len(types) != layers:
        raise read.refusal("layer_types", f"a list of {layers} names (num_hidden_layers) or null")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise read.refusal("layer_types", f"full_attention and sliding_attention only, not {sorted(map(str, unknown))}")
    if window is None and "sliding_attention" in types:
        raise read.refusal("layer_types", "full_attention only, since no sliding window is in use")
    by_type = tuple(window if kind == "sliding_attention" else None for kind in types)
    if not chooses and by_type != by_rule:
        raise read.refusal("layer_types", f"one kind for all layers, that of sliding_window = {window!r}")
    return by_type


def _slides(read: ConfigReader, family: Family, layers: int, rotated: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return whether the family's rule gives each layer a window."""
    if family.windows == "upper":
        first = read.value("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise read.refusal("max_window_layers", "a whole number of layers")
        return tuple(layer >= first for layer in range(layers))
    if family.windows == "pattern":
        every = read.positive_int("sliding_window_pattern", or_none=family.full_every)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if family.windows == "unrotated":
        return tuple(not turned for turned in rotated)
    return (True,) * layers

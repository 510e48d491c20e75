"""The constructor arguments of SMT: mixer patterns and checks.

Every error message has the argument's name, its value and what was expected.
"""

import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from .modulation import AGGREGATIONS, MODULATIONS

CONV_KERNELS = "odd numbers, one per head, e.g. (3, 5, 7, 9)"


def expand_pattern(pattern: str, depth: int) -> str:
    """Expand the mixer pattern of a stage to one letter per block: ``S`` (SAM), ``A`` (MSA) or ``F`` (FocalNet's).

    A pattern without stars is cycled over the stage: ``"SA"`` at depth 5 is ``SASAS``. A letter followed by ``*``
    stretches: starred letters share evenly the blocks that the others leave, the first of them taking the remainder,
    so ``"S*A*"`` at depth 8 is ``SSSSAAAA`` and ``"S*A"`` is ``SSSSSSSA``.

    Raises:
        ValueError: The pattern is malformed or has more letters without a star than ``depth``.
    """
    letters = isinstance(pattern, str) and re.fullmatch(r"([SAF]\*?)+", pattern) is not None
    expected = "letters S (SAM), A (MSA) and F (FocalNet's modulation), e.g. 'S', 'SA', or 'S*A*' for halves"
    check(letters, "mixers", pattern, expected)
    tokens = re.findall(r"[SAF]\*?", pattern)
    stars = pattern.count("*")
    if not stars:
        return (pattern * depth)[:depth]
    free = depth - (len(tokens) - stars)
    check(free >= 0, "mixers", pattern, f"at most {depth} letters without a star, the stage's entry of depths")
    shares = iter([free // stars + (i < free % stars) for i in range(stars)])
    return "".join(token[0] * next(shares) if token.endswith("*") else token for token in tokens)


def check(valid: Any, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(f"invalid {name}={value!r}: expected {expected}")


def check_number(kind: type, limit: float, **arguments: Any) -> None:
    """Raise a ValueError unless each argument is a number of a type, at most ``limit``; an integer is a float too."""
    expected = f"{'an integer' if kind is int else 'a number'} of at most {limit}"
    for name, value in arguments.items():
        check(_is_number(kind, limit, value), name, value, expected)


def check_numbers(kind: type, limit: float, **arguments: Any) -> None:
    """As :func:`check_number`, of arguments that may be several numbers."""
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else (value,)
        valid = all(_is_number(kind, limit, v) for v in values)
        check(valid, name, value, f"{'integers' if kind is int else 'numbers'} of at most {limit}")


def _is_number(kind: type, limit: float, value: Any) -> bool:
    of_kind = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return of_kind and -limit <= float(value) <= limit


def per_stage(name: str, value: Any, num_stages: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * num_stages
    check(len(values) == num_stages, name, value, f"one value for each of the {num_stages} stages of embed_dims")
    return values


def check_network(
    in_chans: int,
    stem_kernel: int,
    stem_stride: int,
    embed_dims: Sequence[int],
    depths: Sequence[int],
    mlp_ratios: Sequence[float],
    expand_ratio: int,
) -> None:
    check(in_chans >= 1, "in_chans", in_chans, "at least 1")
    check(stem_kernel >= 1 and stem_kernel % 2 == 1, "stem_kernel", stem_kernel, "an odd number, e.g. 3 or 7")
    check(stem_stride in (1, 2, 4), "stem_stride", stem_stride, "one of 1, 2, 4")
    check(min(embed_dims, default=0) >= 1, "embed_dims", embed_dims, "positive numbers, one per stage")
    check(min(depths) >= 1, "depths", depths, "at least 1 block in each stage")
    hidden = [int(dim * ratio) for dim, ratio in zip(embed_dims, mlp_ratios, strict=True)]
    check(min(hidden) >= 1, "mlp_ratios", mlp_ratios, "at least 1 hidden channel in each stage")
    integer = expand_ratio >= 1 and expand_ratio == int(expand_ratio)
    check(integer, "expand_ratio", expand_ratio, "an integer of at least 1")


def check_heads(
    embed_dims: Sequence[int], patterns: Sequence[str], conv_heads: Sequence[int], attn_heads: Sequence[int]
) -> None:
    for i, (dim, pattern) in enumerate(zip(embed_dims, patterns, strict=True)):
        for letter, name, heads in (("S", "conv_heads", conv_heads[i]), ("A", "attn_heads", attn_heads[i])):
            if letter in pattern and (heads < 1 or dim % heads):
                divisors = ", ".join(str(n) for n in range(1, min(dim, 64) + 1) if dim % n == 0)
                raise ValueError(
                    f"invalid {name}={heads}: stage {i + 1} has embed_dims={dim}, expected a divisor of it ({divisors})"
                )


def check_modulation(
    patterns: Sequence[str],
    conv_heads: Sequence[int],
    conv_kernels: Sequence[int] | None,
    aggregation: str,
    modulation: str,
    dilated: bool,
) -> None:
    check(aggregation in AGGREGATIONS, "aggregation", aggregation, f"one of {', '.join(map(repr, AGGREGATIONS))}")
    check(modulation in MODULATIONS, "modulation", modulation, f"one of {', '.join(map(repr, MODULATIONS))}")
    if conv_kernels is not None:
        odd = bool(conv_kernels) and all(k >= 1 and k % 2 == 1 for k in conv_kernels)
        check(odd, "conv_kernels", conv_kernels, CONV_KERNELS)
        for i, pattern in enumerate(patterns):
            if "S" in pattern and conv_heads[i] != len(conv_kernels):
                raise ValueError(
                    f"invalid conv_kernels={conv_kernels!r}: stage {i + 1} has conv_heads={conv_heads[i]}, expected as "
                    "many kernel sizes"
                )
    if dilated and any("F" in pattern for pattern in patterns):
        raise ValueError("invalid output_stride with mixer F: FocalNet's modulation has no dilation; use S or A")


def check_head(num_classes: int, global_pool: str) -> None:
    check(num_classes >= 0, "num_classes", num_classes, "0 (no classifier) or more")
    pools = ("avg", "max", "avgmax", "catavgmax")
    pools += ("fast", *(f"fast{pool}" for pool in pools), *(() if num_classes else ("",)))
    expected = "one of 'avg', 'max', 'avgmax', 'catavgmax', these with 'fast' before, or '' with num_classes=0"
    check(global_pool in pools, "global_pool", global_pool, expected)


def check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        check(isinstance(rate, Real) and 0 <= float(rate) < 1, name, rate, "a probability, at least 0 and below 1")

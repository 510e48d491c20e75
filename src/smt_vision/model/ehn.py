"""The evolutionary hybrid network (EHN) as data: which mixer every block of a stage uses."""

import re

MIXERS = {"S": "SAM", "A": "MSA"}


def expand_pattern(pattern: str, depth: int) -> str:
    """Spell out a stage's mixer pattern, one letter a block.

    A pattern of plain letters is cycled over the stage: ``"SA"`` at depth 5 is ``SASAS``. A letter followed by ``*``
    stretches: starred letters share evenly what the plain ones leave (the first take what does not divide),
    so ``"S*A*"`` at depth 8 is ``SSSSAAAA`` and ``"S*A"`` is ``SSSSSSSA``.

    Args:
        pattern: letters ``S`` (scale-aware modulation) and ``A`` (self-attention), each with an optional ``*``.
        depth: blocks in the stage.

    Raises:
        ValueError: the pattern is empty, has other characters, or has more plain letters than ``depth``.
    """
    if not re.fullmatch(r"([SA]\*?)+", pattern):
        raise ValueError(
            f"mixers: {pattern!r} is not a mixer pattern; write letters S (modulation) and A (attention), cycled over "
            "the stage's blocks, e.g. 'S', 'SA', or with stars that stretch, e.g. 'S*A*' for halves"
        )
    tokens = re.findall(r"[SA]\*?", pattern)
    stars = pattern.count("*")
    if not stars:
        return (pattern * depth)[:depth]
    free = depth - (len(tokens) - stars)
    if free < 0:
        raise ValueError(
            f"mixers: {pattern!r} names {len(tokens) - stars} blocks without a star in a stage of {depth}; "
            "leave some out or raise the stage's entry of depths"
        )
    shares = iter([free // stars + (i < free % stars) for i in range(stars)])
    return "".join(token[0] * next(shares) if token.endswith("*") else token for token in tokens)

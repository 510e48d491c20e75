"""``load_state_dict`` of an SMT, and of timm's ``features_only`` wrappers of one: what it accepts and refuses.

Besides a module's own keys, the release's and those of an SMT under any prefix are accepted. A state dict of which no
key belongs to the module is an error, for ``strict=False`` too.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from .official import our_state

log = logging.getLogger(__name__)

# A parameter of an SMT, in whatever module it is; timm's feature_cls="list" has stages_0 instead of stages.0.
_PARAMETER = re.compile(r"(?:^|\.)((?:stem|head|stages[._]\d+)\..+)$")


def convert_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]) -> None:
    """Give the tensors under a prefix the keys of an SMT, in place; to be called before the SMT looks them up.

    Args:
        module: The SMT.
        state_dict: State dict that ``load_state_dict`` passes to the module.
        prefix: The module's prefix in the state dict.
        error_msgs: Where ``load_state_dict`` collects its errors.
    """
    _convert(module, state_dict, prefix, error_msgs, {name: name for name in _names(module)})


def convert_features_state(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """A hook for ``register_load_state_dict_pre_hook`` of a module that has the parts of an SMT under other names.

    Tensors of parts that the module does not have are left out: the classifier, and stages after the last feature map.
    """
    names = {}
    for name in _names(module):
        if match := _PARAMETER.search(name):
            names[match[1].replace("stages_", "stages.", 1)] = name
    _convert(module, state_dict, prefix, error_msgs, names, parts={_part(name) for name in names})


def _convert(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    error_msgs: list[str],
    names: Mapping[str, str],
    parts: set[str] | None = None,
) -> None:
    """Rename tensors to ``names``, the module's names by the SMT's, and leave out parts other than ``parts``."""
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not own and not prefix:
        kind = type(module).__name__
        error_msgs.append(
            f"state dict: it is empty; pass all tensors of the file, whose keys need not be those of {kind}"
        )
    others = own.keys() - set(names.values())
    layout = {name for smt_name, name in names.items() if name != smt_name}  # names that only this module has
    # Under these may be a whole network, e.g. a classifier that is the attribute "model" of another module.
    absent = [key for key in others if (m := _PARAMETER.search(key)) and parts is not None and _part(m[1]) not in parts]
    if not others or (own.keys() & layout and not absent):
        return
    where = f"state dict, {prefix[:-1]}" if prefix else "state dict"
    try:
        state = our_state(own, where)
    except ValueError as error:
        error_msgs.append(str(error))
        return
    left_out = [key for key in state if parts is not None and _part(key) not in {"", *parts}]
    if left_out:
        log.info("%s: ignored %d tensors that %s does not have", where, len(left_out), type(module).__name__)
    # By part, because a file may have entries that the module has not, e.g. BatchNorm's num_batches_tracked.
    places = {_part(key): name.removesuffix(key.removeprefix(_part(key))) for key, name in names.items()}
    state = {
        places.get(_part(key), _part(key)) + key.removeprefix(_part(key)): value
        for key, value in state.items()
        if key not in left_out
    }
    for key in own:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in state.items()})
    if not state.keys() & set(names.values()):
        found = ", ".join(list(own)[:3])
        entry = next((f"; pass its entry {key!r}" for key, value in own.items() if isinstance(value, Mapping)), "")
        error_msgs.append(
            f"{where}: none of its {len(own)} keys ({found}, ...) belongs to {type(module).__name__}; expected the "
            f"release's keys (patch_embed1.conv.0.weight, ...) or this package's ({next(iter(names), '')}, ...)" + entry
        )


def _names(module: nn.Module) -> list[str]:
    return [name for named in (module.named_parameters(), module.named_buffers()) for name, _ in named]


def _part(key: str) -> str:
    """The part of an SMT that a key belongs to, e.g. ``stages.0``; empty if the key is not an SMT's."""
    match = re.match(r"(stem|head\.fc|stages\.\d+)\.", key)
    return match[1] if match else ""

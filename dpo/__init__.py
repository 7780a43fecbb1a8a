"""Direct preference optimisation and its family: learn preferred answers without a reward model.

`from dpo import dpo_loss` needs torch alone: what is not a loss is imported when it is asked for.
"""

from importlib import import_module
from typing import Any

from dpo import loss
from dpo.loss import *  # noqa: F403 - the names of its __all__

_MODULES = {"dpo_train": "dpo.train", "DPOConfig": "dpo.train", "kto_train": "dpo.kto",
            "evaluate_preference_accuracy": "dpo.evaluate", "implicit_rewards": "dpo.evaluate"}

__all__ = [*loss.__all__, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

"""Direct preference optimisation: learn the preferred answers without a reward model.

`from dpo import dpo_loss` needs torch alone: the rest is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

from dpo.loss import dpo_loss

_MODULES = {"dpo_train": "dpo.train", "DPOConfig": "dpo.train",
            "evaluate_preference_accuracy": "dpo.evaluate", "implicit_rewards": "dpo.evaluate"}

__all__ = ["DPOConfig", "dpo_loss", "dpo_train", "evaluate_preference_accuracy", "implicit_rewards"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

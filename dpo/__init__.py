"""Direct preference optimisation and its family: learn preferred answers without a reward model.

`from dpo import dpo_loss` needs torch alone: the rest is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

from dpo.loss import (
    LOSSES,
    apo_down_loss,
    apo_zero_loss,
    cdpo_loss,
    dpo_loss,
    dpo_nll_loss,
    dpop_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    length_normalised_dpo_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)

_MODULES = {"dpo_train": "dpo.train", "DPOConfig": "dpo.train", "kto_train": "dpo.kto",
            "evaluate_preference_accuracy": "dpo.evaluate", "implicit_rewards": "dpo.evaluate"}

__all__ = ["LOSSES", "DPOConfig", "apo_down_loss", "apo_zero_loss", "cdpo_loss", "dpo_loss",
           "dpo_nll_loss", "dpo_train", "dpop_loss", "evaluate_preference_accuracy", "hinge_loss",
           "implicit_rewards", "ipo_loss", "kto_loss", "kto_reference_point", "kto_train",
           "length_normalised_dpo_loss", "orpo_loss", "robust_dpo_loss", "simpo_loss"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

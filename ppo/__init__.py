"""Proximal policy optimisation: sample responses, score them, reinforce those that scored well."""

from ppo.advantages import gae, grpo_advantages, rloo_advantages
from ppo.loss import ppo_loss, value_loss
from ppo.train import ppo_training

__all__ = ["gae", "grpo_advantages", "ppo_loss", "ppo_training", "rloo_advantages", "value_loss"]

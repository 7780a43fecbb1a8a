"""Proximal policy optimisation: sample responses, score them, reinforce those that scored well."""

from ppo.advantages import gae
from ppo.loss import ppo_loss, value_loss
from ppo.train import ppo_training

__all__ = ["gae", "ppo_loss", "ppo_training", "value_loss"]

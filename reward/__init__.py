"""Reward modelling: learn from comparisons which answer people would prefer."""

from reward.combine import Ensemble
from reward.evaluate import evaluate_reward_accuracy, score
from reward.loss import bradley_terry_loss
from reward.model import RewardModel
from reward.train import train_reward_model

__all__ = ["Ensemble", "RewardModel", "bradley_terry_loss", "evaluate_reward_accuracy", "score",
           "train_reward_model"]

"""Supervised fine-tuning: learn to answer by imitating demonstrations."""

from sft.loss import sft_loss
from sft.train import evaluate_loss, sft_train

__all__ = ["evaluate_loss", "sft_loss", "sft_train"]

"""Supervised fine-tuning: learn to answer by imitating demonstrations."""

import minigpt  # noqa: F401 - before `data`, see minigpt/hidden.py
from sft.evaluate import evaluate_loss
from sft.loss import sft_loss
from sft.train import sft_train

__all__ = ["evaluate_loss", "sft_loss", "sft_train"]

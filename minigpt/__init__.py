"""The shared trunk: tokenizer, model, batching, log-probabilities, sampling, the training run, checkpoints."""

import os

# oneDNN, which multiplies matrices for PyTorch on a CPU, keeps what it prepared for up to 1024 shapes, hundreds of MB here.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.logprobs import sequence_logps
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.sampling import Response, generate
from minigpt.tokenizer import EOS, PAD, SEP, VOCAB_SIZE, decode, encode

__all__ = ["EOS", "PAD", "SEP", "VOCAB_SIZE", "MiniGPT", "Response", "copy_model_weights", "decode", "encode", "generate",
           "load_checkpoint", "save_checkpoint", "sequence_logps"]

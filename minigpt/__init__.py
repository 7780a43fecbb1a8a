"""The shared trunk: tokenizer, model, batching, log-probabilities, sampling, the training run, checkpoints."""

from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.logprobs import sequence_logps
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.sampling import Response, generate
from minigpt.tokenizer import EOS, PAD, SEP, VOCAB_SIZE, decode, encode

__all__ = ["EOS", "PAD", "SEP", "VOCAB_SIZE", "MiniGPT", "Response", "copy_model_weights", "decode", "encode", "generate",
           "load_checkpoint", "save_checkpoint", "sequence_logps"]

"""The shared trunk: tokenizer, model, log-probabilities, sampling, training, checkpoints."""

import minigpt.hidden  # noqa: F401 - first: it may have to say why nothing else can be imported
from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.logprobs import sequence_logps
from minigpt.lora import adapters_off, add_lora, merge_lora
from minigpt.model import MiniGPT
from minigpt.sampling import Response, generate
from minigpt.tokenizer import EOS, PAD, SEP, VOCAB_SIZE, decode, encode
from minigpt.weights import copy_model_weights

__all__ = ["EOS", "PAD", "SEP", "VOCAB_SIZE", "MiniGPT", "Response", "adapters_off", "add_lora",
           "copy_model_weights", "decode", "encode", "generate", "load_checkpoint", "merge_lora",
           "save_checkpoint", "sequence_logps"]

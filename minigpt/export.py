"""A model as a GPT-2 of Hugging Face:  python -m minigpt.export runs/dpo/model.pt --out DIR

Writes config.json, generation_config.json, model.safetensors, the tokenizer's files and a model
card, README.md, with the settings and figures of the run that made the model.  transformers and TRL
load the folder by its name.  Needs the extra [hf].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.checkpoint import load_checkpoint
from minigpt.command import run_command
from minigpt.disk import make_folder, replace_text, write_json
from minigpt.errors import UserError
from minigpt.model import MiniGPT
from minigpt.options import Settings, option, parse
from minigpt.run_folder import holds_run
from minigpt.tokenizer import EOS, PAD, SEP

if TYPE_CHECKING:  # an extra, and slow to import
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

GPT2_NAMES = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f",
              "blocks": "h", "attention_norm": "ln_1", "ff_norm": "ln_2",
              "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
              "ff_in": "mlp.c_fc", "ff_out": "mlp.c_proj"}
SPECIAL_TOKENS = {SEP: "<|sep|>", PAD: "<|pad|>", EOS: "<|eos|>"}
# One question is a prompt as it is, and anything longer a transcript, as in data/conversations.py.
CHAT_TEMPLATE = r"""
{%- set names = {'user': 'Human', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'} %}
{%- set replied = messages[-1].role == 'assistant' %}
{%- set before = messages[:-1] if replied else messages %}
{%- if before | length == 1 and before[0].role == 'user' %}
    {%- set prompt = before[0].content %}
{%- else %}
    {%- set prompt %}
        {%- for message in before %}
            {{- names[message.role] + ': ' + message.content + '\n\n' }}
        {%- endfor %}
        {{- 'Assistant:' }}
    {%- endset %}
{%- endif %}
{{- prompt + sep_token if prompt else eos_token }}
{{- messages[-1].content + eos_token if replied else '' }}
"""
# What a run was told that says nothing about its model.
NOT_IN_CARD = ("out", "resume", "overwrite", "save_every")


@dataclass
class ExportConfig(Settings):
    model: str = option("runs/dpo/model.pt", "checkpoint of the model", positional=True)
    out: str = option("runs/export", "folder to write")
    overwrite: bool = option(False, "write into a folder that holds something already, replacing "
                                    "files of the same names")


def main(argv: Sequence[str] | None = None) -> None:
    config, = parse(__doc__, argv, ExportConfig)
    if find_spec("transformers") is None:
        raise UserError("the export needs the package transformers: pip install transformers")
    model, out = load_language_model(config.model), Path(config.out)
    open_folder(out, config.overwrite)
    export(model, out)
    replace_text(out / "README.md", model_card(model, Path(config.model), config.out))
    print(f"{config.out} holds {', '.join(sorted(path.name for path in out.iterdir()))}")


def load_language_model(path: str) -> MiniGPT:
    """The model of a checkpoint.  Raises UserError if it cannot write text."""
    model = load_checkpoint(path)
    if not isinstance(model, MiniGPT):
        raise UserError(f"{path} holds a {type(model).__name__}, and its score head has no place "
                        "in GPT-2's layout: export a language model (of sft, ppo or dpo)")
    return model


def open_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder.  Raises UserError if it holds a run, or anything and may not."""
    if holds_run(folder):
        raise UserError(f"{folder} holds a run, and its config.json would be lost: choose another "
                        "--out")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} holds something already: choose another --out, or --overwrite "
                        "replaces files of the same names")
    make_folder(folder)


def export(model: MiniGPT, folder: Path) -> None:
    """Write the model and its tokenizer as transformers stores them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    as_gpt2(model).save_pretrained(folder)
    byte_tokenizer(model.max_seq_len).save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    write_json(config, _read_json(config) | {
        "tokenizer_class": "PreTrainedTokenizerFast"})  # the name that transformers 4 knows, too


def as_gpt2(model: MiniGPT) -> "GPT2LMHeadModel":
    """A GPT-2 that computes what the model computes, on the CPU, in eval mode."""
    from transformers import GPT2LMHeadModel

    twin = GPT2LMHeadModel(gpt2_config(model.settings))
    twin.transformer.load_state_dict(gpt2_weights(model))
    twin.generation_config.max_length = model.max_seq_len  # of prompt and response
    return twin.eval()


def gpt2_config(settings: Mapping[str, int], **more: Any) -> "GPT2Config":
    """MiniGPT's settings in GPT-2's words; `more` adds to them or replaces some."""
    from transformers import GPT2Config

    config = {"vocab_size": settings["vocab_size"], "n_positions": settings["max_seq_len"],
              "n_embd": settings["embed_dim"], "n_head": settings["num_heads"],
              "n_layer": settings["num_layers"], "n_inner": settings["ff_dim"],
              "activation_function": "gelu",  # exact; GPT-2's own is an approximation by tanh
              "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
              "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return GPT2Config(**(config | more))


def gpt2_weights(model: MiniGPT) -> dict[str, Tensor]:
    """The weights by GPT-2's names.  Its matrices are transposed, and its attention has biases."""
    weights = {}
    for name, weight in model.state_dict().items():
        is_matrix = weight.dim() == 2 and "embedding" not in name
        for ours, theirs in GPT2_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = weight.T if is_matrix else weight
        if ".attn." in name:
            weights[name.replace("weight", "bias")] = torch.zeros(len(weight))
    return weights


def byte_tokenizer(max_seq_len: int) -> "PreTrainedTokenizerFast":
    """Our tokenizer for transformers: each byte is a token, with the same ids.

    A chat template puts SEP behind the prompt and EOS behind the response.  In text given as it is
    the caller writes them, `<|sep|>` and `<|eos|>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # ByteLevel writes each byte as a letter; those of the special tokens occur in no text.
    names = bytes_to_unicode() | SPECIAL_TOKENS
    vocabulary = {name: token for token, name in names.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token=names[SEP], pad_token=names[PAD],
        eos_token=names[EOS], bos_token=names[EOS], chat_template=CHAT_TEMPLATE,
        model_max_length=max_seq_len, padding_side="left", clean_up_tokenization_spaces=False)


def model_card(model: MiniGPT, path: Path, out: str) -> str:
    """README.md: what the model is, how to use it, and how its run was set and what it measured."""
    is_result = path.name == "model.pt"  # what the run's files are about; base.pt is not
    card = CARD.format(name=path.resolve().parent.name if is_result else path.stem, out=out,
                       weights=f"{model.count_parameters():,}", **model.settings)
    settings, figures = (path.with_name(name) for name in ("config.json", "summary.json"))
    if is_result and settings.exists():
        card += "\n## Settings\n\n" + ", ".join(
            f"`{name}={value}`" for name, value in _read_json(settings).items()
            if name not in NOT_IN_CARD and value is not None) + "\n"
    if is_result and figures.exists():
        card += "\n## Measured\n\n| figure | value |\n| --- | --- |\n" + "".join(
            f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |\n"
            for name, value in _read_json(figures).items())
    return card


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A MiniGPT of {weights} weights ({num_layers} layers of width {embed_dim}, {num_heads} heads),
trained with alignment-from-scratch and stored as a GPT-2. Each byte of UTF-8 is a token. It is too
small to know anything beyond the rows that it was trained on.

## Use

```python
from transformers import pipeline
pipe = pipeline("text-generation", model="{out}")
print(pipe([{{"role": "user", "content": "Capital of Japan?"}}])[0]["generated_text"][-1])
```

A prompt ends with `<|sep|>`, and a response with `<|eos|>`. The chat template puts them there; in a
prompt that is plain text, write the first yourself: `pipe("Capital of Japan?<|sep|>")`. Prompt and
response together may have {max_seq_len} tokens.

To train it further with TRL, give it messages (`prompt`, `chosen` and `rejected`, each a list of
them), or plain text whose prompt ends with `<|sep|>`.

Where these names occur in a text of yours, they are read as the special tokens, unless you call the
tokenizer with `split_special_tokens=True`.
"""


if __name__ == "__main__":
    run_command(main)

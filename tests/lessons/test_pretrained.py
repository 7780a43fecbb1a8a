"""DPO with adapters on a model of Hugging Face: a random one of two layers, a tiny tokenizer."""

import json
import math
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers", reason="a pretrained model needs the extra [pretrained]")
pytest.importorskip("peft", reason="a pretrained model needs the extra [pretrained]")
pytest.importorskip("gguf", reason="a pretrained model needs the extra [pretrained]")

import lessons.adapt
import lessons.pretrained
from data import PREFERENCE_DATA
from data.files import save_jsonl
from data.preferences import check_preferences
from lessons.adapt import answer, kl_to_reference, main
from lessons.pretrained import (
    INSTALL,
    PretrainedConfig,
    batches_of,
    collate,
    load,
    logps_of,
    prompt_ids,
    response_logps,
    tiny,
    tokenize,
    train,
    with_adapters,
)
from minigpt.errors import UserError

ROWS = check_preferences(PREFERENCE_DATA)
CONFIG = PretrainedConfig(lr=1e-2, rank=4, batch_size=7)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny()[1]


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return [tokenize(tokenizer, row) for row in ROWS]


@pytest.fixture
def model():
    return with_adapters(tiny()[0], CONFIG.rank, CONFIG.seed)


@pytest.fixture(scope="module")
def trained(pairs):
    """The model after one pass, the base model that it was made from, and what was logged."""
    model = with_adapters(tiny()[0], CONFIG.rank, CONFIG.seed)
    return model, tiny()[0], train(model, pairs, CONFIG)


def one_by_one(model, pair, side):
    """The log-probability of a response, token by token, each from the prompt and what precedes."""
    prompt, response = pair.prompt, getattr(pair, side)
    total = 0.0
    for n, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:n]])).logits[0, -1]
        total += logits.float().log_softmax(-1)[token].item()
    return total


# --- rows as tokens -------------------------------------------------------------------------------


def test_prompt_and_response_are_the_chat_template_in_two_parts(tokenizer, pairs):
    for row, pair in zip(ROWS, pairs, strict=True):
        text = tokenizer.decode(pair.prompt)
        assert text == f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(getattr(pair, side)) == f"{row[side]}<|im_end|>\n"


def test_a_prompt_is_the_same_tokens_whatever_answers_it(tokenizer):
    ids = prompt_ids(tokenizer, "2+2=")
    for response in ("4", " 4", "\n4", "\n\n4", ""):
        assert tokenize(tokenizer, {"prompt": "2+2=", "chosen": response,
                                    "rejected": "5"}).prompt == ids


def test_a_template_that_words_an_answered_prompt_otherwise_is_refused():
    _, tokenizer = tiny()
    tokenizer.chat_template = "{{ messages | length }} {{ messages[0].content }}"
    with pytest.raises(UserError, match="changes a prompt once it is answered"):
        tokenize(tokenizer, ROWS[0])


def test_masks_cover_the_responses_and_the_token_that_ends_them(tokenizer):
    batch = collate([([1, 1, 5], [6, tokenizer.eos_token_id]), ([1], [7])])
    assert batch.token_ids.tolist() == [[1, 1, 5, 6, 1], [1, 7, 0, 0, 0]]  # EOS is 1, as PAD
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]


# --- log-probabilities ----------------------------------------------------------------------------


@torch.no_grad()
def test_logps_are_the_sum_over_the_response_alone(model, pairs):
    batch = next(batches_of(pairs, 3))
    expected = [one_by_one(model, pair, side) for side in ("chosen", "rejected")
                for pair in pairs[:3]]
    torch.testing.assert_close(response_logps(model, batch), torch.tensor(expected), rtol=1e-4,
                               atol=1e-4)


def test_the_logits_of_prompt_tokens_have_no_part_in_the_sum(model, pairs):
    """The model's output is replaced by a table of logits: which of them does the sum read?"""
    batch = next(batches_of(pairs, 2))
    table = torch.randn(*batch.token_ids.shape, 400, requires_grad=True)

    class Table:
        def __call__(self, token_ids, logits_to_keep, **_):
            return type("Output", (), {"logits": table[:, logits_to_keep]})

    response_logps(Table(), batch).sum().backward()
    read = table.grad.abs().sum(-1) > 0
    assert torch.equal(read[:, :-1], batch.response_mask[:, 1:]) and not read[:, -1].any()


@torch.no_grad()
def test_padding_and_the_rows_beside_it_change_nothing(model, pairs):
    together = response_logps(model, next(batches_of(pairs, len(pairs)))).view(2, -1).T
    alone = torch.stack([response_logps(model, batch) for batch in batches_of(pairs, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


# --- training -------------------------------------------------------------------------------------


def test_policy_and_reference_are_the_base_model_at_the_start(model, pairs):
    policy, reference = logps_of(model, pairs)
    assert torch.equal(policy, reference)
    _, first = train(model, pairs[:14], CONFIG)[::-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == 0 and first["rewards/accuracies"] == 0.5


def test_only_adapters_change(trained):
    model, base, _ = trained
    before = dict(base.named_parameters())
    frozen = {name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
              for name, weight in model.named_parameters() if "lora_" not in name}
    assert frozen.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.items())
    adapters = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(adapters) == 14 and all(weight.any() for weight in adapters)  # 7 in each layer


@torch.no_grad()
def test_without_its_adapters_it_is_the_base_model(trained, pairs):
    model, base, _ = trained
    batch = next(batches_of(pairs, 4))
    with model.disable_adapter():
        assert torch.equal(response_logps(model, batch), response_logps(base, batch))
    assert not torch.equal(response_logps(model, batch), response_logps(base, batch))


def test_the_loss_falls(model, pairs):
    losses = [step["loss"] for step in train(model, pairs * 5, CONFIG)]
    assert sum(losses[-4:]) / 4 < 0.75 * losses[0]


def test_turned_labels_turn_the_margins(trained, pairs):
    turned = with_adapters(tiny()[0], CONFIG.rank, CONFIG.seed)
    train(turned, [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in pairs],
          CONFIG)
    means = []
    for model in (trained[0], turned):
        policy, reference = logps_of(model, pairs)
        chosen, rejected = (policy - reference).unbind(1)
        means.append((chosen - rejected).mean())
    assert means[0] > 0 > means[1]


# --- answers --------------------------------------------------------------------------------------


def test_a_greedy_answer_is_the_likeliest_token_each_time_and_ends_at_eos(trained, tokenizer,
                                                                          monkeypatch):
    monkeypatch.setattr(lessons.adapt, "LONGEST_ANSWER", 6)
    model = trained[0]
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in ROWS[:4]]  # of different lengths
    for prompt, ids in zip(prompts, answer(model, tokenizer, prompts), strict=True):
        assert tokenizer.eos_token_id not in ids[:-1]
        assert len(ids) == 6 or ids[-1] == tokenizer.eos_token_id
        for n, token in enumerate(ids):
            logits = model(torch.tensor([prompt + ids[:n]])).logits[0, -1]
            assert logits.max() - logits[token] < 1e-4


@torch.no_grad()
def test_kl_is_0_before_training_and_the_sum_over_an_answers_tokens_after(model, trained):
    example = [5, 6, 7], [8, 9]
    assert kl_to_reference(model, [example, example]) == 0
    model = trained[0]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    policy = model(ids).logits.log_softmax(-1)
    with model.disable_adapter():
        reference = model(ids).logits.log_softmax(-1)
    expected = (policy.exp() * (policy - reference)).sum(-1)[0, 2:4].sum()
    assert kl_to_reference(model, [example]) == pytest.approx(expected.item(), rel=1e-4)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_reads_a_folder_and_a_file_and_writes_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons.adapt, "LONGEST_ANSWER", 4)
    for part in tiny():
        part.save_pretrained(tmp_path / "model")
    save_jsonl([{"instruction": row["prompt"], "input": "", "chosen": row["chosen"],
                 "rejected": row["rejected"]} for row in ROWS], tmp_path / "rows.jsonl")
    main(["--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--pairs",
          "16", "--out", str(tmp_path / "out")])
    said = json.loads((tmp_path / "out" / "seed-0.json").read_text())
    assert said["pairs"] == 16 and len(said["history"]) == 2
    assert said["before"]["accuracy"] == 0.5 and said["before"]["kl_nats_per_response"] == 0
    assert said["after"]["kl_nats_per_response"] > 0


def test_without_a_model_or_packages_the_two_commands_are_told(monkeypatch):
    monkeypatch.setattr(lessons.pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="there is no pretrained model here") as error:
        load()
    assert INSTALL in str(error.value) and INSTALL.count("pip install") == 2
    monkeypatch.setattr(lessons.pretrained, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs more packages"):
        load()

"""Models of one's own go where a MiniGPT goes; what would not work is refused, in a sentence."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import minigpt.protocol
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards, kto_train
from minigpt import VOCAB_SIZE, MiniGPT, generate, save_checkpoint, sequence_logps
from minigpt.batching import Batches, collate
from minigpt.errors import UserError
from minigpt.evaluation import evaluate_policy
from minigpt.examples import tokenize_examples
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.lora import add_lora
from minigpt.protocol import checked_model, packs_rows
from ppo import ppo_training
from reward import RewardModel, train_reward_model
from sft import evaluate_loss, sft_train

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROWS = [{"prompt": "a", "chosen": "b", "rejected": "cd"}, {"prompt": "?", "chosen": "x y",
                                                          "rejected": "z"}]


class TinyGRU(nn.Module):
    max_seq_len = 64

    def __init__(self, ids=VOCAB_SIZE, width=16):
        super().__init__()
        self.embedding = nn.Embedding(ids, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, ids)

    def forward(self, token_ids):
        return self.head(self.gru(self.embedding(token_ids))[0])


class Plain(nn.Module):
    """A MiniGPT that shows no more than any model does."""

    def __init__(self, model):
        super().__init__()
        self.module, self.max_seq_len = model, model.max_seq_len  # no wrapper, for all its name

    def forward(self, token_ids):
        return self.module(token_ids)


class Packing(Plain):
    """One that takes the masks, too."""

    def hidden_states(self, token_ids, positions, visible, at):
        return self.module.hidden_states(token_ids, positions, visible, at=at)

    def logits(self, hidden):
        return self.module.logits(hidden)


# --- what works -----------------------------------------------------------------------------------


def test_the_example_of_the_readme_learns(capsys):
    cell, = re.findall(r"```python\n([^`]*class TinyGRU.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(cell, "README.md", "exec"), names)
    assert names["sft_losses"][0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.2)
    assert names["sft_losses"][-1] < 3 and names["losses"][-1] < 0.3
    assert names["losses"][0] == pytest.approx(math.log(2), abs=1e-7) and names["margins"][0] == 0
    assert capsys.readouterr().out.startswith("0.6931")


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_rows_of_one_response_say_what_packed_rows_say(make_model, texts, responses):
    model = make_model()
    rows = [(prompt, [response, "z" + response, "b"][:responses]) for prompt, response in texts]
    examples = tokenize_examples(rows, 64)
    assert packs_rows(model) and packs_rows(Packing(model)) and not packs_rows(Plain(model))
    for batch_size in (1, 7):
        found, packing, packed = (logps_of_examples(kind, Batches(examples, batch_size))
                                  for kind in (Plain(model), Packing(model), model))
        assert torch.equal(packing, packed) and packed.shape == (len(texts), responses)
        torch.testing.assert_close(found, packed, rtol=1e-5, atol=2e-5)


def test_their_gradients_are_the_same_too(make_model):
    model, gradients = make_model(), []
    batch = collate(tokenize_examples([("is it so?", ("yes, it is", "no")), ("a", ("b", "c"))], 64))
    for kind in (model, Plain(model)):
        model.zero_grad()
        (response_logps(kind, batch) * torch.tensor([[2.0, -3.0], [1.0, 5.0]])).sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for packed, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(apart, packed, rtol=1e-4, atol=1e-4)


def test_a_model_that_takes_the_masks_trains_exactly_as_minigpt(make_model, copy_of, make_pairs):
    settings = {"rows": make_pairs(12), "batch_size": 4, "precision": "float32"}
    model = make_model()
    (losses, margins), *others = (
        dpo_train(kind(copy_of(model)), kind(model), **settings)[1:]
        for kind in (lambda model: model, Packing, Plain))
    assert others[0] == (losses, margins) and losses[-1] < losses[0] - 0.02
    assert others[1][0] == pytest.approx(losses, abs=1e-4)


def test_a_row_may_be_as_long_as_max_seq_len_and_no_longer_with_its_padding():
    model = Plain(MiniGPT(embed_dim=16, num_heads=2, num_layers=1, max_seq_len=20, ff_dim=32))
    rows = [{"prompt": "a" * 9, "response": "b" * 9}]  # 20 tokens: a batch has 24 columns
    assert Batches(tokenize_examples([("a" * 9, ["b" * 9])], 20), 1).collate([0]) \
        .token_ids.shape == (1, 24)
    before = evaluate_loss(model, rows)
    assert evaluate_loss(sft_train(model, rows, num_epochs=3, lr=1e-2)[0], rows) < before - 0.5


def test_without_a_cache_the_same_tokens_are_sampled(reciter):
    prompts = [f"{letter}?" for letter in "abcdefghijkl"] + ["a longer prompt, and another end"]
    for settings in ({"max_new_tokens": 40}, {"max_new_tokens": 5}, {"max_new_tokens": 99}):
        assert generate(Plain(reciter), prompts, greedy=True, **settings) == \
            generate(reciter, prompts, greedy=True, **settings)
    for seed in range(5):
        settings = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 50, "seed": seed}
        assert generate(Plain(reciter), ["b?"], **settings) == generate(reciter, ["b?"], **settings)


def test_everything_else_takes_one_too(tmp_path, make_reward):
    torch.manual_seed(0)
    reference = TinyGRU()
    policy = copy.deepcopy(reference)
    assert evaluate_preference_accuracy(policy, reference, ROWS) == 0.5
    assert sequence_logps(policy, ["a"], ["bc"]).shape == (1,)
    policy, losses, _ = kto_train(policy, reference, ROWS, num_epochs=5, lr=1e-2)
    assert losses[-1] < losses[0] == pytest.approx(0.5, abs=1e-6)
    assert evaluate_preference_accuracy(policy, reference, ROWS) == 1
    figures = evaluate_policy(policy, reference, ["a", "b"], 2, max_new_tokens=4, seed=0)
    assert figures["kl_nats_per_response"] > 0

    def ascii_letters(prompts, texts):
        return [sum(map(str.isascii, text)) for text in texts]
    few = {"num_episodes": 8, "batch_size": 32, "minibatch_size": 32, "max_new_tokens": 6}
    policy, scores, kls = ppo_training(
        copy.deepcopy(reference), reference, ascii_letters, ["a"] * 4, lr=3e-2, kl_coeff=0,
        advantage="rloo", samples_per_prompt=8, **few)
    assert kls[0] == pytest.approx(0, abs=1e-6) and scores[-1] > scores[0] + 1
    value_model = make_reward()
    _, _, kls = ppo_training(copy.deepcopy(reference), reference, make_reward(), ["a"],
                             value_model=value_model, out=str(tmp_path), **few)
    assert kls[0] == pytest.approx(0, abs=1e-6) and len(kls) == 8
    assert (tmp_path / "state.pt").exists()


def test_a_run_of_one_resumes(check_resume, make_pairs):
    torch.manual_seed(0)
    reference = TinyGRU()

    def train(out, resume):
        return dpo_train(copy.deepcopy(reference), reference, make_pairs(12), num_epochs=4,
                         batch_size=6, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


# --- what does not --------------------------------------------------------------------------------


class Ignores(MiniGPT):
    """Takes the masks, and drops some of them."""

    drops = ("positions", "visible")

    def hidden_states(self, token_ids, positions=None, visible=None, cache=None, at=None):
        given = {"positions": positions, "visible": visible}
        return super().hidden_states(token_ids, cache=cache, at=at, **{
            name: value for name, value in given.items() if name not in self.drops})


class IgnoresMask(Ignores):
    drops = ("visible",)


class IgnoresPositions(Ignores):
    drops = ("positions",)


class PackingIgnores(Packing):
    def hidden_states(self, token_ids, positions, visible, at):
        return self.module.hidden_states(token_ids, at=at)


SIZE = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 64, "ff_dim": 64}
IGNORING = {"both": lambda: Ignores(**SIZE), "mask": lambda: IgnoresMask(**SIZE),
            "positions": lambda: IgnoresPositions(**SIZE),
            "no MiniGPT": lambda: PackingIgnores(MiniGPT(**SIZE))}
COMPARING = {
    "dpo": lambda policy, reference: dpo_train(policy, reference, ROWS),
    "kto": lambda policy, reference: kto_train(policy, reference, ROWS),
    "accuracy": lambda policy, reference: evaluate_preference_accuracy(policy, reference, ROWS),
    "ppo": lambda policy, reference: ppo_training(policy, reference, lambda *texts: [0], ["a"],
                                                  advantage="rloo", samples_per_prompt=2)}


@pytest.mark.parametrize("make", IGNORING.values(), ids=IGNORING)
@pytest.mark.parametrize("use", COMPARING.values(), ids=COMPARING)
def test_a_model_that_takes_the_masks_and_ignores_them_is_found_out(make, use, weights_of,
                                                                    weights_equal):
    policy = make()
    kept = weights_of(policy)
    with pytest.raises(ValueError, match="reads a response that shares its row with another one "
                                         r"differently.*leave both parameters out"):
        use(policy, copy.deepcopy(policy))
    assert weights_equal(policy, kept)
    sft_train(policy, ROWS)  # where every row has one response, there is nothing to ignore


class LooksAhead(TinyGRU):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(16, 8, batch_first=True, bidirectional=True)


def test_a_model_that_sees_what_it_has_to_predict_is_refused():
    for use in (*COMPARING.values(), lambda policy, reference: sft_train(policy, ROWS)):
        with pytest.raises(ValueError, match="LooksAhead is not causal"):
            use(LooksAhead(), LooksAhead())


class Drops(TinyGRU):
    share = 0.5

    def forward(self, token_ids):
        return nn.functional.dropout(super().forward(token_ids), self.share, self.training)


def test_dropout_is_refused_where_log_ratios_are_compared_and_nowhere_else():
    policy = sft_train(Drops(), ROWS)[0]
    for name, use in COMPARING.items():
        if name != "accuracy":
            with pytest.raises(ValueError, match="Drops gives the same text another probability"):
                use(policy, copy.deepcopy(policy))
    assert not policy.training and evaluate_preference_accuracy(policy, policy, ROWS) == 0.5
    with pytest.raises(ValueError, match="call eval"):
        implicit_rewards(policy.train(), policy, ROWS)
    reference, policy.share = copy.deepcopy(policy), 0.0
    _, losses, _ = dpo_train(policy, reference, ROWS)  # a reference is only read
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)


class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights, self.max_seq_len = nn.Linear(2, 2), 64


class NoLength(TinyGRU):
    max_seq_len = None


class Tuple(TinyGRU):
    def forward(self, token_ids):
        return super().forward(token_ids), None


class LastColumn(TinyGRU):
    def forward(self, token_ids):
        return super().forward(token_ids)[:, -1]


class FewIds(TinyGRU):
    def __init__(self):
        super().__init__(ids=100)


class ManyIds(TinyGRU):
    def __init__(self):
        super().__init__(ids=300)


class ShortRows(Plain):
    def __init__(self):
        super().__init__(MiniGPT(**SIZE))
        self.module.position_embedding = nn.Embedding(8, 32)
        self.max_seq_len = 99


UNFIT = {
    "no model": (lambda: None, "a NoneType is no language model: an nn.Module is needed"),
    "a function": (lambda: lambda token_ids: token_ids, "a function is no language model"),
    "a class": (lambda: TinyGRU, "a type is no language model"),
    "nothing": (nn.Module, r"a Module is no .*lacks max_seq_len .*, and forward.*, and weights"),
    "no forward": (NoForward, r"lacks forward\(token_ids \(B, T\)\) -> logits \(B, T, 256\)\."),
    "no length": (NoLength, r"lacks max_seq_len \(the longest row that it reads, in tokens\)\."),
    "a tuple": (Tuple, r"Tuple\(token_ids\) returned a tuple, but a tensor of logits"),
    "one column": (LastColumn, r"shape \(2, 256\), but logits \(B, T, 256\) are needed"),
    "few ids": (FewIds, "cannot read token ids up to 255.*it needs a vocabulary of 256"),
    "many ids": (ManyIds, r"shape \(2, \d+, 300\), but logits \(B, T, 256\) are needed"),
    "short rows": (ShortRows, r"in a row of \d+ .*room for max_seq_len=99 tokens"),
    "few ids of MiniGPT": (lambda: MiniGPT(vocab_size=100), "needs a vocabulary of 256"),
    "a reward model": (lambda: RewardModel(**SIZE), r"RewardModel\(token_ids\) returned"),
}


@pytest.mark.parametrize(("make", "sentence"), UNFIT.values(), ids=UNFIT)
def test_what_a_model_lacks_is_named(make, sentence):
    uses = (*COMPARING.values(), lambda model, reference: sft_train(model, ROWS),
            lambda model, reference: generate(model, ["a"], 4),
            lambda model, reference: sequence_logps(model, ["a"], ["b"]))
    for use in uses:
        with pytest.raises(TypeError, match=sentence):
            use(make(), make())


def test_what_only_a_minigpt_can_do_is_said(make_pairs, tmp_path):
    policy, reference = TinyGRU(), TinyGRU()
    with pytest.raises(TypeError, match="a TinyGRU cannot become a RewardModel"):
        RewardModel.from_policy(policy)
    with pytest.raises(TypeError, match="a TinyGRU cannot become a RewardModel"):
        ppo_training(policy, reference, lambda prompts, texts: [1.0] * len(texts), ["a"])
    with pytest.raises(TypeError, match="trains a RewardModel, and a TinyGRU is none"):
        train_reward_model(policy, make_pairs(4))
    with pytest.raises(TypeError, match="adapters to a MiniGPT, and a TinyGRU is none"):
        add_lora(policy, 2)
    with pytest.raises(UserError, match=r"TinyGRU cannot be saved.*save the state_dict\(\)"):
        save_checkpoint(policy, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="policy and reference differ in shape"):
        dpo_train(policy, MiniGPT(**SIZE), ROWS)


def test_minigpt_itself_is_not_checked(make_model, copy_of, make_pairs, monkeypatch):
    monkeypatch.setattr(minigpt.protocol, "probe", None)
    monkeypatch.setattr("minigpt.logprobs.probe", None)
    model = make_model()
    assert checked_model(model) is model
    dpo_train(copy_of(model), model, make_pairs(4))
    generate(model, ["a"], 2)
    with pytest.raises(TypeError):
        checked_model(TinyGRU())

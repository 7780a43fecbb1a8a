"""On a GPU the same comes out as on the CPU.  Skipped where there is none."""

import copy
import os

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.nn.utils import parameters_to_vector

from dpo import LOSSES, dpo_train
from dpo.kto import kto_train
from dpo.rounds import OnlineConfig, dpo_rounds
from dpo.train import DPOConfig
from minigpt import EOS, generate, sequence_logps
from minigpt.lora import add_lora, merge_lora
from ppo import ppo_training
from reward import train_reward_model
from sft import sft_train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS is not deterministic


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


FEW = {"batch_size": 4, "precision": "float32", "save_every": 2}
EPISODES = {"batch_size": 8, "minibatch_size": 4, "num_episodes": 6, "max_new_tokens": 6,
            "save_every": 2}
ADVANTAGES = {"gae": {}, "rloo": {"samples_per_prompt": 4}, "grpo": {"samples_per_prompt": 4},
              "sampled": {"advantage": "rloo", "samples_per_prompt": 2, "kl_penalty": "sampled"}}


def sft(start, rewards, rows, **options):
    return sft_train(start, [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows],
                     2, **options)[:2]


def reward(start, rewards, rows, **options):
    return train_reward_model(rewards, rows, 2, **options)[:2]


def kto(start, rewards, rows, **options):
    return kto_train(start, copy.deepcopy(start), rows, 2, **options)[:2]


def lora(start, rewards, rows, **options):
    policy, losses, _ = dpo_train(add_lora(start, rank=2), None, rows, 2, **options)
    return merge_lora(policy), losses


def dpo(loss):
    return lambda start, rewards, rows, **options: dpo_train(
        start, copy.deepcopy(start), rows, 2, loss=loss, **options)[:2]


TRAINERS = {"sft": sft, "reward": reward, "kto": kto, "lora": lora, **{
    name: dpo(name) for name in LOSSES}}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_stage_trains_as_on_the_cpu(make_model, make_reward, make_pairs, name):
    def train(device):
        start, rewards = make_model(spread=3).to(device), make_reward(spread=3).to(device)
        before = weights_of(rewards if name == "reward" else start)
        model, losses = TRAINERS[name](start, rewards, make_pairs(16), lr=1e-4, **FEW)
        return weights_of(model) - before, losses
    assert_same(train("cuda"), train("cpu"))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_episodes_of_given_responses_train_as_on_the_cpu(make_model, make_reward, recited, name):
    def given(policy, prompt_ids, max_new_tokens, generator):
        return [[*ids[:-1], 33 + row, EOS][-max_new_tokens:] for row, ids in enumerate(prompt_ids)]

    def train(device):
        start = make_model(spread=3).to(device)
        before = weights_of(start)
        model, scores, kls = ppo_training(
            start, copy.deepcopy(start), make_reward(spread=3).to(device),
            [row["prompt"] for row in recited], sample=given,
            **{"advantage": name, **EPISODES, **ADVANTAGES[name]})
        return weights_of(model) - before, [*scores, *kls]
    assert_same(train("cuda"), train("cpu"))


def weights_of(model):
    return parameters_to_vector(model.parameters()).detach().cpu().clone()


def assert_same(found, expected):
    (moved, figures), (expected_moved, expected_figures) = found, expected
    assert figures == pytest.approx(expected_figures, rel=1e-3, abs=1e-4)
    assert expected_moved.norm() > 0
    assert cosine_similarity(moved, expected_moved, dim=0) > 0.95  # Adam steps by the sign of noise
    assert moved.norm() == pytest.approx(float(expected_moved.norm()), rel=0.05)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_stage_resumes_bit_for_bit(make_model, make_reward, make_pairs, check_resume,
                                     deterministic, name):
    def train(out, resume):
        return TRAINERS[name](make_model().cuda(), make_reward().cuda(), make_pairs(16), out=out,
                              resume=resume, **FEW)[0]
    check_resume(train)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_episodes_begin_at_the_reference_and_resume_bit_for_bit(
        make_model, make_reward, recited, check_resume, deterministic, name):
    kls = []

    def train(out, resume):
        start = make_model().cuda()
        policy, _, kl = ppo_training(
            start, copy.deepcopy(start), make_reward().cuda(), [row["prompt"] for row in recited],
            **{"advantage": name, **EPISODES, **ADVANTAGES[name]}, out=out, resume=resume)
        kls.append(kl)
        return policy
    check_resume(train)
    assert all(kl[0] == pytest.approx(0, abs=1e-4) and kl[-1] > 1e-4 for kl in kls)


def test_rounds(reciter):
    start = copy.deepcopy(reciter).cuda()
    unknown = [f"{letter}{n}?" for letter in "mnopq" for n in range(4)]  # with answers that vary
    online = OnlineConfig(rounds=2, samples_per_prompt=4)
    _, losses, _ = dpo_rounds(copy.deepcopy(start), start, unknown,
                              lambda prompts, texts: [len(text) for text in texts], online,
                              DPOConfig(batch_size=4), max_new_tokens=40)
    assert losses[0] == pytest.approx(0.6931, abs=1e-2) and len(losses) >= 2


def test_answers_and_their_log_probabilities(reciter, recited):
    on_gpu = copy.deepcopy(reciter).cuda()
    prompts = [row["prompt"] for row in recited] * 3
    expected = generate(reciter, prompts, 40, greedy=True)
    assert generate(on_gpu, prompts, 40, greedy=True) == expected
    found, wanted = (sequence_logps(model, prompts, [answer.text for answer in expected])
                     for model in (on_gpu, reciter))
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)

"""The two call sequences of the lessons that this library replaces run as printed.

Only their import lines are renamed.
"""

import math

import torch

DPO_LESSON = '''
# Load the MiniGPT model (SFT checkpoint)
from dpo.main import MiniGPT, dpo_train, evaluate_preference_accuracy, copy_model_weights, PREFERENCE_DATA
# Initialise policy and reference models
policy = MiniGPT(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
reference = MiniGPT(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
# Copy SFT weights into both models (see copy_model_weights in the file)
policy, reference = copy_model_weights(sft_model, policy), copy_model_weights(sft_model, reference)
# Train with DPO
policy, losses, margins = dpo_train(
policy,
reference,
PREFERENCE_DATA, # list of {prompt, preferred, rejected}
num_epochs=5,
lr=5e-6,
beta=0.1,
)
# Evaluate preference accuracy before and after DPO
pre_acc = evaluate_preference_accuracy(sft_model, reference, PREFERENCE_DATA)
post_acc = evaluate_preference_accuracy(policy, reference, PREFERENCE_DATA)
print(f"Accuracy before DPO: {pre_acc:.1%}, after DPO: {post_acc:.1%}")
'''  # noqa: E501 (as printed)

RLHF_LESSON = '''
# Load the MiniGPT model (SFT checkpoint)
from ppo.main import MiniGPT, RewardModel, train_reward_model, ppo_training, copy_model_weights, PREFERENCE_DATA
# Initialise SFT, reward, policy, and reference models
sft = MiniGPT(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
reward = RewardModel(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
policy = MiniGPT(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
reference = MiniGPT(vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512)
# Copy SFT weights into policy and reference
policy = copy_model_weights(sft, policy)
reference = copy_model_weights(sft, reference)
# 1️⃣ Train reward model on preference pairs
reward, rm_losses, rm_accs = train_reward_model(reward, PREFERENCE_DATA, num_epochs=10, lr=1e-4)
# 2️⃣ PPO fine-tuning using the learned reward
policy, rewards, kls = ppo_training(
policy,
reference,
reward,
[p["prompt"] for p in PREFERENCE_DATA],
num_episodes=20,
lr=1.5e-5,
kl_coeff=0.02,
)
print(f"Final KL divergence: {kls[-1]:.4f}")
'''  # noqa: E501 (as printed)


def test_dpo_lesson_runs_as_printed_and_learns(capsys, weights_equal, weights_of):
    from dpo.main import MiniGPT
    torch.manual_seed(0)
    sft_model = MiniGPT()
    kept, lesson = weights_of(sft_model), {"sft_model": sft_model}
    exec(DPO_LESSON, lesson)
    assert abs(lesson["losses"][0] - math.log(2)) < 1e-4 and abs(lesson["margins"][0]) < 1e-4
    assert lesson["losses"][-1] < math.log(2) - 1e-4 and lesson["margins"][-1] > 1e-4
    assert lesson["pre_acc"] == 0.5 and lesson["post_acc"] >= 0.6
    assert "Accuracy before DPO: 50.0%, after DPO:" in capsys.readouterr().out
    assert weights_equal(sft_model, kept) and weights_equal(lesson["reference"], kept)


def test_rlhf_lesson_runs_as_printed_and_its_reward_model_learns(capsys, weights_equal):
    torch.manual_seed(0)
    lesson = {}
    exec(RLHF_LESSON, lesson)
    assert lesson["rm_losses"][-1] < lesson["rm_losses"][0] - 0.05 and lesson["rm_accs"][-1] > 0.5
    assert len(lesson["rewards"]) == len(lesson["kls"]) == 20
    assert abs(lesson["kls"][0]) < 1e-5 and lesson["kls"][-1] > 1e-5
    assert all(map(math.isfinite, lesson["rewards"] + lesson["kls"]))
    assert "Final KL divergence:" in capsys.readouterr().out
    assert weights_equal(lesson["reference"], lesson["sft"])

"""What the tests share: small models, easy rows, one little world, and a way to stop a run in its middle."""

import random

import pytest
import torch

from data.world import World, WorldConfig
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.training import TrainingRun
from reward.model import RewardModel
from sft.train import sft_train

SMALL = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 64, "ff_dim": 64}

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small():
    return dict(SMALL)


def _spread(model, spread):
    """Enlarge the matrices: GPT-2's small start is near uniform, and near-uniform models hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
    return model.eval()


def _maker(kind):
    def make(seed=0, spread=8.0, **settings):
        torch.manual_seed(seed)
        return _spread(kind(**{**SMALL, **settings}), spread)
    return make


@pytest.fixture(scope="session")
def make_model():
    return _maker(MiniGPT)


@pytest.fixture(scope="session")
def make_reward():
    return _maker(RewardModel)


@pytest.fixture(scope="session")
def copy_of():
    def copy(model):
        return copy_model_weights(model, type(model)(**model.settings)).eval()
    return copy


@pytest.fixture(scope="session")
def weights_equal():
    def equal(model, other):
        theirs = other if isinstance(other, dict) else other.state_dict()
        return all(torch.equal(ours, theirs[name]) for name, ours in model.state_dict().items())
    return equal


@pytest.fixture(scope="session")
def weights_of():
    def weights(model):
        return {name: weight.clone() for name, weight in model.state_dict().items()}
    return weights


@pytest.fixture(scope="session")
def texts():
    """Ragged (prompt, response) pairs, some of them not ASCII."""
    rng = random.Random(0)
    letters = "abcdefgh ijklm.?é日🙂"
    return [("".join(rng.choices(letters, k=rng.randint(0, 9))), "".join(rng.choices(letters, k=rng.randint(1, 9))))
            for _ in range(23)]


POLITE = ("thanks", "please", "kindly", "glad to", "welcome")
RUDE = ("idiot", "shut up", "stupid", "go away", "dumb")


@pytest.fixture(scope="session")
def make_pairs():
    """Easy preferences: the polite answer is chosen."""
    def make(count, seed=0):
        rng = random.Random(seed)
        return [{"prompt": f"{rng.choice('abcdefgh')}{number}?", "chosen": f"{number} {rng.choice(POLITE)}",
                 "rejected": f"{number} {rng.choice(RUDE)}"} for number in rng.sample(range(1000), count)]
    return make


RECITED = [{"prompt": f"{name}?", "response": text} for name, text in zip(
    "abcdefghijkl", ("no", "yes", "a rose", "tea and milk", "x", "seven", "rain falls on the roof", "ok", "blue sky",
                     "one two three", "é", "never again"), strict=True)]


@pytest.fixture(scope="session")
def recited():
    return [dict(row) for row in RECITED]


@pytest.fixture(scope="session")
def reciter():
    """A small model that has learned RECITED by heart, so its answers end, at different lengths.  Do not train it."""
    torch.manual_seed(0)
    model = MiniGPT(**SMALL)
    sft_train(model, RECITED, num_epochs=250, lr=5e-3, batch_size=12)
    return model


@pytest.fixture(scope="session")
def world():
    return World(WorldConfig(), seed=0)


class StoppedError(Exception):
    """Someone pulled the plug."""


@pytest.fixture
def stop_after(monkeypatch):
    """Within the block, every training run stops in the middle, right after it has logged this many steps."""
    def stop(steps):
        log = TrainingRun.log

        def log_then_stop(self, metrics):
            log(self, metrics)
            if self.step == steps:
                raise StoppedError
        context = monkeypatch.context()
        patch = context.__enter__()
        patch.setattr(TrainingRun, "log", log_then_stop)
        return StoppedError, lambda: context.__exit__(None, None, None)
    return stop


@pytest.fixture
def check_resume(stop_after, tmp_path, weights_equal):
    """train(out, resume) -> model: stopped and resumed it must repeat the unbroken run bit for bit."""
    def check(train, stop=5):  # with save_every=2 the last checkpoint is that of step 4
        unbroken = train(str(tmp_path / "unbroken"), False)
        stopped, undo = stop_after(stop)
        with pytest.raises(stopped):
            train(str(tmp_path / "broken"), False)
        undo()
        lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == stop  # the log is ahead of the checkpoint: the harder case
        resumed = train(str(tmp_path / "broken"), True)
        assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == \
            (tmp_path / "unbroken" / "metrics.jsonl").read_bytes()
        assert weights_equal(unbroken, resumed)
    return check

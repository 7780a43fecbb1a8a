"""What the tests share: small models, easy rows, one little world, a way to stop a run halfway."""

import copy
import os
import random
import signal
from contextlib import ExitStack
from html.parser import HTMLParser

import pytest
import torch

from data.world import World, WorldConfig
from minigpt.log import MetricLog
from minigpt.model import MiniGPT
from reward.model import RewardModel
from sft.train import sft_train

SMALL = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 64, "ff_dim": 64}

# Not tests, and some need packages that only a benchmark needs.
collect_ignore_glob = ["benchmarks/[!t_]*.py", "mutations.py", "minigpt/small_run.py"]

os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start: they share two cores
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that no core waits for one at the end."""
    longest = ["test_compare.py", "test_seeds.py", "test_distributed.py"]
    items.sort(key=lambda item: (*longest, item.path.name).index(item.path.name))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def default_signals():
    """Signals do what they do in a terminal, in the tests and in the processes that they start.

    A background shell starts its commands with Ctrl-C ignored, and so pytest, and so its children.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def small():
    return dict(SMALL)


def _spread(model, spread):
    """Enlarge the matrices: GPT-2's small start is near uniform, and that hides mistakes."""
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
    def copied(model):
        return copy.deepcopy(model).eval()
    return copied


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

    def text(shortest):
        return "".join(rng.choices(letters, k=rng.randint(shortest, 9)))
    return [(text(0), text(1)) for _ in range(23)]


POLITE = ("thanks", "please", "kindly", "glad to", "welcome")
RUDE = ("idiot", "shut up", "stupid", "go away", "dumb")


@pytest.fixture(scope="session")
def make_pairs():
    """Easy preferences: the polite answer is chosen."""
    def make(count, seed=0):
        rng = random.Random(seed)
        return [{"prompt": f"{rng.choice('abcdefgh')}{number}?",
                 "chosen": f"{number} {rng.choice(POLITE)}",
                 "rejected": f"{number} {rng.choice(RUDE)}"}
                for number in rng.sample(range(1000), count)]
    return make


ANSWERS = ("no", "yes", "a rose", "tea and milk", "x", "seven", "rain falls on the roof", "ok",
           "blue sky", "one two three", "é", "never again")
RECITED = [{"prompt": f"{name}?", "response": text}
           for name, text in zip("abcdefghijkl", ANSWERS, strict=True)]


@pytest.fixture(scope="session")
def recited():
    return [dict(row) for row in RECITED]


@pytest.fixture(scope="session")
def reciter():
    """A small model that has learned RECITED by heart, so its answers end, at different lengths.

    Do not train it.
    """
    torch.manual_seed(0)
    model = MiniGPT(**SMALL)
    sft_train(model, RECITED, num_epochs=250, lr=5e-3, batch_size=12)
    return model


@pytest.fixture(scope="session")
def world():
    return World(WorldConfig(), seed=0)


class Cells(HTMLParser):
    """The cells of all tables of a page, by row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.rows[-1][-1] += text


@pytest.fixture(scope="session")
def rows_of():
    """rows_of(page) -> the rows of all its tables, as a browser shows them."""
    return lambda page: Cells(page).rows


class StoppedError(Exception):
    """Someone pulled the plug."""


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(steps) -> (error, undo): until undone, a run ends once it has logged that step."""
    def stop(steps):
        write = MetricLog.write

        def write_then_stop(self, metrics):
            write(self, metrics)
            if self.last("global_step") == steps:
                raise StoppedError
        patch = contexts.enter_context(monkeypatch.context())
        patch.setattr(MetricLog, "write", write_then_stop)
        return StoppedError, contexts.close
    with ExitStack() as contexts:  # ends with the test, also where that fails
        yield stop


@pytest.fixture
def check_resume(stop_after, tmp_path, weights_equal):
    """train(out, resume) -> model: stopped and resumed, it must repeat the unbroken run exactly."""
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

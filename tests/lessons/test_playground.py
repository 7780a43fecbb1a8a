"""The playground's JavaScript computes what the library computes, under node and in a browser."""

import copy
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from data.world import World, WorldConfig
from dpo.loss import dpo_loss
from lessons import limit
from lessons.course import LESSONS
from lessons.limit import Frontier
from lessons.playground import READER, exported_model
from lessons.start import LONGEST_ANSWER, MODELS, WORLD
from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.errors import UserError
from minigpt.examples import tokenize_prompt
from minigpt.logprobs import sequence_logps
from minigpt.sampling import generate
from minigpt.tokenizer import EOS
from reward.evaluate import score

NODE = shutil.which("node")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") \
    or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node to run the JavaScript with")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


def in_node(function: str, **data):
    """What a JavaScript function of this data returns; it sees what minigpt.js exports."""
    script = (f"Object.assign(globalThis, require({json.dumps(str(READER / 'minigpt.js'))}));"
              f"const data = JSON.parse(require('fs').readFileSync(0)), run = {function};"
              "console.log(JSON.stringify(run(data)));")
    ran = subprocess.run([NODE, "-e", script], input=json.dumps(data), text=True,
                         capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def uniforms(seed: int):
    """The page's random numbers, written a second time."""
    for counter in range(seed + 0x9E3779B9, 2**62, 0x9E3779B9):
        z = counter % 2**32
        z = (z ^ z >> 16) * 0x85EBCA6B % 2**32
        z = (z ^ z >> 13) * 0xC2B2AE35 % 2**32
        yield (z ^ z >> 16) / 2**32


@pytest.fixture
def sample(monkeypatch):
    """sample(model, prompt, seed, ...): the library's own `generate`, fed the page's numbers.

    In float64, as in JavaScript, so that no rounding moves an edge of the cumulative distribution.
    """
    def sampled(model, prompt, seed, temperature=1.0, max_new_tokens=24):
        stream = uniforms(seed)
        monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.tensor([[next(stream)]],
                                                                          dtype=torch.float64))
        answer, = generate(copy.deepcopy(model).double(), [prompt], max_new_tokens, temperature)
        return answer.ids
    return sampled


@pytest.fixture(scope="module")
def random_model(tmp_path_factory, make_model) -> Path:
    """A checkpoint of a small model that was never trained."""
    path = tmp_path_factory.mktemp("models") / "random.pt"
    save_checkpoint(make_model(seed=1).half(), path)
    return path


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """A hundred: those of the world, an empty one, and nonsense."""
    world, rng = World(WorldConfig(**WORLD)), random.Random(0)
    asked = world.prompts + world.heldout_prompts
    return ["", *asked, *("".join(rng.choices("abc xyz.?é日🙂", k=rng.randint(1, 12)))
                          for _ in range(99 - len(asked)))]


@needs_node
@pytest.mark.parametrize("name", ["shipped", "random"])
def test_logits_and_sampled_bytes_are_those_of_the_library(name, random_model, prompts, sample):
    path = {"shipped": MODELS / "sft.pt", "random": random_model}[name]
    temperatures = [(0.5, 1.0, 1.7)[i % 3] for i in range(len(prompts))]
    found = in_node("""({ exported, prompts, temperatures }) => {
        const model = loadModel(exported);
        return prompts.map((prompt, seed) => {
          const state = read(model, tokenizePrompt(prompt, model.settings.max_seq_len));
          const ids = generate(model, state, seed, temperatures[seed], 24);
          return { logits: [...logits(model, state)], ids };
        }); }""", exported=exported_model(path), prompts=prompts, temperatures=temperatures)
    model = load_checkpoint(path)
    assert len(prompts) == len(found) == 100
    for seed, (prompt, temperature, page) in enumerate(zip(prompts, temperatures, found,
                                                           strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([tokenize_prompt(prompt, model.max_seq_len)]))[0, -1]
        assert torch.tensor(page["logits"]).sub(logits).abs().max() < 1e-3
        assert page["ids"] == sample(model, prompt, seed, temperature)


@needs_node
def test_a_response_may_fill_the_model_to_its_last_position(random_model, sample, tmp_path,
                                                            make_reward):
    prompt = "x" * 60
    save_checkpoint(make_reward(), tmp_path / "reward.pt")
    found = in_node("""({ exported, reward, prompt }) => {
        const model = loadModel(exported), judge = loadModel(reward);
        const ids = tokenizePrompt(prompt, 64);
        const response = generate(model, read(model, ids), 0, 1, 24);
        return { response, scores: scoresIfEnded(judge, read(judge, ids), response) };
    }""", exported=exported_model(random_model), reward=exported_model(tmp_path / "reward.pt"),
        prompt=prompt)
    assert found["response"] == sample(load_checkpoint(random_model), prompt, 0)
    assert len(found["response"]) == 3 and found["scores"][-1] is None


@needs_node
def test_a_prompt_without_room_for_a_response_is_refused():
    assert in_node("""() => ["x".repeat(62), "x".repeat(63)].map(prompt => {
        try { return tokenizePrompt(prompt, 64).length; }
        catch (error) { return error.name; } })""") == [63, "RangeError"]


@needs_node
def test_log_probs_and_scores_are_those_of_the_library():
    prompt, text = "Capital of Norway?", "é no."
    ids = [*text.encode(), EOS]
    found = in_node("""data => {
        const [policy, reward] = [data.policy, data.reward].map(loadModel);
        const state = model => read(model, tokenizePrompt(data.prompt, 128));
        return { logp: responseLogp(policy, state(policy), data.ids),
                 score: score(reward, state(reward), data.ids),
                 ended: scoresIfEnded(reward, state(reward), data.ids) }; }""",
        policy=exported_model(MODELS / "dpo.pt"), reward=exported_model(MODELS / "reward.pt"),
        prompt=prompt, ids=ids)
    policy, reward = load_checkpoint(MODELS / "dpo.pt"), load_checkpoint(MODELS / "reward.pt")
    ended = [[*ids[:length], EOS] for length in range(1, len(ids))] + [ids]
    assert found["logp"] == pytest.approx(sequence_logps(policy, [prompt], [text]).item(), abs=1e-3)
    assert found["score"] == pytest.approx(score(reward, [prompt], [text]).item(), abs=1e-3)
    assert found["ended"] == pytest.approx(score(reward, [prompt] * len(ended), ended).tolist(),
                                           abs=1e-3)


@needs_node
@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_the_tilted_samples_and_the_loss_are_those_of_the_library(beta, monkeypatch):
    scores, logps = [0.3, -2.0, 5.5, 5.5, 1.0], [-3.0, -7.5, -4.0, -6.0]
    found = in_node("""({ scores, logps, beta }) =>
        ({ ...tilted(scores, beta), ...dpoLoss(...logps, beta) })""",
        scores=scores, logps=logps, beta=beta)
    monkeypatch.setattr(limit, "BETAS", torch.tensor([beta], dtype=torch.float64))
    frontier = Frontier(torch.tensor([scores]))
    assert found["kl"] == pytest.approx(frontier.kls.item())
    assert found["reward"] == pytest.approx(frontier.rewards.item())
    assert found["effective"] == pytest.approx(1 / sum(w * w for w in found["weights"]))
    arguments = [torch.tensor([logp], dtype=torch.float64, requires_grad=True) for logp in logps]
    loss, metrics = dpo_loss(*arguments, beta=beta)
    gradient, = torch.autograd.grad(loss, arguments[0])
    assert found["loss"] == pytest.approx(loss.item())
    assert found["margin"] == pytest.approx(metrics["rewards/margins"].item())
    assert found["weight"] == pytest.approx(-gradient.item() / beta)


def test_what_the_page_cannot_run_is_refused(tmp_path, make_model, make_reward):
    save_checkpoint(make_reward(pooling="mean"), tmp_path / "mean.pt")
    with pytest.raises(UserError, match="pooling='last'"):
        exported_model(tmp_path / "mean.pt")
    save_checkpoint(make_model(spread=1e7), tmp_path / "large.pt")
    with pytest.raises(UserError, match="too large for half precision"):
        exported_model(tmp_path / "large.pt")


# --- in a browser ---------------------------------------------------------------------------------

# What a reader does: draw the pool, choose SFT's first byte by a click, its second by a key.
BY_HAND = """<script type="module">
document.getElementById("draw").click();
document.querySelector("[data-model=sft] [data-at='0']").click();
document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
</script>"""


# What a phone must not meet: a page that is wider than its window, a control without a name.
ON_A_PHONE = """<script type="module">
const named = control => control.labels?.length || control.ariaLabel || control.innerText?.trim()
  || control.querySelector("img[alt]:not([alt=''])");
const faults = [];
document.body.style.width = "390px";  // a window of Chromium has at least 500
for (const article of articles) {
  articles.forEach(each => each.classList.toggle("open", each === article));
  if (document.body.scrollWidth > 390) faults.push(`${article.id} is too wide`);
  for (const control of article.querySelectorAll("a:not(.here), button, input, select, summary"))
    if (control.checkVisibility() && !named(control)) faults.push(control.outerHTML);
}
document.title = `faults: ${faults}.`;
</script>"""


def in_browser(script: str, tmp_path: Path, place: str, *options: str) -> str:
    """The page with this script, as it stands in a browser after it ran.  It must log nothing."""
    site = (LESSONS / "site" / "index.html").read_text(encoding="utf-8")
    path = tmp_path / "index.html"
    path.write_text(site.replace("</body>", script + "</body>"), encoding="utf-8")
    ran = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *options,
         "--virtual-time-budget=20000", "--dump-dom", path.as_uri() + place],
        text=True, capture_output=True, check=True, timeout=120)
    assert ":CONSOLE" not in ran.stderr  # what a page logs, errors among it
    return ran.stdout


@needs_browser
def test_on_a_phone_no_page_is_too_wide_and_every_control_has_a_name(tmp_path):
    page = in_browser(ON_A_PHONE, tmp_path, "#playground", "--window-size=500,844")
    assert re.search("<title>(.*?)</title>", page, re.DOTALL)[1] == "faults: ."


@needs_browser
def test_the_page_answers_in_a_browser_as_the_library_does(tmp_path, sample):
    page = in_browser(BY_HAND, tmp_path,
                      "#playground?prompt=Opposite+of+cold%3F&seed=5&temperature=1.3")
    answers = {part[:3]: [int(byte) for byte in re.findall(r'data-byte="(\d+)"', part)]
               for part in page.split('data-model="')[1:]}
    assert answers == {name: sample(load_checkpoint(MODELS / f"{name}.pt"), "Opposite of cold?", 5,
                                    1.3, LONGEST_ANSWER) for name in ("sft", "dpo", "ppo")}
    pressed = re.findall(r'<button[^>]*data-at="(\d+)"[^>]*aria-pressed="true"', page)
    assert pressed == ["1"]
    text = {name: re.search(rf'<p id="{name}-text"[^>]*>(.*?)</p>', page)[1]
            for name in ("tilt", "pair")}
    assert "effective number of samples" in text["tilt"]
    assert "wrong order" in text["pair"]

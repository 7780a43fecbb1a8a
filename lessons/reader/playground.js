// What the playground shows; the arithmetic is in minigpt.js.
const shipped = JSON.parse(document.getElementById("models").textContent);
const models = mapValues(shipped.models, loadModel);  // { sft, dpo, ppo, reward }
const POLICIES = { sft: "SFT", dpo: "DPO", ppo: "PPO" };
const SAMPLES = 64, BEST = 12;  // answers drawn, and how many of them, the best, are shown one by one
const COLOURS = {  // for each value of a byte: where the colour is strongest, its legend, and what it means
  ratio: { range: 2, low: "likelier under SFT, −2", high: "+2 nats, likelier under this model",
           text: "log π/ref: how much likelier than under SFT this model makes the byte. " +
                 "Its sum over the answer, times β, is DPO's implicit reward." },
  reward: { range: 6, low: "−6", high: "+6",
            text: "What the reward model would give if the answer ended after this byte; " +
                  "0 is the mean of SFT's own answers, over all prompts." },
  entropy: { range: 3, low: "0", high: "3 nats",
             text: "How unsure the model was before this byte. At 0 it knew; at 5.5 all 256 bytes would be " +
                   "equally likely." } };

const form = document.getElementById("play"), fields = form.elements;
const part = id => document.getElementById(id);
const valueOf = slider => "log" in slider.dataset ? 10 ** slider.value : Number(slider.value);

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value, name)]));
}

// --- words and elements ---

const textOf = ids => new TextDecoder().decode(Uint8Array.from(ids.filter(id => id < 0xF8)));  // no special tokens
const spoken = id => id === EOS ? "end" : id === 32 ? "space" : byteName(id);
const percent = p => (100 * p).toFixed(p < 0.0995 ? 1 : 0) + " %";

function byteName(id) {
  if (id === EOS) return "□";
  if (id === 32) return "␣";
  return id > 32 && id < 127 ? String.fromCharCode(id) : "x" + id.toString(16).toUpperCase().padStart(2, "0");
}

function signed(value, digits = 2) {
  if (value === null) return "–";
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "−" : "+") + text;
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const line = (contents, cell = "td") => make("tr", {}, ...contents.map(content => make(content === "" ? "td" : cell, {}, content)));
const table = (id, head, rows) => part(id).replaceChildren(line(head, "th"), ...rows);
const bar = (share, ...words) => make("span", { class: "bar", style: `--share: ${100 * share}%` }, ...words);

// Orange below 0, blue above; the stronger, the further.
function shade(value) {
  const strength = Math.round(100 * Math.min(1, Math.abs(value)));
  return `background: rgb(var(--${value < 0 ? "orange" : "blue"}) / ${strength}%)`;
}

// --- the answers, byte by byte ---

let prompts = {};   // model -> its state after the prompt
let answers = {};   // policy -> { ids, logProbs: policy -> (T, V), score, and for each byte ratio, reward, entropy }
let chosen = {};    // the byte looked at: { name, at }

// Raises RangeError if the prompt is too long.
function readPrompt() {
  const ids = tokenizePrompt(fields.prompt.value, models.sft.settings.max_seq_len);
  prompts = mapValues(models, model => read(model, ids));
  answers = mapValues(POLICIES, (_, name) => answerOf(name));
  const moved = answers.dpo.ratio.map(Math.abs);
  chosen = { name: "dpo", at: moved.indexOf(Math.max(...moved)) };  // where DPO differs most from SFT
}

function answerOf(name) {
  const ids = generate(models[name], prompts[name], Number(fields.seed.value), valueOf(fields.temperature),
                       shipped.longest_answer);
  const logProbs = mapValues(POLICIES, (_, policy) => responseLogProbs(models[policy], prompts[policy], ids));
  return { ids, logProbs, score: score(models.reward, prompts.reward, ids),
           ratio: ids.map((id, t) => logProbs[name][t][id] - logProbs.sft[t][id]),
           reward: scoresIfEnded(models.reward, prompts.reward, ids),
           entropy: logProbs[name].map(entropy) };
}

function showAnswers() {
  const colour = fields.colour.value, { range, low, high, text } = COLOURS[colour];
  form.dataset.colour = colour;
  part("low").textContent = low;
  part("high").textContent = high;
  part("colour-text").textContent = text;
  part("answers").replaceChildren(...Object.entries(answers).map(([name, answer]) => {
    const bytes = answer.ids.map((id, t) => make("button", {
      type: "button", class: "byte", "data-byte": id, "data-at": t, style: shade(answer[colour][t] / range),
      "aria-label": `${spoken(id)} ${signed(answer[colour][t])}`, title: signed(answer[colour][t]) }, byteName(id)));
    return make("div", { class: "answer", "data-model": name },
      make("h3", {}, POLICIES[name]),
      make("div", { role: "toolbar", "aria-label": `${POLICIES[name]}: ${textOf(answer.ids)}` }, ...bytes),
      make("p", {}, `score ${signed(answer.score)}`,
           name === "sft" ? "" : `, log π/ref ${signed(total(answer.ratio), 1)}`,
           answer.ids.at(-1) === EOS ? "" : ", did not end"));
  }));
  showByte();
}

const buttonAt = ({ name, at }) => document.querySelector(`[data-model=${name}] [data-at="${at}"]`);

function choose(name, at) {
  chosen = { name, at: Math.max(0, Math.min(answers[name].ids.length - 1, at)) };
  showByte();
}

function showByte() {
  const { name, at } = chosen, { ids, logProbs, ratio, reward, entropy } = answers[name];
  for (const button of document.querySelectorAll(".byte")) {  // Tab stops once in each answer; the arrows do the rest
    const here = button.closest(".answer").dataset.model === name;
    button.tabIndex = button.dataset.at === String(here ? at : 0) ? 0 : -1;
    button.setAttribute("aria-pressed", here && button.dataset.at === String(at));
  }
  const before = at ? `After “${textOf(ids.slice(0, at))}”` : "At the start";
  part("byte-text").textContent =
    `${before} ${POLICIES[name]} wrote “${spoken(ids[at])}”: log π/ref ${signed(ratio[at])}; reward if it ended ` +
    `here ${signed(reward[at])}; entropy ${entropy[at].toFixed(2)} nats.`;

  const p = (policy, id) => Math.exp(logProbs[policy][at][id]);
  const likeliest = id => Math.max(...Object.keys(POLICIES).map(policy => p(policy, id)));
  const candidates = [...Array(256).keys()].sort((a, b) => likeliest(b) - likeliest(a)).slice(0, 8);
  table("expected", ["byte", ...Object.values(POLICIES)], candidates.map(id => {
    const bars = Object.keys(POLICIES).map(policy => {
      const logRatio = signed(logProbs[policy][at][id] - logProbs.sft[at][id]);
      return bar(p(policy, id), percent(p(policy, id)), policy === "sft" ? "" : make("small", {}, logRatio));
    });
    const row = line([byteName(id), ...bars]);
    row.classList.toggle("taken", id === ids[at]);
    return row;
  }));
  table("numbers", ["byte", "log π", "log π/ref", "sum", "reward if it ended here", "entropy"], ids.map((id, t) =>
    line([byteName(id), signed(logProbs[name][t][id]), signed(ratio[t]), signed(total(ratio.slice(0, t + 1))),
          signed(reward[t]), entropy[t].toFixed(2)])));
}

// --- 64 samples, tilted ---

let pool = [];    // [{ text, score }]
let drawing = 0;  // the number of the latest drawing; an older one stops

async function drawPool() {
  forgetPool();
  const mine = drawing, drawn = [], scores = {};
  part("drawn").hidden = false;
  for (let i = 0; i < SAMPLES; i++) {
    const ids = generate(models.sft, prompts.sft, Number(fields.seed.value) + i, 1, shipped.longest_answer);
    drawn.push({ text: textOf(ids), score: scores[ids] ??= score(models.reward, prompts.reward, ids) });
    part("drawn").value = i + 1;
    await new Promise(done => setTimeout(done));  // let the page breathe
    if (mine !== drawing) return;
  }
  part("drawn").hidden = true;
  pool = drawn;
  showPool();
}

function forgetPool() {
  drawing++;
  pool = [];
  part("drawn").hidden = true;
  part("tilt-text").textContent = "";
  part("pool").replaceChildren();
}

function showPool() {
  if (!pool.length) return;
  const beta = valueOf(fields.tilt), scores = pool.map(({ score }) => score);
  const { weights, reward, kl, effective } = tilted(scores, beta);
  part("tilt-text").textContent =
    `β = ${beta.toPrecision(2)}: mean score ${signed(reward)} (SFT: ${signed(total(scores) / SAMPLES)}), ` +
    `KL Σ w log(${SAMPLES} w) = ${kl.toFixed(2)} nats (at most log ${SAMPLES} = ${Math.log(SAMPLES).toFixed(2)}), ` +
    `effective number of samples 1 / Σ w² = ${effective.toFixed(1)}.`;
  const rows = {};  // the same answer, drawn several times, is one row
  pool.forEach(({ text, score }, i) => {
    rows[text] ??= { text, score, count: 0, weight: 0 };
    rows[text].count++;
    rows[text].weight += weights[i];
  });
  const best = Object.values(rows).sort((a, b) => b.score - a.score), others = best.splice(BEST);
  if (others.length)
    best.push({ text: `(${others.length} other answers)`, score: null, count: total(others.map(row => row.count)),
                weight: total(others.map(row => row.weight)) });
  table("pool", ["answer", "drawn", "score", "weight"], best.map(({ text, score, count, weight }) =>
    line([text, `${count} ×`, signed(score), bar(weight, percent(weight))])));
}

// --- one pair ---

function showPair() {
  const beta = valueOf(fields.beta), room = models.sft.settings.max_seq_len - prompts.sft.length;
  const pair = [fields.chosen, fields.rejected].map(field => [...new TextEncoder().encode(field.value), EOS]);
  if (pair.some(ids => ids.length > room)) {
    part("pair").replaceChildren();
    part("pair-text").textContent = `An answer to this prompt may have ${room - 1} bytes. Shorten yours.`;
    return;
  }
  const logps = pair.map(ids => ["dpo", "sft"].map(name => responseLogp(models[name], prompts[name], ids)));
  const [[policyChosen, refChosen], [policyRejected, refRejected]] = logps;
  const { D, margin, loss, weight } = dpoLoss(policyChosen, policyRejected, refChosen, refRejected, beta);
  table("pair", ["", "log π", "log ref", "log π/ref", "β log π/ref"], logps.map(([policy, ref], i) =>
    line([["chosen", "rejected"][i], ...[policy, ref, policy - ref, beta * (policy - ref)].map(x => signed(x))])));
  part("pair-text").textContent =
    `D = ${signed(D)} nats, so the margin βD is ${signed(margin)} and the loss −log σ(βD) is ${loss.toFixed(4)} ` +
    "(log 2 = 0.6931 at policy = reference). The gradient raises log π of the chosen answer and lowers that of the " +
    `rejected one with the weight σ(−βD) = ${weight.toFixed(4)}: the probability that the policy still gives to ` +
    "the wrong order.";
}

// --- what happens when ---

// Everything anew, for the prompt, seed and temperature in the fields.
function answerAnew() {
  showSettings();
  try {
    readPrompt();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    part("said").textContent = error.message;
    part("results").hidden = true;
    return;
  }
  part("said").textContent =
    Object.keys(POLICIES).map(name => `${POLICIES[name]}: ${textOf(answers[name].ids)}`).join("  ");
  part("results").hidden = false;
  showAnswers();
  forgetPool();
  showPair();
}

function showSettings() {
  for (const slider of form.querySelectorAll("input[type=range]")) {
    const text = valueOf(slider).toPrecision(2);
    slider.nextElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  part("state").href = "#playground?" + new URLSearchParams(new FormData(form));
}

function takeQuestion(option) {
  fields.prompt.value = option.text;
  fields.chosen.value = option.dataset.chosen;
  fields.rejected.value = option.dataset.rejected;
}

// When the playground is opened, with the fields that the link names: #playground?prompt=Capital of Japan%3F&seed=3
function open() {
  const [place, state] = location.hash.slice(1).split(/\?(.*)/s);
  if (place !== "playground") return;
  const named = new URLSearchParams(state);
  const question = [...part("question").options].find(option => option.text === named.get("prompt"));
  if (question) takeQuestion(question);
  for (const [name, value] of named) if (fields[name]) fields[name].value = value;
  answerAnew();
}

form.addEventListener("submit", event => { event.preventDefault(); answerAnew(); });
form.addEventListener("input", ({ target }) => {
  showSettings();
  if (target.name === "colour") showAnswers();
  if (target.name === "tilt") showPool();
  if (["beta", "chosen", "rejected"].includes(target.name)) showPair();
});
form.addEventListener("change", ({ target }) => {
  if (target.id === "question" && target.value) takeQuestion(target.selectedOptions[0]);
  if (target.id === "question" || ["prompt", "seed", "temperature"].includes(target.name)) answerAnew();
});
part("next-seed").addEventListener("click", () => { fields.seed.stepUp(); answerAnew(); });
part("draw").addEventListener("click", drawPool);
part("swap").addEventListener("click", () => {
  [fields.chosen.value, fields.rejected.value] = [fields.rejected.value, fields.chosen.value];
  showSettings();
  showPair();
});
part("earlier").addEventListener("click", () => choose(chosen.name, chosen.at - 1));
part("later").addEventListener("click", () => choose(chosen.name, chosen.at + 1));
part("answers").addEventListener("click", ({ target }) => {
  if (!target.dataset.at) return;
  choose(target.closest(".answer").dataset.model, Number(target.dataset.at));
  target.focus();  // which Safari does not do by itself
});
part("answers").addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!step || !event.target.dataset.at) return;
  event.preventDefault();
  choose(event.target.closest(".answer").dataset.model, Number(event.target.dataset.at) + step);
  buttonAt(chosen).focus();
});
addEventListener("hashchange", open);
takeQuestion(part("question").querySelector("optgroup option"));
open();

// The plots with sliders in lessons 5 (loss.html) and 7 (frontier.html), drawn as SVG.
const SVG = "http://www.w3.org/2000/svg";
const BLUE = "#0072B2", RED = "#D55E00", GREEN = "#009E73", INK = "#333333", GREY = "#bbbbbb";

function draw(svg, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  svg.append(element);
  return element;
}

// Axes with a few ticks; returns the two functions from data to the screen.
function axes(svg, xs, ys, xlabel, ylabel) {
  svg.replaceChildren();
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const left = 52, right = width - 14, top = 12, bottom = height - 44;
  const x = value => left + (value - xs[0]) / (xs.at(-1) - xs[0]) * (right - left);
  const y = value => bottom - (value - ys[0]) / (ys.at(-1) - ys[0]) * (bottom - top);
  for (const tick of xs) {
    draw(svg, "line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, stroke: "#eeeeee" });
    draw(svg, "text", { x: x(tick), y: bottom + 16, "text-anchor": "middle", "font-size": 12, fill: INK }, tick);
  }
  for (const tick of ys) {
    draw(svg, "line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "#eeeeee" });
    draw(svg, "text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end", "font-size": 12, fill: INK }, tick);
  }
  draw(svg, "text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle", "font-size": 13, fill: INK }, xlabel);
  draw(svg, "text", { x: 14, y: (top + bottom) / 2, "text-anchor": "middle", "font-size": 13, fill: INK,
                      transform: `rotate(-90 14 ${(top + bottom) / 2})` }, ylabel);
  return [x, y];
}

const line = (svg, points, colour, more = {}) =>
  draw(svg, "polyline", { points: points.map(point => point.join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 2.2, ...more });
const control = id => document.getElementById(id);
const say = (id, text) => { control(id).textContent = text; };

// Beside the slider, and for a screen reader: what its position stands for.
function sayValue(id, text) {
  say(id + "-out", text);
  control(id).setAttribute("aria-valuetext", text);
}

const softplus = z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));  // -log sigmoid(-z), without overflow

function showLoss() {
  const beta = 10 ** control("beta").value, margin = Number(control("margin").value);
  const loss = m => softplus(-beta * m), weight = 1 / (1 + Math.exp(beta * margin));
  const svg = control("loss-plot");
  const [x, y] = axes(svg, [-20, -10, 0, 10, 20], [0, 1, 2, 3, 4], "margin (nats)", "loss (nats)");
  const grid = Array.from({ length: 401 }, (_, i) => -20 + i / 10).filter(m => loss(m) <= 4);
  line(svg, [[x(-20), y(Math.LN2)], [x(20), y(Math.LN2)]], GREY, { "stroke-dasharray": "4 4", "stroke-width": 1 });
  draw(svg, "text", { x: x(20), y: y(Math.LN2) - 5, "text-anchor": "end", "font-size": 12, fill: INK }, "log 2: policy = reference");
  line(svg, grid.map(m => [x(m), y(loss(m))]), BLUE);
  if (loss(margin) <= 4) draw(svg, "circle", { cx: x(margin), cy: y(loss(margin)), r: 6, fill: RED });
  sayValue("beta", beta.toPrecision(2));
  sayValue("margin", margin.toFixed(1));
  say("loss-text", `Loss ${loss(margin).toFixed(4)}. This pair still pulls with ${(100 * weight).toFixed(1)} % of its full force ` +
    `(the weight σ(−β × margin)), so each nat more would lower the loss by ${(beta * weight).toFixed(4)}. ` +
    `Annotators would prefer the chosen response with probability ${(100 * (1 - weight)).toFixed(1)} % if the margin were right.`);
}

const measured = JSON.parse(control("runs").textContent);
const METHODS = [["dpo", "DPO", BLUE], ["ppo", "PPO", RED], ["bon", "best of n", GREEN]];
const strengths = name => [...new Set(measured.runs.filter(run => run.method === name).map(run => run.strength))].sort((a, b) => a - b);
const average = values => values.reduce((sum, value) => sum + value, 0) / values.length;

function showFrontier() {
  const svg = control("frontier-plot"), limit = measured.limit, proxy = measured.proxy_optimum;
  const runs = measured.runs;
  const highest = Math.ceil(Math.max(...limit.true_reward) * 2) / 2, lowest = Math.floor(Math.min(0, ...runs.map(run => run.true_reward)));
  const furthest = Math.min(10, Math.ceil(Math.max(...runs.map(run => run.kl))));
  const ticks = (from, to, step) => Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) => from + i * step);
  const [x, y] = axes(svg, ticks(0, furthest, furthest > 5 ? 2 : 1), ticks(lowest, highest, highest - lowest > 4 ? 1 : 0.5),
                      "KL to the SFT model (nats per response)", "true reward");
  const seen = (kl, reward) => kl <= furthest && reward >= lowest;
  const curve = of => of.kl.map((kl, i) => [kl, of.true_reward[i]]).filter(point => seen(...point)).map(([kl, r]) => [x(kl), y(r)]);
  line(svg, curve(proxy), INK, { "stroke-dasharray": "6 4", "stroke-width": 1.4 });
  line(svg, curve(limit), "#000000");
  const words = [];
  for (const [id, name, colour] of METHODS) {
    const strength = strengths(name)[control(id).value];
    const ours = runs.filter(run => run.method === name);
    for (const run of ours.filter(run => seen(run.kl, run.true_reward))) {
      const chosen = run.strength === strength;
      draw(svg, "circle", { cx: x(run.kl), cy: y(run.true_reward), r: chosen ? 7 : 3, fill: colour, opacity: chosen ? 1 : 0.35 });
    }
    const at = ours.filter(run => run.strength === strength);
    words.push(`${name} at ${strength}: true reward ${average(at.map(run => run.true_reward)).toFixed(2)} at ` +
               `${average(at.map(run => run.kl)).toFixed(2)} nats`);
    sayValue(id, strength);
  }
  const at = Number(control("tilt").value);
  if (seen(limit.kl[at], limit.true_reward[at]))
    draw(svg, "rect", { x: x(limit.kl[at]) - 6, y: y(limit.true_reward[at]) - 6, width: 12, height: 12, fill: "#000000" });
  METHODS.forEach(([, name, colour], i) => {
    draw(svg, "circle", { cx: 540, cy: 30 + 20 * i, r: 5, fill: colour });
    draw(svg, "text", { x: 552, y: 34 + 20 * i, "font-size": 12, fill: INK }, name);
  });
  sayValue("tilt", limit.beta[at].toPrecision(2));
  say("frontier-text", `Closed form at β = ${limit.beta[at].toPrecision(2)}: ${limit.true_reward[at].toFixed(2)} at ` +
      `${limit.kl[at].toFixed(2)} nats. Means over seeds: ${words.join("; ")}.`);
}

control("tilt").max = measured.limit.kl.length - 1;
control("tilt").value = Math.floor(measured.limit.kl.length / 2);
for (const [id, name] of METHODS) {
  control(id).max = strengths(name).length - 1;
  control(id).value = Math.floor(strengths(name).length / 2);
}
for (const id of ["beta", "margin"]) control(id).addEventListener("input", showLoss);
for (const id of ["tilt", ...METHODS.map(([id]) => id)]) control(id).addEventListener("input", showFrontier);
showLoss();
showFrontier();

// MiniGPT in plain JavaScript, under the names of minigpt/model.py.  It reads one token at a time, so attention needs no
// mask: a token sees itself and what was read before it.  Weights were stored in half precision; all arithmetic is double.
const SEP = 0xFD, EOS = 0xFF;  // minigpt/tokenizer.py

// --- the forward pass: minigpt/model.py ---

// A state is what a model has read: each layer's keys and values, and the hidden state at the last token.
const nothingRead = model => ({ length: 0, layers: Object.values(model.blocks).map(() => ({ keys: [], values: [] })) });
const read = (model, ids, before = nothingRead(model)) =>
  ids.reduce((state, token) => readToken(model, state, token), before);

function readToken(model, state, token) {
  const { embed_dim, num_heads } = model.settings;
  let x = add(row(model.token_embedding, token, embed_dim), row(model.position_embedding, state.length, embed_dim));
  const layers = Object.values(model.blocks).map((block, layer) => {
    const qkv = linear(block.attention.qkv, layerNorm(block.attention_norm, x));
    const [q, k, v] = [0, 1, 2].map(part => row({ weight: qkv }, part, embed_dim));
    const keys = [...state.layers[layer].keys, k], values = [...state.layers[layer].values, v];
    x = add(x, linear(block.attention.out, attention(q, keys, values, num_heads)));
    x = add(x, linear(block.ff_out, linear(block.ff_in, layerNorm(block.ff_norm, x)).map(gelu)));
    return { keys, values };
  });
  return { length: state.length + 1, layers, hidden: layerNorm(model.final_norm, x) };
}

const logits = (model, state) => linear(model.token_embedding, state.hidden);   // the tied output head
const rewardAt = (model, state) => linear(model.head, state.hidden)[0];         // a reward model's head: one number

// softmax(q k^T / sqrt(K)) v, head by head.
function attention(q, keys, values, num_heads) {
  const K = q.length / num_heads, out = new Float64Array(q.length);
  for (let from = 0; from < q.length; from += K) {
    const scores = keys.map(key => dot(q, from, key, from, K) / Math.sqrt(K));
    softmax(scores).forEach((p, t) => { for (let i = from; i < from + K; i++) out[i] += p * values[t][i]; });
  }
  return out;
}

function linear({ weight, bias }, x) {  // weight (O, I), x (I,) -> (O,)
  const I = x.length;
  return new Float64Array(weight.length / I).map((_, o) => dot(weight, o * I, x, 0, I) + (bias ? bias[o] : 0));
}

function layerNorm({ weight, bias }, x) {
  const mean = total(x) / x.length, variance = total(x.map(value => (value - mean) ** 2)) / x.length;
  return x.map((value, i) => (value - mean) / Math.sqrt(variance + 1e-5) * weight[i] + bias[i]);
}

const gelu = x => x / 2 * (1 + erf(x / Math.SQRT2));

function erf(x) {  // 2 / sqrt(pi) exp(-x²) (x + 2x³/3 + 4x⁵/15 + ...): no term changes sign, so nothing cancels
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const row = ({ weight }, number, width) => weight.slice(number * width, (number + 1) * width);
const add = (x, y) => x.map((value, i) => value + y[i]);
const total = x => x.reduce((sum, value) => sum + value, 0);

function dot(x, xFrom, y, yFrom, count) {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += x[xFrom + i] * y[yFrom + i];
  return sum;
}

function softmax(scores) {
  const highest = Math.max(...scores);
  const powers = scores.map(score => Math.exp(score - highest)), sum = total(powers);
  return powers.map(power => power / sum);
}

function logSoftmax(scores) {
  const highest = Math.max(...scores);
  const logSum = highest + Math.log(total(scores.map(score => Math.exp(score - highest))));
  return scores.map(score => score - logSum);
}

// --- prompts, sampling: minigpt/examples.py, minigpt/sampling.py ---

function tokenizePrompt(prompt, max_seq_len) {
  const ids = prompt ? [...new TextEncoder().encode(prompt), SEP] : [EOS];
  if (ids.length >= max_seq_len)
    throw new RangeError(`The prompt takes ${ids.length} of ${max_seq_len} tokens. Shorten it.`);
  return ids;
}

// Numbers in [0, 1) that any language can repeat: SplitMix (Steele et al. 2014) in 32 bits, a counter sent through
// MurmurHash3's mixer.
function* uniforms(seed) {
  for (let counter = seed + 0x9E3779B9 >>> 0; ; counter = counter + 0x9E3779B9 >>> 0) {
    let z = Math.imul(counter ^ counter >>> 16, 0x85EBCA6B);
    z = Math.imul(z ^ z >>> 13, 0xC2B2AE35);
    yield ((z ^ z >>> 16) >>> 0) / 2 ** 32;
  }
}

// The inverse of the cumulative distribution at u.
function sampleToken(logits, temperature, u) {
  let sum = 0;
  const cumulative = softmax(logits.map(logit => logit / temperature)).map(p => sum += p);
  const end = sum * (1 - 2 ** -22);  // rounding must not push a number past the end
  return cumulative.findIndex(edge => edge > u * end);
}

// The response's ids, EOS included, to the prompt that this state has read.
function generate(model, state, seed, temperature, maxNewTokens) {
  const random = uniforms(seed), ids = [];
  for (;;) {
    const token = sampleToken(logits(model, state), temperature, random.next().value);
    ids.push(token);
    if (token === EOS || ids.length === maxNewTokens || state.length + 1 >= model.settings.max_seq_len) return ids;
    state = readToken(model, state, token);
  }
}

// --- what is said about a response: minigpt/logprobs.py, reward/model.py, lessons/limit.py, dpo/loss.py ---
// `state` has read the prompt; ids are the response.

// log p(next byte | what came before), (V,) for each token of the response.
function responseLogProbs(model, state, ids) {
  return ids.map(token => {
    const logProbs = logSoftmax(logits(model, state));
    state = readToken(model, state, token);
    return logProbs;
  });
}
const responseLogp = (model, state, ids) =>
  total(responseLogProbs(model, state, ids).map((logProbs, t) => logProbs[ids[t]]));
const entropy = logProbs => -total(logProbs.map(logp => Math.exp(logp) * logp));

// The reward of the whole response, read at its last token.
const score = (reward, state, ids) => rewardAt(reward, read(reward, ids, state));

// The reward after each token, if the response ended there: read at an EOS put behind it, null where there is no room.
function scoresIfEnded(reward, state, ids) {
  return ids.map(token => {
    if (token === EOS) return rewardAt(reward, readToken(reward, state, EOS));
    state = readToken(reward, state, token);
    return state.length < reward.settings.max_seq_len ? rewardAt(reward, readToken(reward, state, EOS)) : null;
  });
}

// n samples of the reference, weighted as the best policy at this beta would have them.
function tilted(scores, beta) {
  const weights = softmax(scores.map(r => r / beta)), n = scores.length;
  return { weights, reward: total(weights.map((w, i) => w * scores[i])),
           kl: total(weights.map(w => w > 0 ? w * Math.log(n * w) : 0)),
           effective: 1 / total(weights.map(w => w * w)) };
}

function dpoLoss(policyChosen, policyRejected, refChosen, refRejected, beta) {
  const D = (policyChosen - refChosen) - (policyRejected - refRejected), margin = beta * D;
  return { D, margin, loss: Math.max(-margin, 0) + Math.log1p(Math.exp(-Math.abs(margin))),  // -log sigmoid(margin)
           weight: 1 / (1 + Math.exp(margin)) };
}

// --- the weights, as lessons/playground.py wrote them ---

// -> { settings, token_embedding: { weight }, blocks: { 0: { attention: { qkv: { weight }, ... }, ... }, ... }, ... }
function loadModel({ settings, sizes, float16 }) {
  const bytes = Uint8Array.from(atob(float16), letter => letter.charCodeAt(0)), halves = new Uint16Array(bytes.buffer);
  const model = { settings };
  let from = 0;
  for (const [name, size] of Object.entries(sizes)) {
    const path = name.split("."), last = path.pop();
    const place = path.reduce((parent, part) => parent[part] ??= {}, model);
    place[last] = Float64Array.from(halves.subarray(from, from += size), fromHalf);
  }
  return model;
}

function fromHalf(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

if (typeof module !== "undefined")  // node, for the tests
  module.exports = { loadModel, read, logits, tokenizePrompt, generate, responseLogp, score, scoresIfEnded, tilted,
                     dpoLoss };

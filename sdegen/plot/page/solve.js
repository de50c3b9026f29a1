"use strict";
// The mathematics of the page: beliefs, processes, grids and solvers, one sample at a time, in double precision.
//
// A state is x = alpha x0 + sigma eps. Everything but Euler's own time depends on lambda = log(alpha/sigma) alone, so paths
// are kept on the circular path y = cos(th) (x0 - m) + s sin(th) eps with tan(th) = sigma/(alpha s), m and s the data's mean
// and standard deviation. What a process is comes from Python, as Chebyshev series of log t and log alpha over lambda.

// ---- numbers

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

function chebyshev(series, at) {
  // value and slope, by Clenshaw's recurrence
  const [low, high] = series.range;
  const c = series.coefficients;
  const u = (2 * at - low - high) / (high - low);
  let b1 = 0, b2 = 0, d1 = 0, d2 = 0;
  for (let k = c.length - 1; k > 0; k--) {
    const d = 2 * b1 + 2 * u * d1 - d2;
    const b = c[k] + 2 * u * b1 - b2;
    d2 = d1; d1 = d; b2 = b1; b1 = b;
  }
  return [c[0] + u * b1 - b2, ((b1 + u * d1 - d2) * 2) / (high - low)];
}

// ---- noise: SplitMix64 over the address (seed, sample, purpose), as sdegen.noise has it

const MASK = (1n << 64n) - 1n, GOLDEN = 0x9e3779b97f4a7c15n, FIRST = 0xbf58476d1ce4e5b9n, SECOND = 0x94d049bb133111ebn;
const mix = (z) => {
  z &= MASK;
  z = ((z ^ (z >> 30n)) * FIRST) & MASK;
  z = ((z ^ (z >> 27n)) * SECOND) & MASK;
  return z ^ (z >> 31n);
};
const signedShift = (z, n) => BigInt.asUintN(64, BigInt.asIntN(64, z) >> n);

function normals(seed, n, ...address) {
  // two standard normals for each of n samples
  let word = 0n;
  for (const part of address) word = mix(word + BigInt(part) + GOLDEN);
  const root = mix(BigInt(seed) + GOLDEN);
  const out = new Float64Array(2 * n);
  for (let i = 0; i < n; i++) {
    let z = mix(mix(BigInt(i) * GOLDEN + root) + GOLDEN) + word;
    z &= MASK;
    z ^= signedShift(z, 30n);
    z = (z * FIRST) & MASK;
    z ^= signedShift(z, 27n);
    z = (z * SECOND) & MASK;
    for (let half = 0; half < 2; half++) {
      const u = (Number(BigInt.asIntN(32, z >> BigInt(32 * half))) + 0.5) * 2 ** -31;
      out[2 * i + half] = Math.SQRT2 * inverseErf(u);
    }
  }
  return out;
}

function erf(x) {
  // 2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1)/(2n+1)!!, all terms of one sign
  let term = x, sum = x;
  for (let n = 1; n < 200 && Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function inverseErf(u) {
  // Winitzki's approximation, then Newton's method
  const l = Math.log1p(-u * u), a = 0.147, b = 2 / (Math.PI * a) + l / 2;
  let x = Math.sign(u) * Math.sqrt(Math.sqrt(b * b - l / a) - b);
  for (let k = 0; k < 6; k++) {
    const e = (erf(x) - u) / ((2 / Math.sqrt(Math.PI)) * Math.exp(-x * x));
    x -= e / (1 + x * e);
    if (Math.abs(e) < 1e-16) break;
  }
  return x;
}

// ---- symmetric 2 x 2 matrices [a, b, d], as functions of their eigenvalues

function ofMatrix([a, b, d], f) {
  const mean = (a + d) / 2, half = Math.hypot((a - d) / 2, b);
  const high = f(mean + half), low = f(mean - half);
  if (half < 1e-300) return [high, 0, high];
  const p = (high + low) / 2, q = (high - low) / (2 * half);
  return [p + (q * (a - d)) / 2, q * b, p - (q * (a - d)) / 2];
}

// ---- beliefs: (x, y, alpha, sigma) -> out = [E x0, E eps], two numbers each

class Mixture {
  constructor({ means, covariances, weights }) {
    this.means = means;
    this.covariances = covariances;
    const total = weights.reduce((a, b) => a + b, 0);
    this.weights = weights.map((w) => w / total);
    const average = (f) => means.reduce((sum, m, k) => sum + this.weights[k] * f(m, k), 0);
    this.mean = [average((m) => m[0]), average((m) => m[1])];
    const [m0, m1] = this.mean;
    this.covariance = [
      average((m, k) => covariances[k][0] + (m[0] - m0) ** 2),
      average((m, k) => covariances[k][1] + (m[0] - m0) * (m[1] - m1)),
      average((m, k) => covariances[k][2] + (m[1] - m1) ** 2),
    ];
    const [a, b, d] = this.covariance;
    this.scale = Math.sqrt((a + d) / 2);
    this.variance = Math.max((a * a + 2 * b * b + d * d) / (a + d), this.scale ** 2);
    this.exact = true;
    this.logs = new Float64Array(means.length);
  }

  logDensity(x, y, alpha, sigma) {
    return this.parts(x, y, alpha, sigma);
  }

  parts(x, y, alpha, sigma) {
    // fills logs with log(w_k N(x; alpha m_k, alpha^2 C_k + sigma^2)); returns their log-sum
    let most = -Infinity;
    const logs = this.logs, s2 = sigma * sigma, a2 = alpha * alpha;
    for (let k = 0; k < logs.length; k++) {
      const c = this.covariances[k], m = this.means[k];
      const p = a2 * c[0] + s2, q = a2 * c[1], r = a2 * c[2] + s2, det = p * r - q * q;
      const u = x - alpha * m[0], v = y - alpha * m[1];
      logs[k] = Math.log(this.weights[k]) - ((r * u * u - 2 * q * u * v + p * v * v) / det + Math.log(det)) / 2;
      if (logs[k] > most) most = logs[k];
    }
    let sum = 0;
    for (let k = 0; k < logs.length; k++) sum += Math.exp(logs[k] - most);
    return most + Math.log(sum) - Math.log(2 * Math.PI);
  }

  believe(x, y, alpha, sigma, out) {
    const total = this.parts(x, y, alpha, sigma) + Math.log(2 * Math.PI);
    const s2 = sigma * sigma, a2 = alpha * alpha;
    out[0] = out[1] = out[2] = out[3] = 0;
    for (let k = 0; k < this.logs.length; k++) {
      const share = Math.exp(this.logs[k] - total);
      if (share === 0) continue;
      const c = this.covariances[k], m = this.means[k];
      const p = a2 * c[0] + s2, q = a2 * c[1], r = a2 * c[2] + s2, det = p * r - q * q;
      const u = x - alpha * m[0], v = y - alpha * m[1];
      const w0 = (r * u - q * v) / det, w1 = (p * v - q * u) / det; // P^-1 (x - alpha m)
      out[0] += share * (m[0] + alpha * (c[0] * w0 + c[1] * w1));
      out[1] += share * (m[1] + alpha * (c[1] * w0 + c[2] * w1));
      out[2] += share * sigma * w0;
      out[3] += share * sigma * w1;
    }
  }
}

const silu = (v) => v / (1 + Math.exp(-v));

class Network {
  // sdegen's MLP with its coefficients: x0 = c_skip x + c_out net(c_in x, c_noise)
  constructor(told) {
    Object.assign(this, told);
    this.exact = false;
    this.variance = 2 * this.scale ** 2;
    this.weights = {};
    for (const [name, text] of Object.entries(told.weights)) this.weights[name] = floats(text);
    this.hidden = this.weights["inp.bias"].length;
    this.label = null;
    this.last = NaN;
  }

  linear(name, x) {
    const w = this.weights[name + ".weight"], b = this.weights[name + ".bias"], n = x.length;
    const y = new Float64Array(b.length);
    for (let i = 0, at = 0; i < y.length; i++) {
      let sum = b[i];
      for (let j = 0; j < n; j++) sum += w[at++] * x[j];
      y[i] = sum;
    }
    return y;
  }

  modulations(lambda) {
    // everything that the time decides; kept for the next sample at the same level
    if (lambda === this.last) return this.kept;
    const at = this.coefficients.map((series) => chebyshev(series, lambda)[0]);
    const t = at[4], u = this.features === "sinusoidal" ? t : Math.asinh(t);
    const phases = Array.from(this.weights["features.w"], (w) => w * u);
    const phi = [...(this.features === "sinusoidal" ? [] : [u]), ...phases.map(Math.sin), ...phases.map(Math.cos)];
    let e = this.linear("embedding.outer", this.linear("embedding.inner", phi).map(silu));
    const table = this.weights["embedding.label.table.weight"];
    if (table) {
      const row = (this.label === null ? table.length / e.length - 1 : this.label) * e.length;
      e = e.map((v, i) => v + table[row + i]);
    }
    e = e.map(silu);
    const ab = [];
    for (let k = 0; k < this.layers; k++) ab.push(this.linear(`modulations.${k}`, e));
    this.last = lambda;
    return (this.kept = { at, ab });
  }

  modulated(h, ab) {
    const n = h.length;
    for (let i = 0; i < n; i++) h[i] = ab[n + i] + h[i] * (1 + ab[i]);
    return h;
  }

  believe(x, y, alpha, sigma, out) {
    const { at, ab } = this.modulations(Math.log(alpha / sigma));
    const [own, skip, gain, inward] = [Math.exp(at[0]), at[1], at[2], at[3]];
    const ratio = own / alpha, own_sigma = (own * sigma) / alpha;
    const a = x * ratio, b = y * ratio;
    let h = this.modulated(this.linear("inp", [inward * a, inward * b]), ab[0]);
    for (let k = 0; k < this.layers - 1; k++) {
      const next = this.linear(`hidden.${k}`, this.modulated(h.slice(), ab[k + 1]).map(silu));
      for (let i = 0; i < h.length; i++) h[i] += next[i];
    }
    const net = this.linear("out", h.map(silu));
    out[0] = skip * a + gain * net[0];
    out[1] = skip * b + gain * net[1];
    out[2] = (a - own * out[0]) / own_sigma;
    out[3] = (b - own * out[1]) / own_sigma;
  }
}

// ---- processes

const levelOf = (process, lambda) => {
  const [logAlpha, slopeAlpha] = chebyshev(process.alpha, lambda), [logT, slopeT] = chebyshev(process.time, lambda);
  const alpha = Math.exp(logAlpha), sigma = alpha * Math.exp(-lambda), t = Math.exp(logT);
  // derivatives in t: dalpha/dlambda = alpha A', dsigma/dlambda = sigma (A' - 1), dt/dlambda = t T'
  return { t, alpha, sigma, dAlpha: (alpha * slopeAlpha) / (t * slopeT), dSigma: (sigma * (slopeAlpha - 1)) / (t * slopeT) };
};

// ---- grids: n + 1 levels lambda, equally spaced in a variable of the level

function gridOf(kind, from, to, n, s) {
  const angle = (lambda) => Math.atan(Math.exp(-lambda) / s) ** (1 / 1.6);
  const integral = (lambda) => Math.log1p(Math.exp(-2 * lambda));
  const kinds = {
    lambda: [(l) => l, (u) => u],
    theta: [angle, (u) => -Math.log(s * Math.tan(u ** 1.6))],
    "sqrt-time": [
      (l) => Math.sqrt((2 * integral(l)) / (0.1 + Math.sqrt(0.01 + 39.8 * integral(l)))),
      (u) => {
        const i = 0.1 * u ** 2 + 9.95 * u ** 4;
        return -(i + Math.log(-Math.expm1(-i))) / 2;
      },
    ],
    karras: [(l) => Math.exp(-l / 7), (u) => -7 * Math.log(u)],
  };
  const [toU, toLambda] = kinds[kind];
  const first = toU(from), last = toU(to);
  const levels = Array.from({ length: n + 1 }, (_, i) => toLambda(first + (i / n) * (last - first)));
  levels[0] = from;
  levels[n] = to;
  return levels;
}

// ---- solvers: each gives the states [th, y0, y1] on the circular path, the end denoised, and the evaluations

const out = new Float64Array(4);

class Problem {
  constructor(model, process, seed, n) {
    Object.assign(this, { model, process, seed, n });
    [this.from, this.to] = process.range; // lambda of noise, and of data
    this.s = model.scale;
    this.m = model.mean;
    this.thStart = Math.atan(Math.exp(-this.from) / this.s);
    this.thEnd = Math.atan(Math.exp(-this.to) / this.s);
    const z = normals(seed, n, 1);
    const c = Math.cos(this.thStart), g = this.s * Math.sin(this.thStart);
    const [a, b, d] = ofMatrix(model.covariance, (v) => Math.sqrt(c * c * v + g * g));
    this.starts = Array.from({ length: n }, (_, i) => [a * z[2 * i] + b * z[2 * i + 1], b * z[2 * i] + d * z[2 * i + 1]]);
  }

  believe(th, y0, y1) {
    // of the centred state on the circular path; out holds x0 - m and eps
    const c = Math.cos(th), g = this.s * Math.sin(th);
    this.model.believe(y0 + c * this.m[0], y1 + c * this.m[1], c, g, out);
    out[0] -= this.m[0];
    out[1] -= this.m[1];
  }

  velocity(th, y, v) {
    this.believe(th, y[0], y[1]);
    const c = this.s * Math.cos(th), g = -Math.sin(th);
    v[0] = g * out[0] + c * out[2];
    v[1] = g * out[1] + c * out[3];
    return v;
  }

  finish(path, nfe) {
    const [th, y0, y1] = path[path.length - 1];
    this.believe(th, y0, y1);
    path.push([0, out[0], out[1]]);
    return { path, nfe: nfe + 1 };
  }

  onLevels(levels, step) {
    // fixed grids; step(k, y) moves y from level k to the next
    return this.starts.map((start, i) => {
      const th = levels.map((l) => Math.atan(Math.exp(-l) / this.s));
      const path = [[th[0], ...start]];
      let y = start.slice(), memory = null;
      for (let k = 0; k + 1 < levels.length; k++) {
        [y, memory] = step(k, y, th, memory, i);
        path.push([th[k + 1], y[0], y[1]]);
      }
      return [path, levels.length - 1];
    });
  }
}

const GRID = { euler: "theta", heun: "theta", rk4: "theta", ddim: "sqrt-time", "dpm++2m": "sqrt-time", ancestral: "sqrt-time" };
const PER_STEP = { euler: 1, heun: 2, rk4: 4, ddim: 1, "dpm++2m": 1, ancestral: 1 };

function exponential(problem, levels, eta, second) {
  // u = x/alpha - m: u' = D + (r'/r)^(1 + eta^2) (u - D) + r' (1 - (r'/r)^(2 eta^2))^(1/2) z
  const r = levels.map((l) => Math.exp(-l));
  const noises = eta ? levels.map((_, k) => normals(problem.seed, problem.n, 2, k)) : null;
  return problem.onLevels(levels, (k, y, th, before, i) => {
    problem.believe(th[k], y[0], y[1]);
    const belief = [out[0], out[1]], ratio = r[k + 1] / r[k];
    let used = belief;
    if (second && before) {
      const rho = (levels[k] - levels[k - 1]) / (levels[k + 1] - levels[k]);
      used = belief.map((v, j) => v + (v - before[j]) / (2 * rho));
    }
    const keep = ratio ** (1 + eta * eta), std = eta ? r[k + 1] * Math.sqrt(1 - ratio ** (2 * eta * eta)) : 0;
    const c = Math.cos(th[k]), next = Math.cos(th[k + 1]);
    const moved = y.map((v, j) => next * (used[j] + keep * (v / c - used[j]) + (std ? std * noises[k][2 * i + j] : 0)));
    return [moved, belief];
  });
}

const TABLEAUS = {
  heun: { a: [[1]], b: [1 / 2, 1 / 2], c: [0, 1] },
  rk4: { a: [[1 / 2], [0, 1 / 2], [0, 0, 1]], b: [1 / 6, 1 / 3, 1 / 3, 1 / 6], c: [0, 1 / 2, 1 / 2, 1] },
  dopri5: {
    a: [
      [1 / 5],
      [3 / 40, 9 / 40],
      [44 / 45, -56 / 15, 32 / 9],
      [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
      [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
      [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    b: [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    c: [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1],
    low: [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40],
  },
};

function stages(problem, tableau, th, h, y, first) {
  const k = [first || problem.velocity(th, y, [0, 0])];
  let at = y;
  for (let i = 0; i < tableau.a.length; i++) {
    at = [0, 1].map((j) => y[j] + h * tableau.a[i].reduce((sum, w, l) => sum + w * k[l][j], 0));
    k.push(problem.velocity(th + tableau.c[i + 1] * h, at, [0, 0]));
  }
  return k;
}

const weighted = (weights, k, j) => weights.reduce((sum, w, l) => sum + w * k[l][j], 0);

function rungeKutta(problem, levels, tableau) {
  return problem.onLevels(levels, (n, y, th) => {
    const h = th[n + 1] - th[n], k = stages(problem, tableau, th[n], h, y);
    return [[0, 1].map((j) => y[j] + h * weighted(tableau.b, k, j)), null];
  });
}

function euler(problem, levels) {
  // in the process's own time, uncentred
  const at = levels.map((l) => levelOf(problem.process, l)), [m0, m1] = problem.m;
  return problem.onLevels(levels, (k, y, th) => {
    const now = at[k], next = at[k + 1], h = next.t - now.t, c = Math.cos(th[k]);
    const x = [now.alpha * (y[0] / c + m0), now.alpha * (y[1] / c + m1)];
    problem.model.believe(x[0], x[1], now.alpha, now.sigma, out);
    const moved = [0, 1].map((j) => x[j] + h * (now.dAlpha * out[j] + now.dSigma * out[2 + j]));
    return [moved.map((v, j) => Math.cos(th[k + 1]) * (v / next.alpha - problem.m[j])), null];
  });
}

function adaptive(problem, rtol, most = 2000) {
  // Dormand-Prince under the proportional-integral controller, each sample with its own steps
  const tableau = TABLEAUS.dopri5, length = problem.thStart - problem.thEnd, s = problem.s;
  const rms = (v) => Math.sqrt((v[0] * v[0] + v[1] * v[1]) / 2);
  return problem.starts.map((start) => {
    let y = start.slice(), th = problem.thStart, h = length / 20, first = null, before = null, nfe = 1;
    const path = [[th, ...y]];
    for (let tries = 0; tries < most; tries++) {
      const left = th - problem.thEnd;
      h = Math.min(h, length / 4);
      const last = h >= left * (1 - 1e-9);
      h = last ? left : Math.min(h, left / 2);
      const next = last ? problem.thEnd : th - h, step = next - th;
      const k = stages(problem, tableau, th, step, y, first);
      nfe += tableau.a.length;
      const moved = [0, 1].map((j) => y[j] + step * weighted(tableau.b, k, j));
      const error = [0, 1].map((j) => step * (weighted(tableau.b, k, j) - weighted(tableau.low, k, j)));
      const share = Math.sqrt(Math.cos(next) ** 2 + (s * Math.sin(next)) ** 2 / problem.model.variance);
      const ratio = rms(error) / ((rtol + rtol * Math.max(rms(y), rms(moved))) * share);
      const accept = ratio <= 1, log = Math.log(Math.max(ratio, 1e-10));
      let growth = -log / 5;
      if (accept && before !== null) growth = growth * 0.7 + Math.log(Math.max(before, 1e-10)) * (0.3 / 5);
      if (accept) {
        y = moved; th = next; first = k[k.length - 1]; before = ratio;
        path.push([th, y[0], y[1]]);
      } else if (first === null) {
        first = k[0];
      }
      h *= Math.min(5, Math.max(0.2, 0.9 * Math.exp(growth)));
      if (accept && last) break;
    }
    return [path, nfe];
  });
}

function solve(problem, { solver, steps, rtol, eta }) {
  // every sample's path, its end denoised, and its evaluations; steps are those of `sdegen.sample(steps=)`
  let found;
  if (rtol) found = adaptive(problem, rtol);
  else if (steps < 2) found = problem.starts.map((start) => [[[problem.thStart, ...start]], 0]);
  else {
    const levels = gridOf(GRID[solver], problem.from, problem.to, steps - 1, problem.s);
    if (solver === "euler") found = euler(problem, levels);
    else if (TABLEAUS[solver]) found = rungeKutta(problem, levels, TABLEAUS[solver]);
    else found = exponential(problem, levels, solver === "ancestral" ? eta : 0, solver === "dpm++2m");
    found = found.map(([path, n]) => [path, n * PER_STEP[solver]]);
  }
  return found.map(([path, nfe]) => problem.finish(path, nfe));
}

const endsOf = (problem, found) =>
  found.map(({ path }) => [path[path.length - 1][1] + problem.m[0], path[path.length - 1][2] + problem.m[1]]);

function distance(a, b) {
  // root mean square over samples and coordinates
  let sum = 0;
  a.forEach((p, i) => (sum += (p[0] - b[i][0]) ** 2 + (p[1] - b[i][1]) ** 2));
  return Math.sqrt(sum / (2 * a.length));
}

const modelOf = (told) => (told.kind === "mixture" ? new Mixture(told) : new Network(told));

// ---- the proof: these solvers end where sdegen's do

function test(data) {
  const model = modelOf(data.model), wrong = [];
  let worst = 0;
  for (const { process, how, ends, nfe } of data.test) {
    const problem = new Problem(model, data.processes.find((p) => p.name === process), 0, ends.length);
    const found = solve(problem, how), made = endsOf(problem, found);
    const far = Math.max(...made.map((p, i) => Math.max(Math.abs(p[0] - ends[i][0]), Math.abs(p[1] - ends[i][1]))));
    worst = Math.max(worst, far);
    const name = `${how.solver} on ${process}`;
    if (!(far <= data.tolerance)) wrong.push(`${name}: ends differ by ${far.toExponential(2)}`);
    found.forEach((one, i) => {
      if (one.nfe !== nfe[i]) wrong.push(`${name}: sample ${i} took ${one.nfe} evaluations, in Python ${nfe[i]}`);
    });
  }
  return { verdict: wrong.length ? wrong.join("; ") : "ok", worst, runs: data.test.length };
}

if (typeof module !== "undefined") module.exports = { test, solve, Problem, modelOf, endsOf, normals, gridOf, distance };

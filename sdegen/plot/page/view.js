"use strict";
// What is on the page: settings, the picture, the three numbers, the plot of error against evaluations.

const DATA = JSON.parse(document.getElementById("told").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = { euler: "#5a5a5a", heun: "#cc79a7", rk4: "#b8860b", ddim: "#d55e00", "dpm++2m": "#009e73", dopri5: "#0072b2" };
const PRESETS = { ring: "a ring of eight", two: "two modes", grid: "a grid of nine", own: "draw your own" };

const round = (std) => [std * std, 0, std * std];
const mixtureOf = (means, std) =>
  new Mixture({ means, covariances: means.map((_, k) => round(Array.isArray(std) ? std[k] : std)), weights: means.map(() => 1) });
const preset = {
  ring: () => mixtureOf(Array.from({ length: 8 }, (_, k) => [Math.cos((k * Math.PI) / 4), Math.sin((k * Math.PI) / 4)]), 0.1),
  two: () => mixtureOf([[-1, 0], [1, 0.4]], 0.2),
  grid: () => mixtureOf([-1, 0, 1].flatMap((x) => [-1, 0, 1].map((y) => [x, y])), 0.12),
  own: () => (own.length ? mixtureOf(own.map((p) => p.at), own.map((p) => p.std)) : mixtureOf([[0, 0]], 0.5)),
};

let own = [], model = modelOf(DATA.model), problem = null, found = [], exact = null, dots = [], playing = null, waiting = null;

// ---- settings

const given = DATA.model.kind === "network" ? "your network" : "your mixture";
$("data-choice").append(new Option(given, "given"), ...Object.entries(PRESETS).map(([value, text]) => new Option(text, value)));
$("process").append(...DATA.processes.map((p) => new Option(p.name, p.name)));
$("process").value = DATA.process;
if (DATA.model.labels) {
  $("label").append(new Option("none", ""), ...Array.from({ length: DATA.model.labels }, (_, k) => new Option(k, k)));
  $("label-row").hidden = false;
}
if (DATA.model.kind === "network") $("paths").value = 100;

function solverNames() {
  const before = $("solver").value, sde = $("equation").value === "sde";
  const names = sde ? ["ancestral"] : ["ddim", "dpm++2m", "euler", "heun", "rk4", "dopri5"];
  $("solver").replaceChildren(...names.map((name) => new Option(name === "dopri5" ? "dopri5, by tolerance" : name, name)));
  if (names.includes(before)) $("solver").value = before;
}

const settings = () => ({
  solver: $("solver").value,
  steps: Number($("steps").value),
  rtol: $("solver").value === "dopri5" ? 10 ** Number($("rtol").value) : null,
  eta: $("equation").value === "sde" ? Number($("eta").value) : 0,
});

function chosen() {
  const which = $("data-choice").value;
  if (which === "given") {
    const told = modelOf(DATA.model);
    if (DATA.model.labels) told.label = $("label").value === "" ? null : Number($("label").value);
    return told;
  }
  return preset[which]();
}

const seedOf = () => Math.max(0, Math.floor(Number($("seed").value) || 0));

// ---- solving

function update({ fresh = false } = {}) {
  tell();
  if (fresh || !problem) {
    model = chosen();
    const process = processes().find((p) => p.name === $("process").value);
    problem = new Problem(model, process, seedOf(), Number($("paths").value));
    exact = null;
    dots = [];
  }
  const how = settings(), began = performance.now();
  found = solve(problem, how);
  $("told-time").textContent = `${(performance.now() - began).toFixed(0)} ms`;
  const nfe = found.map((f) => f.nfe), mean = nfe.reduce((a, b) => a + b, 0) / nfe.length, most = Math.max(...nfe);
  $("told-nfe").textContent = mean === most ? `${most}` : `${mean.toFixed(1)} (at most ${most})`;
  draw();
  clearTimeout(waiting);
  waiting = setTimeout(() => compare(how, mean), exact || model.exact ? 0 : 150);
}

function compare(how, mean) {
  // the flow from the same starts, by a tolerance far below what the page shows
  exact = exact || endsOf(problem, solve(problem, { solver: "dopri5", rtol: model.exact ? 1e-8 : 1e-5 }));
  if (how.eta) {
    $("told-error").textContent = "noise of its own";
  } else {
    const error = distance(endsOf(problem, found), exact) / model.scale;
    $("told-error").textContent = `${error.toExponential(1)} std`;
    if (!dots.some((d) => d.solver === how.solver && d.nfe === mean)) dots.push({ solver: how.solver, nfe: mean, error });
  }
  drawWork();
}

// the processes of a mixture of one's own are as wide as they are; those of a network end where it knows the noise
const processes = () => ($("data-choice").value === "given" ? DATA.processes : DATA.free);

// ---- the picture

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function sharp(canvas) {
  const scale = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  const [w, h] = [Math.round(box.width * scale), Math.round(box.height * scale)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  return [pen, box.width, box.height];
}

function limits() {
  // a square that holds the data, nearly all of the noise, and the starts of all paths
  const std = (k) => 3.2 * Math.sqrt(Math.max(model.covariances[k][0], model.covariances[k][2]));
  const off = (x, y) => Math.max(Math.abs(x - model.mean[0]), Math.abs(y - model.mean[1]));
  const data = model.means ? model.means.map((m, k) => off(...m) + std(k)) : [0];
  const shift = Math.cos(problem.thStart);
  const starts = problem.starts.map(([y0, y1]) => 1.03 * off(y0 + shift * problem.m[0], y1 + shift * problem.m[1]));
  return [model.mean, Math.max(3.1 * model.scale, ...data, ...starts)];
}

const angleAt = (q) => problem.thStart + q * (problem.thEnd - problem.thStart);

function stateAt(path, th) {
  // between two nodes a straight line on the circular path; x there, with the mean's share
  let k = 1;
  while (k < path.length - 1 && path[k][0] > th) k++;
  const [a, b] = [path[k - 1], path[k]], w = Math.min(1, Math.max(0, (a[0] - th) / (a[0] - b[0] || 1)));
  return [a[1] + w * (b[1] - a[1]), a[2] + w * (b[2] - a[2])];
}

function draw() {
  const canvas = $("plane"), [pen, size] = sharp(canvas), [centre, half] = limits();
  const place = (x, y) => [((x - centre[0]) / half + 1) * (size / 2), (1 - (y - centre[1]) / half) * (size / 2)];
  const q = Number($("time").value) / 1000, ended = q === 1, th = ended ? 0 : angleAt(q);
  const shift = (angle) => [Math.cos(angle) * problem.m[0], Math.cos(angle) * problem.m[1]];
  if (model.exact) shadeBehind(pen, size, centre, half, ended ? problem.thEnd : th);
  if ($("lines").checked) {
    pen.lineWidth = 0.8;
    pen.strokeStyle = `rgba(${colour("--shade")}, 0.55)`;
    for (const { path } of found.slice(0, 80)) {
      pen.beginPath();
      for (const [angle, y0, y1] of path) {
        if (angle < th) break;
        const [m0, m1] = shift(angle);
        pen.lineTo(...place(y0 + m0, y1 + m1));
      }
      const [m0, m1] = shift(th), [y0, y1] = stateAt(path, th);
      pen.lineTo(...place(y0 + m0, y1 + m1));
      pen.stroke();
    }
  }
  pen.fillStyle = colour("--dot");
  const [m0, m1] = shift(th), r = found.length > 150 ? 2 : 2.6;
  for (const { path } of found) {
    const [y0, y1] = stateAt(path, th), [u, v] = place(y0 + m0, y1 + m1);
    pen.beginPath();
    pen.arc(u, v, r, 0, 2 * Math.PI);
    pen.fill();
  }
  const lambda = ended ? problem.to : -Math.log(problem.s * Math.tan(th));
  const t = ended ? 0 : Math.exp(chebyshev(problem.process.time, lambda)[0]);
  $("t").textContent = `t = ${t < 0.01 && t > 0 ? t.toExponential(1) : t.toPrecision(3)}`;
  canvas.setAttribute("aria-label", `${found.length} samples at t = ${t.toPrecision(3)}, from noise to data`);
}

function shadeBehind(pen, size, centre, half, th) {
  // p_t of the mixture, darker where it is denser
  const n = 90, image = new ImageData(n, n), [r, g, b] = colour("--shade").split(",").map(Number);
  const c = Math.cos(th), sigma = problem.s * Math.sin(th), logs = new Float64Array(n * n);
  let most = -Infinity;
  for (let i = 0, at = 0; i < n; i++) {
    for (let j = 0; j < n; j++, at++) {
      const x = centre[0] + ((2 * (j + 0.5)) / n - 1) * half, y = centre[1] + (1 - (2 * (i + 0.5)) / n) * half;
      logs[at] = model.logDensity(x, y, c, sigma);
      if (logs[at] > most) most = logs[at];
    }
  }
  for (let at = 0; at < n * n; at++) image.data.set([r, g, b, 190 * Math.sqrt(Math.exp(logs[at] - most))], 4 * at);
  const small = new OffscreenCanvas(n, n);
  small.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = true;
  pen.drawImage(small, 0, 0, size, size);
}

// ---- error against evaluations

function drawWork() {
  const [pen, w, h] = sharp($("work")), pad = { left: 40, right: 18, top: 12, bottom: 26 };
  const shown = dots.filter((d) => d.error > 0);
  const ends = (values, low, high) => [Math.min(low, ...values), Math.max(high, ...values)];
  const [x0, x1] = ends(shown.map((d) => Math.log10(d.nfe)), Math.log10(2), 2);
  const [y0, y1] = ends(shown.map((d) => Math.log10(d.error)), -3, 0);
  const X = (nfe) => pad.left + ((Math.log10(nfe) - x0) / (x1 - x0)) * (w - pad.left - pad.right);
  const Y = (error) => h - pad.bottom - ((Math.log10(error) - y0) / (y1 - y0)) * (h - pad.top - pad.bottom);
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = pen.strokeStyle = colour("--faint");
  pen.lineWidth = 0.5;
  for (const nfe of [2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((v) => Math.log10(v) <= x1 + 1e-9 && Math.log10(v) >= x0)) {
    pen.fillText(nfe, X(nfe) - 6, h - 12);
  }
  for (let p = Math.ceil(y0); p <= y1; p++) {
    if ((p - Math.ceil(y0)) % Math.ceil((y1 - y0) / 6)) continue;
    pen.fillText(`1e${p}`, 8, Y(10 ** p) + 4);
    pen.beginPath();
    pen.moveTo(pad.left, Y(10 ** p));
    pen.lineTo(w - pad.right, Y(10 ** p));
    pen.stroke();
  }
  pen.fillText("evaluations a sample", w - 125, h - 1);
  shown.forEach((d, i) => {
    pen.fillStyle = COLOURS[d.solver];
    pen.beginPath();
    pen.arc(X(d.nfe), Y(d.error), i === shown.length - 1 ? 5 : 3.5, 0, 2 * Math.PI);
    pen.fill();
  });
  let left = pad.left + 4;
  for (const name of new Set(shown.map((d) => d.solver))) {
    pen.fillStyle = COLOURS[name];
    pen.fillText(name, left, 11);
    left += pen.measureText(name).width + 10;
  }
}

// ---- Python

const listed = (value) => JSON.stringify(value).replaceAll(",", ", ");

function python() {
  const { solver, steps, rtol, eta } = settings(), process = DATA.free.find((p) => p.name === $("process").value);
  const lines = ["import sdegen as sg", ""];
  if ($("data-choice").value !== "given" || DATA.model.kind === "mixture") {
    const shown = $("data-choice").value === "given" ? new Mixture(DATA.model) : chosen();
    const short = (v) => Number(v.toFixed(6)), same = (values) => values.every((v) => v === values[0]);
    lines.push("mixture = sg.GaussianMixture(", `    ${listed(shown.means.map((m) => m.map(short)))},`);
    if (shown.covariances.every(([a, b, d]) => b === 0 && a === d)) {
      const stds = shown.covariances.map((c) => short(Math.sqrt(c[0])));
      lines.push(`    std=${same(stds) ? stds[0] : listed(stds)},`);
    } else {
      lines.push(`    covariances=${listed(shown.covariances.map((c) => [[c[0], c[1]], [c[1], c[2]]].map((row) => row.map(short))))},`);
    }
    if (!same(shown.weights)) lines.push(`    weights=${listed(shown.weights.map(short))},`);
    lines.push(")");
    lines.push(`model = sg.MixtureModel(mixture, ${process.python})`);
  } else {
    lines.push(`model = sg.load(${JSON.stringify(DATA.model.path || "your_model")})`);
    if (process.name !== DATA.process) lines.push(`model = model.on(${process.python})`);
  }
  const how = rtol ? `rtol=${Number(rtol.toPrecision(3))}` : `steps=${steps}`;
  const more = eta ? `, eta=${eta}` : "";
  const label = DATA.model.labels && $("data-choice").value === "given" && $("label").value !== "" ? $("label").value : null;
  const n = Number($("paths").value), shape = `(${n}, 2)`;
  lines.push(`found = sg.sample(model, ${shape}, solver="${solver}", ${how}${more}, seed=${seedOf()}${label === null ? "" : `, label=torch.full((${n},), ${label})`})`);
  if (label !== null) lines.splice(1, 0, "import torch");
  lines.push("print(found.nfe.double().mean())");
  return lines.join("\n");
}

// ---- wiring

function tell() {
  const sde = $("equation").value === "sde", tolerance = $("solver").value === "dopri5";
  $("eta-row").hidden = !sde;
  $("steps-row").hidden = tolerance;
  $("rtol-row").hidden = !tolerance;
  $("drawing").hidden = $("data-choice").value !== "own";
  $("label-row").hidden = !DATA.model.labels || $("data-choice").value !== "given";
  for (const id of ["steps", "paths", "eta"]) $(`${id}-told`).textContent = $(id).value;
  $("rtol-told").textContent = (10 ** Number($("rtol").value)).toPrecision(2);
  $("python").textContent = python();
}

function play() {
  if (playing) {
    cancelAnimationFrame(playing);
    playing = null;
  } else {
    let q = Number($("time").value) >= 1000 ? 0 : Number($("time").value) / 1000, before = performance.now();
    const frame = (now) => {
      q = Math.min(1, q + (now - before) / 4000);
      before = now;
      $("time").value = Math.round(1000 * q);
      draw();
      playing = q < 1 ? requestAnimationFrame(frame) : null;
      $("play").textContent = playing ? "pause" : "play";
    };
    playing = requestAnimationFrame(frame);
  }
  $("play").textContent = playing ? "pause" : "play";
}

for (const id of ["data-choice", "label", "process", "paths", "seed"]) $(id).addEventListener("input", () => update({ fresh: true }));
for (const id of ["solver", "steps", "rtol", "eta"]) $(id).addEventListener("input", () => update());
$("equation").addEventListener("input", () => { solverNames(); update(); });
$("time").addEventListener("input", draw);
$("lines").addEventListener("input", draw);
$("play").addEventListener("click", play);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => { dots = []; drawWork(); });
$("undo").addEventListener("click", () => { own.pop(); update({ fresh: true }); });
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(python());
    $("copy").textContent = "copied";
  } catch {
    getSelection().selectAllChildren($("python")); // where a page may not write to the clipboard
    $("copy").textContent = "selected below";
  }
  setTimeout(() => ($("copy").textContent = "copy as Python"), 1500);
});
$("plane").addEventListener("click", (event) => {
  if ($("data-choice").value !== "own") return;
  const box = $("plane").getBoundingClientRect(), [centre, half] = own.length ? limits() : [[0, 0], 2];
  const at = [centre[0] + ((2 * (event.clientX - box.left)) / box.width - 1) * half, centre[1] + (1 - (2 * (event.clientY - box.top)) / box.height) * half];
  own.push({ at, std: Number($("width").value) / 100 });
  update({ fresh: true });
});
document.addEventListener("keydown", (event) => {
  if (event.key === " " && !["BUTTON", "SELECT", "INPUT"].includes(event.target.tagName)) {
    event.preventDefault();
    play();
  }
});
addEventListener("resize", () => { draw(); drawWork(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); drawWork(); });

solverNames();
update({ fresh: true });

if (location.hash === "#test") {
  const { verdict, worst, runs } = test(DATA), box = $("test-result");
  box.textContent = verdict;
  box.dataset.worst = worst;
  box.dataset.runs = runs;
  box.hidden = false;
  document.title = `test: ${verdict}`;
}

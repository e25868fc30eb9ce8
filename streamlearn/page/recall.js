// "Recall over time": curves and boundaries, the matrix of tasks and times, and what is answered worst. Drawn while it is
// looked at.

import { count, decimals, element, getBlob, getJson, hasToken, percent, taskClass } from "./api.js";

const POLL_MS = 5000;
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM] = [720, 260, 46, 22];

const $ = (id) => document.getElementById(id);
let timer = 0;
let objectUrls = [];

const chosen = () => ({ view: $("recall-view").value, k: Number($("recall-k").value), direction: $("recall-direction").value });
const shownNow = () => !$("recall").hidden;

export function choose(tab) {
  const recall = tab === "recall";
  $("recall").hidden = !recall;
  $("find").hidden = recall;
  $("tab-recall").setAttribute("aria-selected", String(recall));
  $("tab-find").setAttribute("aria-selected", String(!recall));
  $("tab-recall").tabIndex = recall ? 0 : -1;
  $("tab-find").tabIndex = recall ? -1 : 0;
  clearTimeout(timer);
  if (recall) draw();
}

async function draw() {
  clearTimeout(timer);
  const { view, k, direction } = chosen();
  try {
    const [report, scores] = await Promise.all([
      getJson("v1/evaluation"),
      getJson(`v1/scores?${new URLSearchParams({ view, k, direction, most: 300 })}`),
    ]);
    const points = (scores.points ?? []).filter((p) => p.view === view && p.k === k && p.direction === direction && Number.isFinite(p.value));
    const tasks = report.tasks ?? [];
    $("recall-hint").hidden = tasks.some((task) => (task.values ?? []).length);
    drawCurves(points, report.boundaries ?? []);
    drawTimes(scores.matrix ?? {}, { view, k, direction });
    drawMatrix(tasks, { view, k, direction });
    drawSummary(report.summary ?? [], { view, k, direction });
    drawWorst(report.hardest_queries ?? [], report.worst_clips ?? []);
  } catch {
    // The live strip says that the daemon is away.
  }
  if (shownNow()) timer = setTimeout(draw, POLL_MS);
}

function byTask(points) {
  const found = new Map();
  for (const p of points) {
    if (!found.has(p.task)) found.set(p.task, []);
    found.get(p.task).push(p);
  }
  return found;
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawCurves(points, boundaries) {
  const last = Math.max(1, ...points.map((p) => p.clips_seen), ...boundaries.map((b) => b.clips));
  const x = (clips) => (LEFT + (WIDTH - LEFT - 8) * (clips / last)).toFixed(1);
  const y = (value) => (8 + (HEIGHT - BOTTOM - 8) * (1 - value)).toFixed(1);
  const drawn = [];
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    drawn.push(shape("line", { class: "rule", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
    drawn.push(shape("text", { class: "tick", x: LEFT - 6, y: Number(y(value)) + 4, "text-anchor": "end" }, percent(value)));
  }
  for (const b of boundaries.filter((b) => b.clips > 0)) {
    const line = shape("line", { class: "boundary", x1: x(b.clips), x2: x(b.clips), y1: 8, y2: HEIGHT - BOTTOM });
    const cause = b.cause === "drift" ? `drift, score ${decimals(b.score, 1)}` : b.cause;
    line.append(shape("title", {}, `${b.task} begins at clip ${count(b.clips)}: ${cause}`));
    drawn.push(line);
  }
  drawn.push(shape("text", { class: "tick", x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, `${count(last)} clips`));
  for (const [task, of] of byTask(points)) {
    const band = [...of.filter((p) => Number.isFinite(p.high)).map((p) => `${x(p.clips_seen)},${y(p.high)}`),
      ...of.filter((p) => Number.isFinite(p.low)).reverse().map((p) => `${x(p.clips_seen)},${y(p.low)}`)];
    if (band.length > 2) drawn.push(shape("polygon", { class: `band ${taskClass(task)}`, points: band.join(" ") }));
    const line = shape("polyline", { class: `curve ${taskClass(task)}`, points: of.map((p) => `${x(p.clips_seen)},${y(p.value)}`).join(" ") });
    line.append(shape("title", {}, task));
    drawn.push(line);
    for (const p of of) {
      const dot = shape("circle", { class: `dot-mark ${taskClass(task)}`, r: 2.5, cx: x(p.clips_seen), cy: y(p.value) });
      dot.append(shape("title", {}, `${task}: ${percent(p.value)} at clip ${count(p.clips_seen)}, ${p.pairs} pairs`));
      drawn.push(dot);
    }
  }
  $("curves").replaceChildren(...drawn);
}

function drawTimes({ times = [], rows = [] }, { view, k, direction }) {
  const head = element("tr");
  head.append(...["task", ...times.map(count)].map((text) => element("th", "", text)));
  const found = rows.filter((row) => row.view === view && row.k === k && row.direction === direction);
  $("times").replaceChildren(head, ...found.map((row) => {
    const line = element("tr");
    const name = element("td");
    name.append(element("span", `badge ${taskClass(row.task)}`, row.task));
    line.append(name, ...row.cells.map((cell) => {
      if (!Number.isFinite(cell?.value)) return element("td");
      const td = element("td", cell.asked ? "" : "before", percent(cell.value));
      td.append(" ", element("small", "", cell.pairs));
      const bounds = Number.isFinite(cell.low) ? `, ${percent(cell.low)} to ${percent(cell.high)}` : "";
      const lost = Number.isFinite(cell.forgetting) ? `, forgotten ${percent(cell.forgetting)}` : "";
      td.title = `asked at clip ${count(cell.clips_seen)}${bounds}${lost}`;
      return td;
    }));
    return line;
  }));
  $("times").hidden = $("times-note").hidden = !found.length;
}

function drawMatrix(tasks, { view, k, direction }) {
  const head = element("tr");
  head.append(...["task", "pairs", "recall now", "95 % interval", "best", "forgotten", "median rank"].map((text) => element("th", "", text)));
  const rows = tasks.map((task) => {
    const value = (task.values ?? []).find((v) => v.view === view && v.k === k && v.direction === direction);
    const median = (task.median_rank ?? []).find((m) => m.view === view && m.direction === direction);
    const row = element("tr");
    const name = element("td");
    name.append(element("span", `badge ${taskClass(task.name)}`, task.name));
    const interval = Number.isFinite(value?.low) ? `${percent(value.low)} to ${percent(value.high)}` : "–";
    row.append(name, ...[count(task.pairs), percent(value?.recall), interval, percent(value?.best), percent(value?.forgetting), decimals(median?.value, 1)]
      .map((text) => element("td", "", text)));
    return row;
  });
  $("matrix").replaceChildren(head, ...rows);
}

function drawSummary(summary, { view, k, direction }) {
  const found = summary.find((s) => s.view === view && s.k === k && s.direction === direction) ?? {};
  const numbers = [
    ["harmonic mean", "harmonic_mean"],
    ["backward transfer", "backward_transfer"],
    ["forward transfer", "forward_transfer"],
    ["any-time minimum", "anytime_minimum"],
  ];
  $("recall-summary").replaceChildren(...numbers.map(([name, key]) => {
    const pair = element("div");
    const number = element("dd", "", percent(found[key]));
    if (Number.isFinite(found[key])) number.append(" ", element("small", "", `${count(found.pairs?.[key])} pairs`));
    pair.append(element("dt", "", name), number);
    return pair;
  }));
}

function drawWorst(queries, clips) {
  objectUrls.forEach((url) => URL.revokeObjectURL(url));
  objectUrls = [];
  const draw = (worst, says) => worst.map((one) => {
    const item = element("li", "worst");
    const frame = element("div", "frame");
    const image = element("img");
    image.alt = one.question;
    image.loading = "lazy";
    image.addEventListener("error", () => frame.classList.add("empty"));
    if (hasToken()) {
      getBlob(one.thumbnail_url).then((blob) => {
        image.src = URL.createObjectURL(blob);
        objectUrls.push(image.src);
      }, () => frame.classList.add("empty"));
    } else image.src = one.thumbnail_url;
    frame.append(image);
    const text = element("div");
    text.append(element("p", "caption", one.question), element("p", "task-note", `${says} ${count(one.rank)}, ${one.task}`));
    item.append(frame, text);
    return item;
  });
  $("hardest").replaceChildren(...draw(queries, "its clip is at rank"));
  $("worst").replaceChildren(...draw(clips, "its caption is at rank"));
}

export function startRecall() {
  for (const name of ["find", "recall"]) {
    $(`tab-${name}`).addEventListener("click", () => choose(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = name === "find" ? "recall" : "find";
      choose(other);
      $(`tab-${other}`).focus();
    });
  }
  for (const id of ["recall-view", "recall-k", "recall-direction"]) $(id).addEventListener("change", draw);
}

// What the daemon is doing: polled, and drawn beside the results.

import { count, decimals, element, getJson, percent, taskClass } from "./api.js";

const POLL_MS = 2000;
const SCORES_EVERY = 3;
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [120, 30];

const $ = (id) => document.getElementById(id);
const listeners = [];
let scoredStep = null;
let series = { served: new Map(), learner: new Map() };

export const onStatus = (listener) => listeners.push(listener);

export async function watch() {
  for (let round = 0; ; round += 1) {
    if (!document.hidden) await poll(round);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function poll(round) {
  try {
    const status = await getJson("v1/status");
    if (round % SCORES_EVERY === 0 && status.step !== scoredStep) {
      series = collect((await getJson("v1/scores?direction=t2v&k=5&most=120")).points ?? []);
      scoredStep = status.step;
    }
    drawTasks(await getJson("v1/tasks"), status.task);
    drawStatus(status);
    listeners.forEach((listener) => listener(status));
  } catch (error) {
    setState("unreachable", "unreachable");
    const away = error instanceof TypeError; // what fetch throws when there is no answer at all
    banner(away ? "The daemon does not answer. Trying again every two seconds." : `The daemon answers with an error: ${error.message}`);
  }
}

function banner(text) {
  const node = $("banner");
  if (node.textContent !== text) node.textContent = text;
  node.hidden = !text;
}

function setState(state, text) {
  $("state").dataset.state = state;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

function drawStatus(status) {
  const clips = status.clips ?? {};
  const state = status.state ?? "learning";
  setState(state, status.task && state === "learning" ? `learning ${status.task}` : state);
  banner(state === "stopped" ? `Learning has stopped${status.detail ? `: ${status.detail}` : "."} Search goes on.` : "");
  const numbers = [
    ["learned", count(clips.learned), "clips"],
    ["searchable", count(status.searchable), "clips"],
    ["speed", decimals(status.clips_per_s, status.clips_per_s < 10 ? 1 : 0), "clips/s"],
    ["step", count(status.step), ""],
    ["loss", decimals(status.loss, 2), "nats"],
    ["drift", decimals(status.drift_score, 2), ""],
    ["held out", count(clips.held_out), "clips"],
    ["rejected", count(clips.dead_lettered), "clips"],
  ];
  $("numbers").replaceChildren(...numbers.map(([name, value, unit]) => {
    const pair = element("div");
    const number = element("dd", "", value);
    if (unit) number.append(" ", element("small", "", unit));
    pair.append(element("dt", "", name), number);
    return pair;
  }));
}

function collect(points) {
  const found = { served: new Map(), learner: new Map() };
  for (const p of points) {
    if (p.direction !== "t2v" || p.k !== 5 || !Number.isFinite(p.value) || !found[p.view]) continue;
    if (!found[p.view].has(p.task)) found[p.view].set(p.task, []);
    found[p.view].get(p.task).push([p.clips_seen, p.value]);
  }
  return found;
}

function drawTasks(tasks, current) {
  const all = [...series.served.values(), ...series.learner.values()].flat().map(([x]) => x);
  const domain = [Math.min(...all), Math.max(...all)];
  // Newest first: that is where something happens.
  $("tasks").replaceChildren(...[...tasks].reverse().map((task) => row(task, task.name === current, domain)));
  $("no-tasks").hidden = tasks.length > 0;
  $("legend").hidden = tasks.length === 0;
}

function row(task, isCurrent, domain) {
  const item = element("li", "task");
  const head = element("div", "task-head");
  head.append(element("span", `badge ${taskClass(task.name)}`, task.name));
  head.append(element("span", "task-note", `${isCurrent ? "learning now, " : ""}${count(task.clips)} clips`));
  const served = task.recall?.served?.["5"];
  const learner = task.recall?.learner?.["5"];

  const body = element("div", "task-body");
  const bars = element("div", "bars");
  bars.append(bar("served", served), bar("learner", learner));
  body.append(bars, sparkline(task.name, domain));
  item.append(head, body);

  const forgotten = [["served", task.forgetting?.served], ["learner", task.forgetting?.learner]]
    .filter(([, value]) => Number.isFinite(value));
  if (forgotten.length) {
    const text = forgotten.map(([view, value]) => `${view} ${percent(value)}`).join(", ");
    const pairs = Number.isFinite(task.pairs) ? `; ${count(task.pairs)} pairs` : "";
    item.append(element("p", "task-note", `forgotten: ${text}${pairs}`));
  }
  return item;
}

function bar(view, value) {
  const line = element("div", "score");
  const track = element("span", `bar ${view}`);
  const fill = element("i");
  fill.style.width = Number.isFinite(value) ? `${100 * value}%` : "0";
  track.append(fill);
  const number = element("span", "number", percent(value));
  number.title = `recall@5, ${view}`;
  line.append(track, number);
  return line;
}

function sparkline(name, [from, to]) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `recall@5 of ${name} over time`);
  for (const view of ["learner", "served"]) {
    const points = series[view].get(name) ?? [];
    if (!points.length) continue;
    const x = (clips) => 3 + (WIDTH - 6) * (to > from ? (clips - from) / (to - from) : 1);
    const y = (value) => HEIGHT - 3 - (HEIGHT - 6) * value;
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("class", view);
    line.setAttribute("points", points.map(([c, v]) => `${x(c).toFixed(1)},${y(v).toFixed(1)}`).join(" "));
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("class", view);
    dot.setAttribute("r", "2");
    dot.setAttribute("cx", x(points.at(-1)[0]).toFixed(1));
    dot.setAttribute("cy", y(points.at(-1)[1]).toFixed(1));
    svg.append(line, dot);
  }
  return svg;
}

// The search: what is typed, what was found, and the address that leads back to it.

import { Problem, count, decimals, element, getBlob, hasToken, postJson, taskClass } from "./api.js";
import { onStatus, watch } from "./live.js";
import { startRecall } from "./recall.js";

const LIMIT = 20;
const PAUSE_MS = 300;

const $ = (id) => document.getElementById(id);
const [form, input, summary, results, hint, examples] = ["search", "q", "summary", "results", "hint", "examples"].map($);

let shown = ""; // key of the query whose answer is on the page, or on its way
let answered = false;
let running = null; // AbortController of the search on its way
let timer = 0;
let objectUrls = [];
let searchable = null;
let drawSummary = () => {}; // of the answer shown

const readAddress = () => {
  const params = new URLSearchParams(location.search);
  const like = params.get("like");
  return like ? { video_id: like } : { text: params.get("q") ?? "" };
};

function writeAddress(query, push) {
  const params = new URLSearchParams();
  if (query.video_id) params.set("like", query.video_id);
  else if (query.text) params.set("q", query.text);
  const url = params.size ? `?${params}` : location.pathname;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

async function search(query, { again = false } = {}) {
  clearTimeout(timer);
  const key = JSON.stringify(query);
  if (key === shown && !again) return;
  running?.abort();
  shown = key;
  answered = false;
  if (!query.video_id && !query.text) {
    clear();
    return;
  }
  const controller = (running = new AbortController());
  results.setAttribute("aria-busy", "true");
  try {
    const answer = await postJson("v1/search", { query, limit: LIMIT }, { signal: controller.signal });
    answered = true;
    show(query, answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(query, error);
  } finally {
    if (running === controller) results.removeAttribute("aria-busy");
  }
}

function clear() {
  replaceResults([]);
  summary.textContent = "";
  explainEmptiness();
}

function explainEmptiness() {
  if (results.childElementCount) hint.textContent = "";
  else if (searchable === 0) hint.textContent = "Nothing is indexed yet. Clips can be found here as soon as they are learned.";
  else if (!shown || JSON.parse(shown).text === "") hint.textContent = "Say in your own words what a clip should show; results appear as you type.";
  else if (answered) hint.textContent = "Nothing was found.";
}

function fail(query, error) {
  replaceResults([]);
  hint.textContent = "";
  let text = "The search got no answer. Trying again …";
  if (error.status === 429) text = "Many are searching just now. Trying again …";
  else if (error.status === 503) text = `${error.message} Trying again …`;
  else if (error instanceof Problem) text = error.message;
  summary.textContent = text;
  if (error instanceof Problem && ![429, 503].includes(error.status)) return;
  timer = setTimeout(() => search(query, { again: true }), 1000 * (error.retryAfterS || 2));
}

function show(query, answer) {
  const found = answer.results ?? [];
  replaceResults(found.map(card));
  const what = `${count(found.length)} ${found.length === 1 ? "clip" : "clips"}${query.video_id ? ` like ${query.video_id}` : ""}`;
  const took = `${decimals(answer.took_ms, answer.took_ms < 10 ? 1 : 0)} ms`;
  const origin = `generation ${answer.generation} · model ${answer.model_version} · ${new Date().toLocaleTimeString()}`;
  drawSummary = () => {
    const facts = `${what}${searchable ? ` of ${count(searchable)}` : ""} in ${took}`;
    summary.replaceChildren(element("strong", "", facts), element("span", "", origin));
  };
  drawSummary();
  explainEmptiness();
}

function replaceResults(cards) {
  objectUrls.forEach((url) => URL.revokeObjectURL(url));
  objectUrls = [];
  results.replaceChildren(...cards);
}

function card(result) {
  const item = element("li", "card");
  const captions = result.captions ?? [];
  const caption = captions[0] ?? result.video_id;

  const frame = element("div", "frame");
  if (result.thumbnail_url) frame.append(thumbnail(result.thumbnail_url, caption));
  else frame.classList.add("empty");
  if (result.task) frame.append(element("span", `badge ${taskClass(result.task)}`, result.task));

  const text = element("p", "caption", caption);
  text.title = captions.join("\n");

  const score = element("div", "score");
  const bar = element("span", "bar");
  const fill = element("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, result.score))}%`;
  bar.append(fill);
  const number = element("span", "number", decimals(result.score, 2));
  number.title = "score";
  score.append(bar, number);

  const like = element("button", "like", "more like this");
  like.type = "button";
  like.setAttribute("aria-label", `More like: ${caption}`);
  like.title = `${result.video_id}, vector of step ${result.embedded_at_step}`;
  like.addEventListener("click", () => go({ video_id: result.video_id }, true));

  item.append(frame, text, score, like);
  return item;
}

function thumbnail(url, caption) {
  const image = element("img");
  image.alt = caption;
  image.addEventListener("error", () => {
    image.parentElement?.classList.add("empty");
    image.remove();
  });
  if (!hasToken()) {
    image.src = url;
    return image;
  }
  // An <img> cannot carry the token.
  getBlob(url).then((blob) => {
    if (!image.isConnected) return;
    image.src = URL.createObjectURL(blob);
    objectUrls.push(image.src);
  }, () => image.dispatchEvent(new Event("error")));
  return image;
}

function go(query, push) {
  input.value = query.text ?? "";
  writeAddress(query, push);
  search(query);
}

function offer(captions) {
  // Not while a chip is being used: it would vanish under the pointer.
  if (examples.matches(":hover, :focus-within")) return;
  const wanted = [...new Set(captions)].filter((c) => typeof c === "string" && c.trim()).slice(0, 4);
  const chips = wanted.map((caption) => {
    const chip = element("button", "chip", caption);
    chip.type = "button";
    chip.addEventListener("click", () => go({ text: caption }, true));
    return chip;
  });
  examples.replaceChildren(examples.firstElementChild, ...chips);
  examples.hidden = chips.length === 0;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const query = { text: input.value.trim() };
  writeAddress(query, true);
  search(query, { again: true });
});

input.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const query = { text: input.value.trim() };
    writeAddress(query, false);
    search(query);
  }, PAUSE_MS);
});

addEventListener("popstate", () => {
  const query = readAddress();
  input.value = query.text ?? "";
  search(query);
});

let offered = false;
onStatus((status) => {
  const first = !searchable && status.searchable > 0;
  const unknown = searchable === null;
  searchable = status.searchable ?? null;
  if (unknown && answered) drawSummary();
  // New examples only while nothing is being looked for: a page that stands still is easier to read.
  if (!offered || !input.value) offer(status.examples ?? []);
  offered ||= (status.examples ?? []).length > 0;
  explainEmptiness();
  // The question was asked before there was anything to find.
  if (first && answered && !results.childElementCount) search(JSON.parse(shown), { again: true });
});

const query = readAddress();
input.value = query.text ?? "";
search(query);
startRecall();
watch();

// Talks to the daemon: adds the token, asks for it when it is missing or wrong, and turns problems into errors.

const KEY = "streamlearn.token";
let asking = null;

export class Problem extends Error {
  constructor(status, detail, retryAfterS) {
    super(detail);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;

// One dialog, however many requests wait for it.
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog");
    const input = document.getElementById("token");
    input.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      // A header takes bytes, not text: the token goes as UTF-8.
      const bytes = new TextEncoder().encode(input.value.trim());
      sessionStorage.setItem(KEY, String.fromCharCode(...bytes));
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (token !== null) headers.Authorization = `Bearer ${token}`;
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) {
      // Another request may have brought a new token meanwhile.
      if (sessionStorage.getItem(KEY) === token) await askForToken();
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const retryAfterS = Number(response.headers.get("Retry-After")) || 0;
    throw new Problem(response.status, problem.detail ?? response.statusText, retryAfterS);
  }
}

export const getJson = async (path, options) => (await request(path, options)).json();

export const postJson = (path, body, options) =>
  getJson(path, {
    ...options,
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

export const getBlob = async (path, options) => (await request(path, options)).blob();

// Elements are made here and nowhere from markup, so that no caption can become one.
export function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
}

const grouped = new Intl.NumberFormat("en");
export const count = (n) => (Number.isFinite(n) ? grouped.format(n) : "–");
export const decimals = (x, digits) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
export const percent = (x) => (Number.isFinite(x) ? `${Math.round(100 * x)} %` : "–");

const hues = new Map();
// A task keeps its colour for as long as the page is open.
export function taskClass(name) {
  if (!hues.has(name)) hues.set(name, hues.size % 6);
  return `hue-${hues.get(name)}`;
}

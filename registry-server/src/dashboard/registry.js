// Requests to the registry, and the token that they carry.

// Where the registry is: at the root of a host, or below a path of a proxy.
export const registryUrl = new URL(".", location.href).href.replace(/\/$/, "");
// Other programs, and other registries, may be at the same origin.
const TOKEN_KEY = `token of ${registryUrl}`;

// An event stream is never silent for more than 15 s, and no other answer takes so long to go on.
export const MAX_SILENCE = 18000;

// How far the registry's clock is ahead of this one, in milliseconds.
export let clockAhead = 0;

const form = document.getElementById("sign-in");

/// The token of this tab, or "".
export function token() {
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

/// Whether the registry refused the token, so that no request can succeed before people enter another.
export function isSignInNeeded() {
  return !form.hidden;
}

function askForToken() {
  if (isSignInNeeded()) return;
  const why = token() === "" ? "This registry asks for a token." : "The registry refused the token: it is unknown, or it has expired.";
  document.getElementById("sign-in-why").textContent = why;
  form.hidden = false;
  // Nobody loses their place in a page that is read already.
  if (document.activeElement === document.body) document.getElementById("token").focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, document.getElementById("token").value);
  // Nothing that was begun with the other token goes on.
  location.reload();
});

/// Reads the response to a path of the API, without a slash before it, in pieces. The first comes with the head and is empty.
/// A registry that falls silent is an error.
export async function* read(path, headers = {}) {
  const request = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => request.abort(new Error("the registry does not answer")), MAX_SILENCE);
  };
  try {
    heard();
    if (token() !== "") headers.Authorization = `Bearer ${token()}`;
    const response = await fetch(`${registryUrl}/${path}`, { headers, cache: "no-store", signal: request.signal });
    heard();
    if (response.status === 401) {
      askForToken();
      throw new Error("a token is needed");
    }
    if (!response.ok) {
      throw Object.assign(new Error(`the registry answered ${response.status}`), { status: response.status });
    }
    const ahead = Date.parse(response.headers.get("date") ?? "") - Date.now();
    // The header has whole seconds, and took some time: a small difference is none.
    if (!Number.isNaN(ahead)) clockAhead = Math.abs(ahead) < 2000 ? 0 : ahead;
    yield "";
    const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece; !(piece = await pieces.read()).done; ) {
      heard();
      yield piece.value;
    }
  } finally {
    clearTimeout(timer);
    request.abort();
  }
}

/// Reads a whole JSON response.
export async function readJson(path) {
  let text = "";
  for await (const piece of read(path)) text += piece;
  return JSON.parse(text);
}

/// Waits before the next attempt, longer after each failure.
export function pause(failures) {
  return new Promise((done) => setTimeout(done, Math.min(500 * 2 ** failures, 10000) * Math.random()));
}

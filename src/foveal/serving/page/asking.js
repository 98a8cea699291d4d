// Talking to the server: its models, one picture's answer, and what went wrong in words.

const TOKEN_KEY = "foveal.token";
const MAX_RETRY_SECONDS = 60;

/** What stands between a question and its answer; `kind` is what the page does about it. */
export class Problem extends Error {
  constructor(kind, message, { status = 0, retryAfterSeconds = 2, code = "", token = "" } = {}) {
    super(message);
    this.kind = kind; // token, busy, unreachable, file or refused
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
    this.code = code;
    this.token = token;
  }

  /** Whether asking again may help without anything else being changed. */
  get isPassing() {
    return this.kind !== "refused" || this.status === 408 || this.status >= 500;
  }
}

export function keptToken() {
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

/** Keep the token for this tab; an empty one is forgotten. */
export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN_KEY, token);
  else sessionStorage.removeItem(TOKEN_KEY);
}

async function request(path, options = {}) {
  const token = keptToken();
  const headers = { Accept: "application/json, application/problem+json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  let said;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store" });
    said = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("unreachable", "The server cannot be reached. Is foveal serve still running?");
  }
  let answer = null;
  try {
    answer = JSON.parse(said);
  } catch {
    // A proxy in between may answer in HTML; the status says enough then.
  }
  if (response.ok && answer !== null) return answer;
  throw problemOf(response, answer, token);
}

function problemOf(response, answer, token) {
  const { status } = response;
  const told = [answer?.detail, answer?.title].find((text) => typeof text === "string" && text);
  const words = told ?? (response.ok ? "The answer was not readable." : `The server answered with status ${status}.`);
  if (status === 401) return new Problem("token", words, { status, token });
  if (status === 503 || status === 429) {
    const wait = Number(response.headers.get("Retry-After"));
    const retryAfterSeconds = Number.isFinite(wait) && wait > 0 ? Math.min(wait, MAX_RETRY_SECONDS) : 2;
    const code = String(answer?.type ?? "").split("#").at(-1);
    return new Problem("busy", words, { status, retryAfterSeconds, code });
  }
  return new Problem("refused", words, { status });
}

/** The models of this server and its limits. */
export async function askModels(signal) {
  const { models, limits } = await request("v1/models", { signal });
  return { models, limits: limits ?? {} };
}

/** One picture's answer. The browser sets the form's boundary, and says where the page comes from. */
export async function askAbout(file, { model, tta, heatmap, signal }) {
  const form = new FormData();
  form.append("image", file, file.name || "picture");
  const query = new URLSearchParams({ tta, heatmap: String(heatmap) });
  const started = performance.now();
  let answer;
  try {
    answer = await request(`v1/models/${encodeURIComponent(model)}/predict?${query}`, { method: "POST", body: form, signal });
  } catch (problem) {
    if (problem.kind === "unreachable" && !(await isReadable(file))) {
      throw new Problem("file", "The file can no longer be read: it was changed, moved or deleted after you chose it.");
    }
    throw problem;
  }
  const prediction = answer.predictions?.[0];
  if (!prediction) throw new Problem("refused", "The server's answer holds no prediction.");
  if (prediction.status !== "ok") {
    throw new Problem("refused", prediction.error?.detail || "The picture could not be read.", { code: prediction.error?.code });
  }
  return { ...prediction, totalSeconds: answer.seconds, roundTripSeconds: (performance.now() - started) / 1000 };
}

async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// Asking the server: the key, errors as one sentence, and streams of server-sent events.

const KEY = "coldpress.key";

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// A response with a good status; a Failure says why there is none. Paths are relative, so that the
// page works behind a prefix.
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", 0);
  }
  if (!response.ok) throw new Failure(await sentence(response), response.status);
  return response;
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    return error.message ?? String(error);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

export function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

// The JSON of each event until [DONE]; an error event, or an end without [DONE], is a Failure.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failure("The answer broke off.", 0);
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const data = part.slice(6);
      if (data === "[DONE]") return;
      const payload = JSON.parse(data);
      if (payload.error) throw new Failure(payload.error.message, payload.error.code);
      yield payload;
    }
  }
}

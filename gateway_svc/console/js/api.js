// Calls of the gateway's HTTP interface. Failures are `ApiError`s with the reason of the contract.
import { fetchAs } from "./token.js";

export class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error || {};
    super(error.message || `the gateway answered ${status}`);
    this.status = status;
    this.reason = error.reason || "";
    this.traceId = error.trace_id || "";
    this.traceUrl = error.trace_url || "";
  }
}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function request(method, path, { body, headers = {}, signal } = {}) {
  const response = await fetchAs(path, {
    method,
    signal,
    headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const content = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, content);
  return content;
}

// For what the page looks up again every few seconds: its traces are marked as not to be recorded,
// or they would bury those of messages.
const look = (path) =>
  request("GET", path, { headers: { traceparent: `00-${newId()}-${newId().slice(16)}-00` } });

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// The same call again while nobody answers: the idempotency key makes that harmless.
async function persistently(call) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call();
    } catch (error) {
      const again = !(error instanceof ApiError) || error.status === 503;
      if (!again || attempt >= 6) throw error;
      await pause(300 * attempt);
    }
  }
}

const session = (key) => `/v1/sessions/${encodeURIComponent(key)}`;

const agent = (id) => `/v1/acp/sessions/${encodeURIComponent(id)}`;

let server = null;

export const api = {
  sessions: () => look("/v1/sessions?page_size=100"),
  session: (key) => request("GET", session(key)),
  agents: () => look("/v1/agents"),
  models: () => look("/v1/models?page_size=100"),
  commands: () => request("POST", "/v1/commands", { body: { text: "/help" } }),
  lanes: () => look("/v1/lanes?kind=global"),
  messages: (key) => request("GET", `${session(key)}/messages?page_size=500`),
  flowHead: (id) => request("GET", `/v1/flows/${encodeURIComponent(id)}?page_size=1`),
  // Asked once: another gateway would come with another console.
  server: () => (server ||= request("GET", "/v1/server").catch((error) => { server = null; throw error; })),
  questions: () => look("/v1/questions?page_size=500"),
  answer: (id, option) =>
    persistently(() =>
      request("POST", `/v1/questions/${encodeURIComponent(id)}`, { body: { option_id: option } }),
    ),
  explain: (id) => request("GET", `/v1/runs/${encodeURIComponent(id)}/explain`),
  send: (key, id, body) =>
    persistently(() =>
      request("POST", `${session(key)}/messages`, { body, headers: { "Idempotency-Key": id } }),
    ),
  reset: (key) => {
    const id = newId();
    return persistently(() => request("DELETE", session(key), { headers: { "Idempotency-Key": id } }));
  },
  cancelFlow: (id) =>
    request("POST", `/v1/flows/${encodeURIComponent(id)}/cancel`, {
      body: { reason: "stopped from the console" },
    }),
  harnesses: () => look("/v1/acp/harnesses?page_size=500"),
  agentSessions: () => look("/v1/acp/sessions?page_size=100"),
  spawnAgent: (body) => {
    const id = newId();
    return persistently(() =>
      request("POST", "/v1/acp/sessions", { body, headers: { "Idempotency-Key": id } }),
    );
  },
  promptAgent: (acpSessionId, id, body) =>
    persistently(() =>
      request("POST", `${agent(acpSessionId)}/prompt`, { body, headers: { "Idempotency-Key": id } }),
    ),
  cancelAgent: (id) => request("POST", `${agent(id)}/cancel`, { body: { reason: "stopped from the console" } }),
  closeAgent: (id) => request("DELETE", agent(id)),
  eventsPath: (key, parameters) => `${session(key)}/events?${new URLSearchParams(parameters)}`,
};

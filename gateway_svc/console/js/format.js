// Texts for times, figures and names.

export function seconds(milliseconds) {
  const all = Math.max(0, milliseconds) / 1000;
  if (all < 10) return `${all.toFixed(1)} s`;
  const whole = Math.round(all);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function tokens(count) {
  if (!count) return "";
  if (count < 1000) return `${count} tokens`;
  if (count < 1e6) return `${(count / 1000).toFixed(1)}k tokens`;
  return `${(count / 1e6).toFixed(1)}M tokens`;
}

export function clockTime(time) {
  return time ? new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : "";
}

export function ago(time) {
  const passed = (Date.now() - Date.parse(time)) / 1000;
  if (!(passed >= 45)) return "now";
  if (passed < 3600) return `${Math.round(passed / 60)} min`;
  if (passed < 86400) return `${Math.round(passed / 3600)} h`;
  return `${Math.round(passed / 86400)} d`;
}

// A duration of proto JSON, for example "1.250s", in milliseconds.
export function duration(text) {
  return text ? Number.parseFloat(text) * 1000 : 0;
}

export function sessionTitle(key) {
  const parts = key.split(":");
  return parts[0] === "agent" && parts.length >= 5 ? parts.slice(4).join(":") : key;
}

const STATES = {
  RUN_STATE_QUEUED: ["waiting", "wait"],
  RUN_STATE_RUNNING: ["running", "run"],
  RUN_STATE_SUSPENDED: ["waits for children", "wait"],
  RUN_STATE_CANCELLING: ["stopping", "wait"],
  RUN_STATE_SUCCEEDED: ["done", "good"],
  RUN_STATE_FAILED: ["failed", "bad"],
  RUN_STATE_CANCELLED: ["cancelled", "bad"],
  RUN_STATE_EXPIRED: ["timed out", "bad"],
};
export const stateText = (state) => (STATES[state] || ["unknown", "wait"])[0];
const WAITS = { approval: "waits for an answer", limit: "waits for a limit" };
// The state of a run with what it waits for.
export const runText = (run) =>
  (run.state === "RUN_STATE_SUSPENDED" && WAITS[run.waitsFor]) || stateText(run.state);
export const stateTone = (state) => (STATES[state] || ["unknown", "wait"])[1];
export const isTerminal = (state) => ["good", "bad"].includes(stateTone(state));

const ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };
const ordinals = new Intl.PluralRules("en", { type: "ordinal" });

// Where a waiting run stands, for example "3rd in line, about 12 s"; empty when it starts at once.
export function place(estimate) {
  const position = Number(estimate?.position || 0);
  if (!position) return "";
  const rank = position === 1 ? "next" : `${position}${ENDINGS[ordinals.select(position)]}`;
  const left = estimate.start_time ? Date.parse(estimate.start_time) - Date.parse(estimate.as_of_time) : NaN;
  if (position === 1 && left < 500) return "";
  const wait = estimate.session_lane_wait || {};
  const busy = wait.approval ? ", waiting for your approval"
    : wait.children ? ", working on your previous message" : "";
  return `${rank} in line${left >= 500 ? `, about ${seconds(left)}` : ""}${busy}`;
}

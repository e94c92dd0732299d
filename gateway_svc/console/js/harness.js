// What a harness says of its work, added up. No document, no network: events in, state out.

const DONE = "HARNESS_ITEM_STATUS_COMPLETED";
const NOW = "HARNESS_ITEM_STATUS_IN_PROGRESS";

const TONES = {
  HARNESS_ITEM_STATUS_PENDING: "wait", [NOW]: "run", [DONE]: "good", HARNESS_ITEM_STATUS_FAILED: "bad",
};
export const itemTone = (status) => TONES[status] || "wait";

// The work of one run: what its harness plans, calls, thinks and was allowed.
export function newWork(runId, time) {
  return { id: `work ${runId}`, type: "work", runId, time, plan: [], calls: [], thought: "", decided: new Map(), over: false };
}

export function update(work, updated) {
  if (updated.plan) work.plan = updated.plan.entries || [];
  else if (updated.tool_call) {
    const call = updated.tool_call;
    const at = work.calls.findIndex((known) => known.tool_call_id === call.tool_call_id);
    if (at < 0) work.calls.push(call);
    else work.calls[at] = call;
  } else if (updated.thought) work.thought = updated.thought;
}

export function decide(work, decided) {
  work.decided.set(decided.tool_call_id, decided); // a map: a harness may call it `constructor`
  if (work.calls.some((call) => call.tool_call_id === decided.tool_call_id)) return;
  const status = "HARNESS_ITEM_STATUS_PENDING";
  work.calls.push({ tool_call_id: decided.tool_call_id, title: decided.title, tool_kind: decided.tool_kind, status });
}

export function planText(plan) {
  const done = plan.filter((entry) => entry.status === DONE).length;
  return `Plan: ${done} of ${plan.length} done`;
}

// The call that it is at, for one line in the tree of a flow.
export function doing(calls) {
  return (calls.findLast((call) => call.status === NOW) || calls.at(-1))?.title || "";
}

export function decisionText(decided) {
  const how = decided.allowed ? "allowed" : "denied";
  if (decided.responder) return `${how} by ${decided.responder}`;
  const rules = { expired: "nobody answered", cancelled: "stopped", remembered: "as before", no_option: "no option fits" };
  return `${how}: ${rules[decided.rule] || decided.rule}`;
}

const STATES = {
  ACP_SESSION_STATE_STARTING: ["starting", "wait"],
  ACP_SESSION_STATE_READY: ["ready", "good"],
  ACP_SESSION_STATE_BUSY: ["working", "run"],
  ACP_SESSION_STATE_ASKING: ["asks you something", "wait"],
  ACP_SESSION_STATE_PARKED: ["parked", "none"],
  ACP_SESSION_STATE_CLOSING: ["closing", "none"],
  ACP_SESSION_STATE_CLOSED: ["closed", "none"],
  ACP_SESSION_STATE_FAILED: ["failed", "bad"],
};
export const agentState = (session) => (STATES[session.state] || ["unknown", "none"])[0];
export const agentTone = (session) => (STATES[session.state] || ["unknown", "none"])[1];
export const isAtWork = (session) => ["ACP_SESSION_STATE_BUSY", "ACP_SESSION_STATE_ASKING"].includes(session.state);
export const agentName = (session) => session.spec.label || session.spec.harness_id || "coding agent";
export const permissions = (session) =>
  (session.spec.permission_mode || "").replace("PERMISSION_MODE_", "").replace("_", "-").toLowerCase() || "as configured";
// A lane of its own, and not that of a conversation or of a sub-agent.
export const isOwnLane = (key) => /^agent:[^:]+:acp:/.test(key);

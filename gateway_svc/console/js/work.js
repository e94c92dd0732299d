// Draws what a harness does: its plan, its tool calls, and what it asks to be allowed.
import { el, keyed } from "./dom.js";
import { decisionText, itemTone, planText } from "./harness.js";

const MOST_CALLS = 12;
const MOST_LINES = 200;
const MOST_VALUE = 400;

// A unified diff, line by line.
export function diff(text) {
  const lines = text.split("\n");
  const shown = lines.slice(0, MOST_LINES).map((line) => {
    const kind = /^(---|\+\+\+|@@)/.test(line) ? "head" : { "+": "plus", "-": "minus" }[line[0]] || "same";
    return el("span", { class: kind, text: `${line}\n` });
  });
  const left = lines.length - shown.length;
  return el("pre", { class: "diff", tabindex: "0" }, ...shown, left > 0 ? `… ${left} more lines` : "");
}

const isDiff = (text) => /^--- .*\n\+\+\+ /.test(text);

// What a question is about: the command or the change first, then everything else.
export function asked(question) {
  if (!question.acp_session_id) return [];
  const { command, diff: change, ...others } = question.arguments || {};
  const shown = question.locations || [];
  const rest = Object.entries(others).filter(([, value]) => !shown.includes(value)).map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return el("div", { class: "argument" },
      el("span", { class: "name", text: name }), el("code", { text: text.length > MOST_VALUE ? `${text.slice(0, MOST_VALUE)}…` : text }));
  });
  return [
    typeof command === "string" ? el("pre", { class: "command", text: `$ ${command}` }) : "",
    typeof change === "string" ? diff(change) : "",
    ...rest,
  ].filter(Boolean);
}

export function drawWork(node, work) {
  node.className = work.over ? "card work over" : "card work";
  if (!node.firstElementChild) {
    node.replaceChildren(
      el("div", { class: "card-head" }), el("ol", { class: "plan" }), el("p", { class: "earlier" }), el("ul", { class: "calls" }),
    );
  }
  const [head, plan, earlier, calls] = node.children;
  const title = work.plan.length ? planText(work.plan) : "Steps";
  head.replaceChildren(el("span", { class: "card-title", text: title }));
  plan.hidden = !work.plan.length;
  keyed(plan, work.plan.map((entry, index) => ({ ...entry, index })), (entry) => String(entry.index),
    () => el("li"), (item, entry) => {
      item.className = itemTone(entry.status);
      if (item.textContent !== entry.content) item.textContent = entry.content || "";
    });
  const shown = work.calls.slice(-MOST_CALLS);
  const left = work.calls.length - shown.length;
  earlier.hidden = !left;
  earlier.textContent = `${left} earlier`;
  keyed(calls, shown, (call) => call.tool_call_id, () => el("li"), (item, call) => drawCall(item, call, work));
}

// Only what changed is drawn again, so that an output which somebody opened stays open.
function drawCall(node, call, work) {
  const decided = work.decided.get(call.tool_call_id);
  const signature = JSON.stringify([call, decided, work.over]);
  if (node.signature === signature) return;
  node.signature = signature;
  const wasOpen = node.querySelector("details")?.open;
  const tone = itemTone(call.status);
  node.className = `call ${work.over && tone === "run" ? "wait" : tone}`;
  const output = (call.output || []).map((part) => part.text || "").join("\n");
  const paths = (call.locations || []).filter((path) => !(call.title || "").includes(path));
  node.replaceChildren(
    el("span", { class: "mark", "aria-hidden": "true" }),
    el("div", { class: "call-head" },
      el("span", { class: "call-title", text: call.title || call.tool_kind || "a tool" }),
      ...paths.slice(0, 3).map((path) => el("code", { text: path })),
      decided ? el("span", { class: `tag ${decided.allowed ? "good" : "bad"}`, text: decisionText(decided) }) : ""),
    output.trim() ? el("details", { open: Boolean(wasOpen) }, el("summary", { text: isDiff(output) ? "change" : "output" }),
      isDiff(output) ? diff(output) : el("pre", { class: "output", tabindex: "0", text: output })) : "",
  );
}

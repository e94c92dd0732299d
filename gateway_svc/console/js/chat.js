// Draws the timeline of a session.
import { byId, el, keyed } from "./dom.js";
import { clockTime, duration, place, seconds, stateText, stateTone, tokens } from "./format.js";
import { markdown } from "./markdown.js";
import { asked, drawWork } from "./work.js";

const EXAMPLE = "Do three things: research a market trend, analyse competitors, draft a summary";

export class ChatView {
  // `answer` gets the item of a question and the id of an option.
  constructor(onExample, answer) {
    this.answer = answer;
    this.log = byId("log");
    this.spoken = byId("spoken");
    this.onExample = onExample;
    this.said = new Set();
  }

  show(model) {
    if (this.model !== model) {
      this.log.replaceChildren();
      this.said = new Set();
      this.model = model;
    }
    const { log } = this;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    const items = [...model.items.values()];
    keyed(log, items.length ? items : [{ id: "empty", type: "empty" }], (item) => item.id,
      () => el("li"), (node, item) => this.draw(node, item));
    if (atEnd) log.scrollTop = log.scrollHeight;
    this.speak(items);
  }

  draw(node, item) {
    if (item.type === "question") {
      drawQuestion(node, item, this.answer);
      return;
    }
    if (item.type === "work") {
      drawWork(node, item);
      return;
    }
    const estimate = item.runId ? this.model.estimates.get(item.runId) : null;
    const signature = JSON.stringify([item, item.mine ? estimate : null]);
    if (node.signature === signature) return;
    node.signature = signature;
    if (item.type === "announcement") drawAnnouncement(node, item);
    else if (item.type === "note") {
      node.className = item.bad ? "note bad" : "note";
      node.textContent = item.text;
    } else if (item.type === "answer") {
      node.className = "answer";
      node.replaceChildren(...markdown(item.text));
    } else if (item.type === "empty") this.drawEmpty(node);
    else if (item.kind === "MESSAGE_KIND_INTERNAL") {
      node.className = "aside";
      node.replaceChildren(...markdown(item.text));
    } else drawMessage(node, item, estimate);
  }

  drawEmpty(node) {
    node.className = "empty";
    node.replaceChildren(
      el("p", { text: "Nothing has been said here yet." }),
      el("p", { class: "try" }, el("button", { type: "button", text: EXAMPLE, onclick: () => this.onExample(EXAMPLE) })),
    );
  }

  // Screen readers hear whole replies, not every piece of them.
  speak(items) {
    for (const item of items) {
      if (item.streaming || item.pending || this.said.has(item.id)) continue;
      this.said.add(item.id);
      if (!this.model.live || item.mine) continue;
      if (item.type === "announcement") this.spoken.textContent = `${nameOf(item.result)}: ${stateText(item.result.status)}`;
      else if (item.type === "question") this.spoken.textContent = `Question: ${item.question.title}`;
      else if (item.text) this.spoken.textContent = item.text;
    }
  }
}

function drawMessage(node, item, estimate) {
  const kinds = ["row", item.mine ? "mine" : "agent"];
  if (item.pending) kinds.push("pending");
  if (item.streaming) kinds.push("streaming");
  if (item.kind === "MESSAGE_KIND_INTERIM") kinds.push("interim");
  node.className = kinds.join(" ");
  if (item.streaming) node.setAttribute("aria-busy", "true");
  else node.removeAttribute("aria-busy");
  const bubble = el("div", { class: "bubble" }, ...markdown(item.text || ""));
  node.replaceChildren(bubble, el("span", { class: item.problem ? "meta bad-text" : "meta", text: metaOf(item, estimate) }));
}

function metaOf(item, estimate) {
  if (item.problem) return `Not sent: ${item.problem}`;
  if (item.pending) return "sending…";
  if (item.streaming) return "writing…";
  const where = item.mine ? place(estimate) : "";
  return where ? `${clockTime(item.time)} · ${where}` : clockTime(item.time);
}

const nameOf = (result) => result.label || "sub-agent";

function drawAnnouncement(node, item) {
  const { result } = item;
  const tone = stateTone(result.status);
  node.className = tone === "bad" ? "card bad" : "card";
  const usage = result.usage || {};
  const figures = [
    result.duration ? seconds(duration(result.duration)) : "",
    tokens(Number(usage.input_tokens || 0) + Number(usage.output_tokens || 0)),
    item.left ? `${item.left} still at work` : "",
  ].filter(Boolean).join(" · ");
  const text = el("div", { class: "card-text" }, ...markdown(result.text || ""));
  node.replaceChildren(
    el("div", { class: "card-head" },
      el("span", { class: "card-title", text: nameOf(result) }),
      el("span", { class: `tag ${tone}`, text: stateText(result.status) }),
      el("span", { class: "card-figures", text: figures })),
    result.error ? el("div", { class: "card-text bad-text", text: result.error.message || "" }) : text,
  );
}

// The countdown moves without new buttons: one of them may be just under a finger.
function drawQuestion(node, item, answer) {
  const { question, closed } = item;
  const signature = JSON.stringify(item);
  if (node.signature !== signature) {
    node.signature = signature;
    node.className = closed ? "card" : "card question";
    const buttons = inOrder(question.options || []).map((option) =>
      el("button", {
        type: "button", class: "small", text: option.name, disabled: Boolean(item.sending),
        "aria-pressed": item.sending === option.option_id ? "true" : undefined,
        onclick: () => answer(item, option.option_id),
      }));
    node.replaceChildren(
      el("div", { class: "card-head" },
        el("span", { class: "card-title", text: `Question ${question.number}: ${question.title}` }),
        closed ? el("span", { class: `tag ${closedTone(closed)}`, text: closedText(closed) }) : "",
        el("span", { class: "card-figures" })),
      ...(question.locations || []).filter((path) => !question.title.includes(path)).map((path) => el("div", { class: "card-text" }, el("code", { text: path }))),
      ...whatIsAsked(question, closed),
      closed ? "" : el("div", { class: "options", role: "group", "aria-label": question.title }, ...buttons),
      item.problem ? el("div", { class: "card-text bad-text", text: item.problem }) : "",
    );
  }
  const left = closed ? "" : `${seconds(Date.parse(question.expire_time) - Date.now())}, then ${defaultOf(question)}`;
  const figures = node.querySelector(".card-figures");
  if (figures.textContent !== left) figures.textContent = left;
}

// What was decided about is still there to be looked at.
function whatIsAsked(question, closed) {
  const about = asked(question);
  return closed && about.length ? [el("details", {}, el("summary", { text: "what it was" }), ...about)] : about;
}

// Harnesses name them in any order. What holds for once goes first: it is what a hasty finger hits.
const ORDER = ["ALLOW_ONCE", "REJECT_ONCE", "ALLOW_ALWAYS", "REJECT_ALWAYS"].map((kind) => `QUESTION_OPTION_KIND_${kind}`);
const inOrder = (options) => [...options].sort((one, other) => ORDER.indexOf(one.kind) - ORDER.indexOf(other.kind));

const defaultOf = (question) =>
  question.options.find((option) => option.option_id === question.default_option_id)?.name || "rejected";

function closedText(closed) {
  const taken = closed.option_name || "rejected";
  if (closed.state === "QUESTION_STATE_ANSWERED") return `${taken} (${closed.answer.responder})`;
  return closed.state === "QUESTION_STATE_EXPIRED" ? `nobody answered: ${taken}` : "not needed any more";
}

const closedTone = (closed) => (closed.state === "QUESTION_STATE_ANSWERED" ? "good" : "wait");

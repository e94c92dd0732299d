// Puts the parts together: which session is shown, what is sent, what is drawn when.
import { Agents } from "./agents.js";
import { api, newId } from "./api.js";
import { ChatView } from "./chat.js";
import { Completion } from "./commands.js";
import { byId, el, keyed } from "./dom.js";
import { ago, isTerminal, sessionTitle } from "./format.js";
import { agentName, isOwnLane } from "./harness.js";
import { drawLanes } from "./lanes.js";
import { drawModels } from "./models.js";
import { SessionModel } from "./model.js";
import { SessionStream } from "./stream.js";
import { hasToken, onSignIn } from "./token.js";
import { FlowTraces, told, traceMark } from "./trace.js";
import { TreeView } from "./tree.js";

const HOME = "agent:main:http:direct:local";
const LANES_EVERY = 1500;
const SESSIONS_EVERY = 8000;
const MODELS_EVERY = 30000;

const views = new Map(); // session key to { model, stream, state }
let current = "";
let sessions = [];
let asking = new Set(); // session keys in which somebody is asked something
let drawing = false;
let chosen = Promise.resolve(); // which session is shown first, with a token

const chat = new ChatView((example) => { textbox.value = example; grow(); textbox.focus(); }, answer);
const tree = new TreeView(
  (flowId) => attempt(api.cancelFlow(flowId)), (runId) => attempt(api.explain(runId)), new FlowTraces(api, redraw),
);
const textbox = byId("composer-text");
const problem = byId("problem");
const agents = new Agents({ open, changed: redraw, problem: say, conversation: () => conversation });
let conversation = HOME; // the one that was shown last: a coding agent may be let to answer it

function view(key) {
  let found = views.get(key);
  if (!found) {
    found = { model: new SessionModel(key), stream: null, state: "off" };
    views.set(key, found);
  }
  return found;
}

function follow(key) {
  const shown = view(key);
  shown.stream?.close();
  shown.stream = new SessionStream(key, {
    message: (response) => {
      shown.model.take(response);
      if (response.event?.run_state_changed && shown.model.live) soonLanes();
      if (shown.model.live && (response.event?.run_state_changed || response.event?.question_asked)) agents.soon();
      redraw();
    },
    state: (state) => {
      shown.state = state;
      // It was asked for before its first message, and answered after it.
      if (state === "none" && shown.begun && key === current) {
        shown.begun = false;
        follow(key);
      }
      redraw();
    },
    compacted: () => loadOld(key),
  }, shown.stream?.token || "");
}

// The log has been cut: what was said is in the transcript, the trees of then are gone.
async function loadOld(key) {
  const { messages = [] } = await api.messages(key).catch(() => ({}));
  const { model } = view(key);
  for (const message of messages) {
    if (model.items.has(message.message_id)) continue;
    model.items.set(message.message_id, {
      id: message.message_id, type: "message", mine: message.role === "ROLE_USER", time: message.create_time,
      text: (message.parts || []).map((part) => part.text || "").join("\n"),
    });
  }
  redraw();
}

function open(key) {
  if (current && current !== key) {
    const before = views.get(current);
    before?.stream?.close();
    if (before) before.state = "off";
  }
  current = key;
  if (!isOwnLane(key)) conversation = key;
  if (decodeURIComponent(location.hash.slice(1)) !== key) history.replaceState(null, "", `#${encodeURIComponent(key)}`);
  document.title = `${titleOf(key)} · Conveyor`;
  problem.hidden = true;
  follow(key);
  redraw();
}

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

function draw() {
  if (!current) return; // not chosen yet
  const { model, state } = view(current);
  chat.show(model);
  tree.show(model);
  byId("chat-title").textContent = titleOf(current);
  const known = sessions.find((session) => session.session_key === current);
  byId("chat-meta").textContent = known ? `agent ${known.agent_id} · customer ${known.customer_key}` : current;
  const own = isOwnLane(current);
  byId("reset").hidden = state === "none" || own;
  textbox.placeholder = own ? "Tell it what to do" : "Ask for one thing, or for several";
  const link = byId("link");
  link.dataset.state = state === "none" ? "live" : state;
  byId("link-text").textContent = { live: "live", lost: "reconnecting", none: "ready" }[state] || "connecting";
  drawSessions();
  agents.draw(current);
}

function titleOf(key) {
  const agent = agents.of(key);
  return agent && isOwnLane(key) ? agentName(agent) : sessionTitle(key);
}

function drawSessions() {
  const shown = [...sessions];
  // A coding agent is in a list of its own; the conversation that one came from stays in this one.
  if (!shown.some((session) => session.session_key === conversation)) shown.unshift({ session_key: conversation });
  keyed(byId("session-list"), shown, (session) => session.session_key, (session) =>
    el("li", {}, el("button", { type: "button", class: "session", onclick: () => open(session.session_key) })),
  (item, session) => {
    const button = item.firstElementChild;
    const busy = isBusy(session);
    const title = sessionTitle(session.session_key);
    const sub = asking.has(session.session_key) ? "asks you something" : busy ? "working" : session.agent_id ? `agent ${session.agent_id}` : "new";
    const when = session.active_time ? ago(session.active_time) : "";
    button.setAttribute("aria-current", String(session.session_key === current));
    button.title = session.session_key;
    const signature = [title, sub, when].join("\u0000");
    if (button.signature === signature) return;
    button.signature = signature;
    button.replaceChildren(
      el("span", { class: "title", text: title }),
      el("span", { class: "when", text: when }),
      el("span", { class: busy ? "sub busy" : "sub", text: sub }),
    );
  });
}

// Of the session that is shown we know more than the list does.
function isBusy(session) {
  if (session.session_key !== current) return Boolean(session.run_id);
  const { model } = view(current);
  return model.flows.some((id) => !isTerminal(model.runs.get(id).state));
}

async function send(text) {
  await chosen;
  const key = current;
  const { model } = view(key);
  const id = newId();
  const messageId = `in-${id}`; // as the gateway names it
  model.expect(messageId, text);
  redraw();
  const mode = byId("mode").value;
  try {
    const body = mode ? { text, queue_mode: mode } : { text };
    const answer = await (isOwnLane(key) ? prompt(key, id, body) : api.send(key, id, body));
    model.accepted(messageId, answer);
    view(key).begun = true;
    if (view(key).state === "none" && key === current) follow(key);
    loadSessions();
  } catch (error) {
    model.refuse(messageId, told(error));
  }
  redraw();
}

// A coding agent with a lane of its own takes prompts by its id: the last part of its key.
function prompt(key, id, body) {
  return api.promptAgent(agents.of(key)?.acp_session_id || key.split(":").at(-1), id, body);
}

// The event that closes the question shows what came of it.
async function answer(item, option) {
  Object.assign(item, { sending: option, problem: "" });
  redraw();
  try {
    await api.answer(item.question.question_id, option);
    loadSessions();
  } catch (error) {
    Object.assign(item, { sending: "", problem: told(error) });
  }
  redraw();
}

function say(text, error) {
  problem.replaceChildren(text, traceMark(error?.traceId, error?.traceUrl));
  problem.hidden = !text;
}

async function attempt(promise) {
  try {
    say("");
    return await promise;
  } catch (error) {
    say(error.message, error);
    return null;
  }
}

async function loadSessions() {
  try {
    const [listed, open] = await Promise.all([api.sessions(), api.questions()]);
    sessions = listed.sessions || [];
    byId("brand").title ||= `Conveyor ${(await api.server()).server.version}`;
    asking = new Set((open.questions || []).map((question) => question.root_session_key));
    redraw();
  } catch { /* the link state already says that the gateway is gone */ }
}

async function loadLanes() {
  try {
    drawLanes((await api.lanes()).lanes || []);
  } catch { /* as above */ }
}

// A run changed its state, so a slot did too: ask now, but not for each of many.
let lanesAsked = false;
function soonLanes() {
  if (lanesAsked) return;
  lanesAsked = true;
  setTimeout(() => { lanesAsked = false; loadLanes(); }, 200);
}

function every(milliseconds, work) {
  const round = async () => {
    if (!document.hidden) await work();
    setTimeout(round, milliseconds);
  };
  round();
}

function grow() {
  textbox.style.height = "auto";
  textbox.style.height = `${Math.min(200, textbox.scrollHeight + 2)}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = textbox.value.trim();
  if (!text) return;
  textbox.value = "";
  grow();
  completion.hide();
  send(text);
});
const completion = new Completion(textbox, byId("commands"));
textbox.addEventListener("input", () => { grow(); completion.show(); });
textbox.addEventListener("keydown", (event) => {
  if (completion.key(event)) return;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});
async function newKey() {
  const known = (await api.agents().catch(() => ({}))).agents || [];
  const agent = known.some((found) => found.agent_id === "main") ? "main" : known[0]?.agent_id || "main";
  return `agent:${agent}:http:direct:${newId().slice(0, 8)}`;
}

byId("new-session").addEventListener("click", async () => {
  open(await newKey());
  textbox.focus();
});
byId("reset").addEventListener("click", async () => {
  const answer = await attempt(api.reset(current));
  if (!answer) return;
  const { model } = view(current);
  const id = `note reset ${answer.epoch || 0}`;
  model.items.set(id, { id, type: "note", text: "Forgotten: later messages begin afresh." });
  redraw();
});
window.addEventListener("hashchange", () => {
  const key = decodeURIComponent(location.hash.slice(1));
  if (key && key !== current) open(key);
});

// Without tokens everybody here shares one session to begin with; who has one begins with its own.
async function openOwn() {
  await loadSessions();
  open(sessions[0]?.session_key || (await newKey()));
}

// One at a time: a choice that waits for a token goes on with the next one, and a second choice
// would later replace the conversation in which somebody already writes.
let choosing = null;
function chooseOwn() {
  choosing ||= openOwn().finally(() => { choosing = null; });
  chosen = choosing;
}

const asked = decodeURIComponent(location.hash.slice(1));
if (asked || !hasToken()) open(asked || HOME);
else chooseOwn();
onSignIn(() => { if (!asked && current === HOME) chooseOwn(); });
every(LANES_EVERY, loadLanes);
every(SESSIONS_EVERY, loadSessions);
agents.start(every);
every(MODELS_EVERY, async () => {
  const found = await api.models().catch(() => null);
  if (found) drawModels(found.models || []);
});
// Running times move although nothing happens.
every(500, async () => {
  const { model } = view(current);
  if ([...model.runs.values()].some((run) => !isTerminal(run.state))) redraw();
});

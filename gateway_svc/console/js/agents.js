// Coding agents: which sessions are open, a new one, and what can be done with the one that is shown.
import { api, ApiError } from "./api.js";
import { byId, el, keyed } from "./dom.js";
import { agentName, agentState, agentTone, isAtWork, permissions } from "./harness.js";
import { told } from "./trace.js";

const EVERY = 3000;

const place = (path) => (path || "").replace(/\/+$/, "").split("/").pop() || "/";

export class Agents {
  // `on.open(key)` shows a lane, `on.changed()` draws, `on.problem(text, error)` says what went wrong.
  constructor(on) {
    this.on = on;
    this.sessions = [];
    this.off = false; // ACP is switched off: nothing to ask for any more
    this.form = byId("agent-form");
    this.dialog = byId("agent-dialog");
    byId("new-agent").addEventListener("click", () => this.ask());
    byId("agent-dismiss").addEventListener("click", () => this.dialog.close());
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.spawn(); });
    byId("agent-cancel").addEventListener("click", () => this.act((id) => api.cancelAgent(id)));
    byId("agent-close").addEventListener("click", () => this.act((id) => api.closeAgent(id)));
  }

  // The session that works in a lane.
  of(key) {
    return this.sessions.find((session) => session.spec.session_key === key);
  }

  async load() {
    if (this.off) return;
    try {
      this.sessions = (await api.agentSessions()).sessions || [];
      byId("agents").hidden = false;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status === 503) return; // away: it may come back
      this.off = true;
      this.sessions = [];
      byId("agents").hidden = true;
    }
    this.on.changed();
  }

  // Something happened in a lane: look soon, but not for each of many.
  soon() {
    if (this.asked || this.off) return;
    this.asked = true;
    setTimeout(() => { this.asked = false; this.load(); }, 250);
  }

  start(every) {
    every(EVERY, () => this.load());
  }

  draw(current) {
    byId("no-agents").hidden = this.sessions.length > 0;
    keyed(byId("agent-list"), this.sessions, (session) => session.acp_session_id, (session) =>
      el("li", {}, el("button", { type: "button", class: "session", onclick: () => this.on.open(session.spec.session_key) })),
    (item, session) => {
      const button = item.firstElementChild;
      const parts = [agentName(session), agentState(session), `${place(session.spec.cwd)} · ${permissions(session)}`];
      button.setAttribute("aria-current", String(session.spec.session_key === current));
      button.title = `${session.spec.harness_id} in ${session.spec.cwd}`;
      const signature = parts.join("\u0000");
      if (button.signature === signature) return;
      button.signature = signature;
      button.replaceChildren(
        el("span", { class: "title", text: parts[0] }),
        el("span", { class: `tag ${agentTone(session)}`, text: parts[1] }),
        el("span", { class: "sub", text: parts[2] }),
      );
    });
    this.drawBar(this.of(current));
  }

  drawBar(session) {
    this.shown = session;
    byId("agent-bar").hidden = !session;
    if (!session) return;
    const { spec } = session;
    const facts = [
      `${agentName(session)}${spec.label ? ` (${spec.harness_id})` : ""}`, spec.cwd, `permissions ${permissions(session)}`,
      session.harness_mode ? `mode ${session.harness_mode}` : "", spec.model ? `model ${spec.model}` : "",
      session.sandboxed ? "sandboxed" : "",
    ].filter(Boolean);
    const tag = byId("agent-state");
    tag.className = `tag ${agentTone(session)}`;
    tag.textContent = agentState(session);
    byId("agent-facts").textContent = facts.join(" · ");
    byId("agent-cancel").hidden = !isAtWork(session);
  }

  async act(call) {
    if (!this.shown) return;
    try {
      await call(this.shown.acp_session_id);
      this.on.problem("");
    } catch (error) {
      this.on.problem(error.message, error);
    }
    this.load();
  }

  async ask() {
    byId("agent-problem").hidden = true;
    this.dialog.showModal();
    const { harnesses = [] } = await api.harnesses().catch(() => ({}));
    const allowed = harnesses.filter((harness) => harness.allowed);
    allowed.sort((one, other) => Number(Boolean(other.installed)) - Number(Boolean(one.installed)));
    const chosen = this.form.harness.value;
    this.form.harness.replaceChildren(...allowed.map((harness) =>
      el("option", { value: harness.harness_id, text: harness.installed ? harness.display_name : `${harness.display_name} (not installed)` })));
    if (allowed.some((harness) => harness.harness_id === chosen)) this.form.harness.value = chosen;
  }

  async spawn() {
    const { harness, cwd, label, permissions: mode, task, bind } = this.form;
    const body = { harness_id: harness.value, cwd: cwd.value.trim(), label: label.value.trim(), return_starting: true };
    if (mode.value) body.permission_mode = mode.value;
    if (task.value.trim()) body.text = task.value.trim();
    if (bind.checked) body.bind_session_key = this.on.conversation();
    const problem = byId("agent-problem");
    try {
      const answer = await api.spawnAgent(body);
      this.dialog.close();
      task.value = "";
      await this.load();
      this.on.open(answer.session.spec.session_key);
    } catch (error) {
      problem.textContent = told(error);
      problem.hidden = false;
    }
  }
}

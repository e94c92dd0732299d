// What one session's events add up to. No document, no network: events in, state out.
import { isTerminal } from "./format.js";
import { decide, doing, newWork, update } from "./harness.js";

const REPLY = "MESSAGE_KIND_REPLY";

// The name of a coding agent that was started from here and works in a lane of its own.
function beside(event) {
  return /^agent:([^:]+):acp:[^:]+$/.exec(event.session_key)?.[1] || "";
}

export class SessionModel {
  constructor(key) {
    this.key = key;
    this.items = new Map(); // the timeline, in order of arrival
    this.runs = new Map();
    this.flows = []; // run ids of roots, oldest first
    this.estimates = new Map();
    this.live = false;
    this.seen = new Map(); // session key to its newest sequence: repeated events do nothing
  }

  // Show a message at once, before the gateway has it.
  expect(messageId, text) {
    this.items.set(messageId, { id: messageId, type: "message", mine: true, text, pending: true, time: new Date().toISOString() });
  }

  refuse(messageId, problem) {
    const item = this.items.get(messageId);
    if (item) Object.assign(item, { pending: false, problem });
  }

  accepted(messageId, answer) {
    const run = answer.accepted?.run;
    const item = this.items.get(messageId);
    if (run && !run.run_id) { // a command: answered at once, and no event will tell of it
      if (item) item.pending = false;
      const text = (run.result?.reply?.parts || []).map((part) => part.text || "").join("");
      this.items.set(`re-${messageId}`, { id: `re-${messageId}`, type: "answer", text });
      return;
    }
    if (item && run) item.runId = run.run_id;
    if (run && answer.accepted.estimate) this.estimates.set(run.run_id, answer.accepted.estimate);
  }

  take(response) {
    if (response.event) this.event(response.event);
    else if (response.delta) this.delta(response.delta);
    else if (response.lane_position) this.estimates.set(response.lane_position.run_id, response.lane_position.estimate);
    else if (response.progress) this.live = Boolean(response.progress.live);
  }

  run(id, flowId) {
    let run = this.runs.get(id);
    if (!run) {
      run = { id, flowId, parent: "", label: "", children: [], state: "RUN_STATE_QUEUED", tokens: 0, text: "" };
      this.runs.set(id, run);
      if (id === flowId) this.flows.push(id);
    }
    return run;
  }

  event(event) {
    const sequence = Number(event.sequence);
    if (sequence <= (this.seen.get(event.session_key) || 0)) return;
    this.seen.set(event.session_key, sequence);
    const own = event.session_key === this.key;
    const run = event.run_id ? this.run(event.run_id, event.flow_id) : null;
    if (event.run_state_changed) this.stateChanged(run, event, own);
    else if (event.message_completed) this.message(run, event, own);
    else if (event.child_spawned) this.spawned(run, event);
    else if (event.child_announced) this.announced(event, own);
    else if (event.usage_reported) {
      const usage = event.usage_reported.usage || {};
      run.tokens += Number(usage.input_tokens || 0) + Number(usage.output_tokens || 0);
      const { requested_model: asked, effective_model: answered } = event.usage_reported;
      run.models = asked && answered && asked !== answered ? `${asked} → ${answered}` : "";
    } else if (event.guard_intervened) {
      run.guard = guardWords(run.guard, event.guard_intervened);
    } else if (event.note_added && own && (event.note_added.visible || event.note_added.level === "NOTE_LEVEL_WARNING")) {
      this.note(event, event.note_added.text);
    } else if (event.harness_updated) this.worked(run, event, own, (work) => update(work, event.harness_updated));
    else if (event.permission_decided) this.worked(run, event, own, (work) => decide(work, event.permission_decided));
    else if (event.question_asked) this.asked(event.question_asked.question);
    else if (event.question_closed) this.closed(event.question_closed);
    else if (event.steer_missed && own) {
      this.note(event, "Too late to steer that; it is answered on its own.");
    }
  }

  stateChanged(run, event, own) {
    const change = event.run_state_changed;
    run.state = change.state;
    run.why = "";
    run.stateTime = event.create_time;
    run.waitsFor = Object.keys(change.suspension?.condition || {})[0] || "";
    if (!change.previous_state) run.created = event.create_time;
    if (change.state === "RUN_STATE_RUNNING" && !run.started) run.started = event.create_time;
    if (isTerminal(change.state)) run.ended = event.create_time;
    if (change.state !== "RUN_STATE_QUEUED") this.estimates.delete(run.id);
    if (isTerminal(change.state)) {
      if (run.work) run.work.over = true;
      run.doing = "";
    }
    if (change.state !== "RUN_STATE_RUNNING") {
      run.text = "";
      // A piece that nobody completed belongs to an attempt that was given up.
      for (const [id, item] of this.items) if (item.streaming && item.runId === run.id) this.items.delete(id);
    }
    if ((own || beside(event)) && run.id === run.flowId && isTerminal(change.state) && change.state !== "RUN_STATE_SUCCEEDED") {
      const why = change.error?.message || change.cause || "";
      const how = { RUN_STATE_CANCELLED: "Stopped", RUN_STATE_EXPIRED: "Out of time" }[change.state] || "Failed";
      this.note(event, why ? `${how}: ${why}` : `${how}.`, change.state !== "RUN_STATE_CANCELLED");
    }
  }

  message(run, event, own) {
    const { message, kind, caught } = event.message_completed;
    if (caught) return;
    const text = (message.parts || []).map((part) => part.text ?? part.resource?.uri ?? "[attachment]").join("\n");
    if (!own) {
      run.text = kind === REPLY ? "" : run.text;
      if (kind === "MESSAGE_KIND_INPUT") run.task = text;
      const name = beside(event);
      if (name && kind === REPLY) {
        const id = message.message_id;
        this.items.set(id, { id, type: "message", mine: false, text: `${name}: ${text}`, kind, runId: event.run_id, time: event.create_time });
      }
      return;
    }
    const id = message.message_id;
    const item = this.items.get(id) || { id, type: "message" };
    Object.assign(item, {
      mine: kind === "MESSAGE_KIND_INPUT", text, kind, runId: event.run_id, time: event.create_time,
      pending: false, streaming: false, problem: undefined,
    });
    if (kind === "MESSAGE_KIND_INPUT" && run && !run.task) run.task = text;
    this.items.set(id, item);
  }

  delta(delta) {
    const run = this.runs.get(delta.run_id);
    const offset = Number(delta.offset || 0);
    if (delta.session_key !== this.key) {
      if (run) run.text = splice(run.text, offset, delta.text);
      return;
    }
    const item = this.items.get(delta.message_id);
    if (item && !item.streaming) return; // complete already
    if (item) item.text = splice(item.text, offset, delta.text);
    else {
      this.items.set(delta.message_id, {
        id: delta.message_id, type: "message", mine: false, streaming: true, kind: REPLY,
        runId: delta.run_id, text: delta.text || "", time: new Date().toISOString(),
      });
    }
  }

  spawned(parent, event) {
    const spawned = event.child_spawned;
    const child = this.run(spawned.child_run_id, event.flow_id);
    child.parent = parent.id;
    child.label = spawned.label || child.label;
    child.queue = spawned.queue;
    if (!parent.children.includes(child.id)) parent.children.push(child.id);
  }

  announced(event, own) {
    const { announcement } = event.child_announced;
    const result = announcement.result || {};
    const child = this.run(result.run_id, event.flow_id);
    child.state = result.status || child.state;
    child.ended ||= event.create_time;
    if (!own) return; // told to a child, not to this conversation
    const id = `announcement ${announcement.announcement_id}`;
    this.items.set(id, { id, type: "announcement", result, left: announcement.live_siblings || 0, time: event.create_time });
  }

  // Whichever run of a tree asks, people are asked in this conversation. After a reload the events of
  // children come behind all of ours, so a question goes to where it was asked.
  asked(question) {
    const id = `question ${question.question_id}`;
    if (this.items.has(id)) return;
    const asked = Date.parse(question.create_time);
    const items = [...this.items.values()];
    const after = items.findIndex((item) => Date.parse(item.time) > asked);
    items.splice(after < 0 ? items.length : after, 0, { id, type: "question", question, time: question.create_time });
    this.items = new Map(items.map((item) => [item.id, item]));
  }

  closed(closed) {
    const item = this.items.get(`question ${closed.answer.question_id}`);
    if (item) Object.assign(item, { closed, sending: "", problem: "" });
  }

  // In its own timeline a harness shows all that it does, in the tree of another the last of it.
  worked(run, event, own, take) {
    run.work ||= newWork(run.id, event.create_time);
    take(run.work);
    if (!own) {
      run.doing = doing(run.work.calls);
      return;
    }
    if (this.items.has(run.work.id)) return;
    this.items.set(run.work.id, run.work);
    // The answer that is being written stays below what it tells about.
    for (const [id, item] of [...this.items]) {
      if (!item.streaming || item.runId !== run.id) continue;
      this.items.delete(id);
      this.items.set(id, item);
    }
  }

  note(event, text, bad = false) {
    const id = `note ${event.session_key} ${event.sequence}`;
    this.items.set(id, { id, type: "note", text, bad, time: event.create_time });
  }

  // The tokens of a run and everything below it.
  treeTokens(id) {
    const run = this.runs.get(id);
    return run ? run.tokens + run.children.reduce((sum, child) => sum + this.treeTokens(child), 0) : 0;
  }

  nodes(id) {
    const run = this.runs.get(id);
    return run ? [run, ...run.children.flatMap((child) => this.nodes(child))] : [];
  }
}

// Offsets count code points. Text up to the offset stays, so repeated pieces do no harm.
function splice(text, offset, piece = "") {
  if (!offset) return piece;
  if (text.length < offset) return text + piece;
  return [...text].slice(0, offset).join("") + piece;
}

const GUARD_SAW = {
  GUARD_TRIGGER_FALSE_CLAIM: "false claim", GUARD_TRIGGER_IGNORED_INSTRUCTION: "ignored instruction",
  GUARD_TRIGGER_TEXTUAL_CALL: "call as text", GUARD_TRIGGER_INVENTED_RESULT: "invented result",
};
const GUARD_DID = {
  GUARD_STEP_PARSE_CALL: "made the call", GUARD_STEP_INSIST: "insisted", GUARD_STEP_FORCE_TOOL: "forced",
  GUARD_STEP_FALL_BACK_MODEL: "fell back to another model", GUARD_STEP_DELIVER_WITH_NOTE: "delivered with a note",
};

// What the delegation guard did in a run so far, one step after the other.
function guardWords(before, did) {
  const step = GUARD_DID[did.step] || "stepped in";
  return before ? `${before} → ${step}` : `guard: ${GUARD_SAW[did.trigger] || "caught a reply"} → ${step}`;
}

// Draws one flow as a tree with states, times and tokens.
import { byId, el, keyed } from "./dom.js";
import { isTerminal, place, runText, seconds, stateTone, tokens } from "./format.js";
import { traceMark } from "./trace.js";

export class TreeView {
  // `traces` knows the trace of a flow; without one none is shown.
  constructor(onStop, explain, traces = { of: () => null }) {
    this.explain = explain;
    this.traces = traces;
    this.tree = byId("tree");
    this.summary = byId("flow-summary");
    this.trace = byId("flow-trace");
    this.pick = byId("flow-pick");
    this.stop = byId("stop");
    this.chosen = "";
    this.stop.addEventListener("click", () => this.flowId && onStop(this.flowId));
    this.pick.addEventListener("change", () => {
      this.chosen = this.pick.value;
      if (this.model) this.show(this.model);
    });
  }

  show(model) {
    if (this.model !== model) {
      this.model = model;
      this.chosen = "";
      this.tree.replaceChildren();
    }
    const newest = model.flows.at(-1) || "";
    // What was chosen by hand stays until something new begins.
    if (newest !== this.newest) this.chosen = "";
    this.newest = newest;
    this.flowId = this.chosen || newest;
    const root = model.runs.get(this.flowId);
    this.drawPick();
    this.drawTrace(root);
    this.stop.hidden = !root || isTerminal(root.state);
    if (!root) {
      this.summary.replaceChildren();
      this.tree.replaceChildren(el("p", { class: "empty", text: "The tree of the current request grows here." }));
      return;
    }
    const nodes = model.nodes(root.id);
    const live = nodes.filter((run) => !isTerminal(run.state)).length;
    this.summary.replaceChildren(
      el("span", { text: `${nodes.length} ${nodes.length === 1 ? "run" : "runs"}${live ? `, ${live} live` : ""}` }),
      el("span", { text: elapsed(root) }),
      el("span", { text: tokens(model.treeTokens(root.id)) || "no tokens yet" }),
    );
    let list = this.tree.firstElementChild;
    if (!list || list.localName !== "ul") {
      list = el("ul");
      this.tree.replaceChildren(list);
    }
    this.level(list, [root]);
  }

  // Made anew only when it changes: what is clicked or selected must not go away meanwhile.
  drawTrace(root) {
    const { id, url } = (root && this.traces.of(root.id)) || { id: "", url: "" };
    if (this.trace.shown === `${id} ${url}`) return;
    this.trace.shown = `${id} ${url}`;
    this.trace.replaceChildren(traceMark(id, url));
  }

  drawPick() {
    const flows = this.model.flows.slice(-30).reverse();
    this.pick.hidden = flows.length < 2;
    keyed(this.pick, flows, (id) => id, (id) => el("option", { value: id }), (node, id) => {
      const run = this.model.runs.get(id);
      const text = (run.label || run.task || id).replace(/\s+/g, " ").slice(0, 40);
      if (node.textContent !== text) node.textContent = text;
    });
    this.pick.value = this.flowId;
  }

  level(list, runs) {
    keyed(list, runs, (run) => run.id, () => el("li", {}, el("div")), (item, run) => {
      this.node(item.firstElementChild, run);
      const children = run.children.map((id) => this.model.runs.get(id)).filter(Boolean);
      let below = item.children[1];
      if (!children.length) return;
      if (!below) {
        below = el("ul");
        item.append(below);
      }
      this.level(below, children);
    });
  }

  async why(run) {
    const { explanation } = (await this.explain(run.id)) || {};
    if (!explanation) return;
    const state = explanation.run?.state || run.state;
    run.why = [place(explanation.estimate), ...(explanation.reasons || []).map((reason) => reason.text)]
      .filter(Boolean).join("\n");
    // It moved on while we asked: what was true of the state before is of no use.
    if (state !== run.state) run.why = "";
    this.show(this.model);
  }

  node(node, run) {
    const tone = stateTone(run.state);
    const name = run.label || (run.parent ? run.task || "sub-agent" : run.task || "request");
    const parts = [
      name, run.state, run.waitsFor, elapsed(run), run.tokens, run.models, run.guard, run.text, run.why, run.doing,
    ];
    const signature = parts.join("\u0000");
    if (node.signature === signature) return;
    node.signature = signature;
    node.className = `node ${tone}`;
    node.replaceChildren(
      el("span", { class: "mark", "aria-hidden": "true" }),
      el("div", { class: "name", text: name.length > 140 ? `${name.slice(0, 139)}…` : name }),
      el("div", { class: "figures" },
        el("span", { class: `tag ${tone}`, text: runText(run) }),
        el("span", { text: elapsed(run) }),
        el("span", { text: tokens(run.tokens) }),
        run.models ? el("span", { class: "told", text: run.models }) : "",
        run.guard ? el("span", { class: "told", text: run.guard }) : "",
        tone === "wait" ? el("button", { type: "button", class: "why", text: "why?", onclick: () => this.why(run) }) : ""),
      run.why ? el("div", { class: "reasons", role: "status", text: run.why }) : "",
      run.doing ? el("div", { class: "live", text: run.doing }) : "",
      run.text ? el("div", { class: "live", text: run.text.slice(-160) }) : "",
    );
  }
}

function elapsed(run) {
  const from = run.started || run.created;
  if (!from) return "";
  const until = run.ended ? Date.parse(run.ended) : Date.now();
  return seconds(until - Date.parse(from));
}

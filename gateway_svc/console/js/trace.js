// Where the trace of a flow or of a failed call is: a link when the gateway names a page that shows
// traces, else the id, which a click selects whole.
import { el } from "./dom.js";

const RECORDED = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]$/;
const AGAIN_MS = 10000;

export function traceMark(id, url) {
  if (!id) return "";
  if (!/^https?:/.test(url || "")) return el("code", { class: "trace", title: "Trace id", text: id });
  return el("a", { class: "trace", href: url, target: "_blank", rel: "noopener noreferrer", title: `Trace ${id}`, text: "Trace" });
}

// What went wrong, where only text fits.
export const told = (error) => (error.traceId ? `${error.message} (trace ${error.traceId})` : error.message);

export class FlowTraces {
  // `changed()` draws again, once the trace of a flow became known.
  constructor(api, changed) {
    this.api = api;
    this.changed = changed;
    this.known = new Map();
    this.asked = new Map();
    this.template = null; // not known yet
  }

  // The trace of a flow as `{ id, url }`; nothing while it is not known, or when there is none.
  of(flowId) {
    const found = this.known.get(flowId);
    if (!found && Date.now() - (this.asked.get(flowId) || 0) > AGAIN_MS) this.ask(flowId);
    return found;
  }

  async ask(flowId) {
    this.asked.set(flowId, Date.now());
    try {
      this.template ??= (await this.api.server()).server?.trace_url_template || "";
      const { flow, nodes = [] } = await this.api.flowHead(flowId);
      const id = flow?.trace_id || "";
      // A page would show nothing of a trace that was not recorded.
      const shown = id && this.template && RECORDED.test(nodes[0]?.trace?.traceparent || "");
      this.known.set(flowId, { id, url: shown ? this.template.replace("{trace_id}", id) : "" });
      this.changed();
    } catch { /* asked again later; the link state says when the gateway is gone */ }
  }
}

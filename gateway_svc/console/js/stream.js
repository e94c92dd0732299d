// Follows the events of one session for as long as it is shown, across every kind of interruption.
import { api, ApiError } from "./api.js";
import { fetchAs } from "./token.js";

const SILENCE = 40_000; // the gateway says something every 15 s

// Calls `on.message(response)` for each `WatchSessionResponse`, `on.state("live" | "lost" | "none")`,
// and `on.compacted()` when the log no longer reaches back to where we were.
export class SessionStream {
  constructor(key, on, token = "") {
    this.key = key;
    this.on = on;
    this.token = token;
    this.parameters = { include_descendants: "1" };
    this.abort = null;
    this.closed = false;
    this.run();
  }

  close() {
    this.closed = true;
    this.abort?.abort();
  }

  async run() {
    let failures = 0;
    while (!this.closed) {
      try {
        await this.once(() => { failures = 0; });
      } catch (error) {
        if (this.closed) return;
        if (error instanceof ApiError && error.status === 404) {
          this.on.state("none"); // its first message creates it; whoever sends opens a new stream
          return;
        }
        if (error instanceof ApiError && error.status === 410) {
          this.token = "";
          this.parameters = { ...this.parameters, from_now: "1" };
          this.on.compacted();
          continue;
        }
        failures += 1;
        this.on.state("lost");
      }
      if (this.closed) return;
      const wait = failures ? Math.random() * Math.min(8000, 400 * 2 ** failures) : 50;
      await new Promise((done) => setTimeout(done, wait));
    }
  }

  async once(worked) {
    this.abort = new AbortController();
    let watchdog = setTimeout(() => this.abort.abort(), SILENCE);
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => this.abort.abort(), SILENCE);
    };
    try {
      const headers = this.token ? { "Last-Event-ID": this.token } : {};
      const response = await fetchAs(api.eventsPath(this.key, this.parameters), {
        headers, signal: this.abort.signal, cache: "no-store",
      });
      if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
      this.on.state("live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        alive();
        worked();
        const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
        rest = parts.pop();
        for (const part of parts) this.take(part);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  take(block) {
    let id = null;
    let name = "";
    const data = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) id = line.slice(4);
      else if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data.push(line.slice(6));
    }
    if (!data.length) return;
    const content = JSON.parse(data.join("\n"));
    if (name === "failure") {
      throw new ApiError(content.error.reason === "EVENTS_COMPACTED" ? 410 : 500, content);
    }
    this.on.message(content);
    if (id !== null) this.token = id; // only now: a message that failed here comes again
  }
}

// Draws the global lanes: how many slots are busy, how many runs wait.
import { byId, el, keyed } from "./dom.js";

const MOST_SLOTS = 12;

export function drawLanes(lanes) {
  keyed(byId("lanes"), lanes, (lane) => lane.name, () => el("li", { class: "lane" }), (node, lane) => {
    const limit = lane.limit || 0;
    const running = lane.running || 0;
    const waiting = lane.waiting || 0;
    const signature = [limit, running, waiting].join();
    if (node.signature === signature) return;
    node.signature = signature;
    const slots = el("span", { class: "slots", "aria-hidden": "true" });
    for (let index = 0; index < Math.min(limit, MOST_SLOTS); index += 1) {
      slots.append(el("span", { class: index < running ? "slot busy" : "slot" }));
    }
    node.replaceChildren(
      el("span", { class: "name", text: lane.name }),
      slots,
      el("span", { class: "count", text: limit ? `${running}/${limit}` : "paused" }),
      waiting ? el("span", { class: "waiting", text: `${waiting} waiting` }) : "",
    );
  });
}

// Lists the models that agents use, and how well each delegates as far as anybody has measured.
import { byId, el, keyed } from "./dom.js";

const VERDICTS = {
  PROBE_VERDICT_ORCHESTRATOR: ["orchestrator", "good"],
  PROBE_VERDICT_NEEDS_INSISTING: ["needs insisting", "fair"],
  PROBE_VERDICT_LEAF_ONLY: ["leaf only", "poor"],
};

const tier = (name) => (name || "").replace("PROBE_TIER_", "").toLowerCase();

function figures(probe) {
  if (!probe) return "conveyor model probe measures how well it delegates";
  const shares = (probe.scores || []).map((score) => `${tier(score.tier)} ${score.good || 0} of ${score.tries || 0}`);
  return [shares.join(", "), probe.explanation].filter(Boolean).join(". ");
}

export function drawModels(models) {
  const used = models.filter((model) => model.agent_ids?.length || model.probe);
  byId("models").hidden = !used.length;
  keyed(byId("model-list"), used, (model) => `${model.model} ${model.base_url || ""}`, () => el("li", { class: "model" }), (node, model) => {
    const [word, look] = model.probe ? VERDICTS[model.probe.verdict] || ["unclear", "none"] : ["never probed", "none"];
    node.title = figures(model.probe);
    node.replaceChildren(
      el("span", { class: "title", text: model.model }),
      el("span", { class: `verdict ${look}`, text: word }),
    );
  });
}

"""A probe from the command line to the model and back, with the real services."""

from __future__ import annotations

from tests.system.harness import Suite


def test_two_models_get_two_verdicts_with_figures(suite: Suite) -> None:
    strong = suite.cli("model", "probe", "demo").stdout
    assert "demo: orchestrator" in strong
    assert "explicit  12 of 12 good, 100%" in strong
    weak = suite.cli("model", "probe", "demo-weak").stdout
    assert "demo-weak: leaf-only" in weak
    assert "explicit   0 of 12 good" in weak
    assert "invented a refusal 12" in weak
    listed = {model["model"]: model for model in suite.cli_json("model", "list")["models"]}
    assert listed["demo"]["probe"]["verdict"] == "PROBE_VERDICT_ORCHESTRATOR"
    assert listed["demo-weak"]["probe"]["verdict"] == "PROBE_VERDICT_LEAF_ONLY"
    assert "model demo: orchestrator" in suite.cli("doctor").stdout

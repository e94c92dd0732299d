"""Which models there are, by name."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from agent_svc.agents import Agents
from agent_svc.models.base import Model
from agent_svc.models.demo import PLANNERS, DemoModel
from agent_svc.models.provider import ProviderModel
from svckit.clock import Clock
from svckit.errors import ModelNotFound
from svckit.settings import Settings


class Catalog:
    """Finds a model by its name, `provider:model` or `demo`. Connections are kept until `close`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._providers = settings.providers
        self._demo = {name: DemoModel(name, clock) for name in PLANNERS}
        self._models: dict[str, ProviderModel] = {}

    def get(self, name: str) -> Model:
        """Return the model. Raises `ModelNotFound`, naming the key that is missing."""
        if name in self._demo:
            return self._demo[name]
        if name in self._models:
            return self._models[name]
        provider_id, colon, model = name.partition(":")
        if not colon or not model:
            raise _not_found(name, "write it as provider:model, or use demo")
        settings = self._providers.get(provider_id)
        if settings is None:
            raise _not_found(name, f"[providers.{provider_id}] is not configured")
        return self._models.setdefault(name, ProviderModel(provider_id, model, settings))

    def knows(self, name: str) -> bool:
        """True when there is a model of this name, as far as the configuration tells."""
        try:
            self.get(name)
        except ModelNotFound:
            return False
        return True

    def base_url(self, name: str) -> str:
        """Where the model is asked, without credentials; empty for the provider's own address."""
        settings = self._providers.get(name.partition(":")[0])
        if settings is None or not settings.base_url:
            return ""
        parts = urlsplit(settings.base_url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    def known_to(self, agents: Agents) -> str:
        """Name the models that agents use and those that are always there, for people."""
        used = [
            name
            for agent in agents.all()
            for name in (*agent.models(), agent.settings.subagents.model)
            if name
        ]
        names = ", ".join(dict.fromkeys([*used, *self._demo]))
        providers = ", ".join(f"{name}:<model>" for name in self._providers if name != "demo")
        return f"{names}; or any model of a provider, as {providers}" if providers else names

    def demo_names(self) -> list[str]:
        """The models that are always there."""
        return list(self._demo)

    async def close(self) -> None:
        """Close all connections to providers."""
        for model in self._models.values():
            await model.close()


def _not_found(name: str, why: str) -> ModelNotFound:
    return ModelNotFound(f"there is no model {name!r}: {why}", metadata={"model": name})

# SPDX-License-Identifier: Apache-2.0
"""The five services: how each is called, where its code lives, and which class is its config.

Nothing is imported before it is asked for, so that a service loads no code of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.config.load import Loaded
    from shoal.config.model import Config


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of service."""

    name: str
    """On the command line, in config files and in names like ``build-index-0``."""
    package: str
    config_class: str

    @property
    def variables(self) -> str:
        """What the names of its environment variables begin with."""
        return f"SHOAL_{self.name.upper().replace('-', '_')}__"

    def config_model(self) -> type[Config]:
        """Import the class of this service's config."""
        module = import_module(f"shoal.{self.package}.config")
        model: type[Config] = getattr(module, self.config_class)
        return model

    def run(self, loaded: Loaded[Any], **options: Any) -> None:
        """Run the service in the foreground until it is told to stop."""
        import_module(f"shoal.{self.package}.main").main(loaded, **options)


ROLES = {
    role.name: role
    for role in (
        Role("proxy", "proxy", "ProxyConfig"),
        Role("origin", "origin", "OriginConfig"),
        Role("tracker", "tracker", "TrackerConfig"),
        Role("build-index", "buildindex", "BuildIndexConfig"),
        Role("agent", "agent", "AgentConfig"),
    )
}
"""Every role by its name."""

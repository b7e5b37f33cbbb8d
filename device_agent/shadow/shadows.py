"""The shadows of all deployments, as the supervisor has them."""

from collections.abc import Iterator, Mapping

from device_agent.folder import StateFolder
from device_agent.process import Served
from device_agent.shadow.keeper import Means, Shadow
from device_agent.workers import Workers
from edgekit.wire.messages import Order, ShadowReport


class Shadows:
    def __init__(self, state: StateFolder, means: Means) -> None:
        self._state = state
        self._means = means
        self._of: dict[str, Shadow] = {}

    def add(self, name: str, served: Served, workers: Workers) -> None:
        """A deployment has one from now on; its `run` is the caller's to run."""
        self._of[name] = Shadow(self._state.shadow(name), served, workers, self._means)

    def of(self, name: str) -> Shadow:
        return self._of[name]

    def __iter__(self) -> Iterator[Shadow]:
        return iter(self._of.values())

    def follow(self, order: Order) -> None:
        for name, shadow in self._of.items():
            shadow.want(order.shadows.get(name))

    def tick(self) -> None:
        for shadow in self:
            shadow.tick()

    def reports(self) -> Mapping[str, ShadowReport | None]:
        return {name: shadow.report for name, shadow in self._of.items()}

    def pids(self) -> list[int]:
        return [pid for shadow in self for pid in shadow.pids]

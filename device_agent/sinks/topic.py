"""An MQTT topic as a sink: each answer is a message of QoS 1, with its id as the user property `id`.

Always true
 1. An answer counts as taken once the broker has acknowledged it.
"""

import time
from collections.abc import Sequence

from device_agent.agentfile import AnySource, MqttSink
from device_agent.sinks.delivery import Taken
from device_agent.sources.broker import Connection, Heard
from device_agent.sources.outbox import Owed
from edgekit.errors import FeedError

PATIENCE_S = 10.0


class Topic:
    def __init__(self, spec: MqttSink, source: AnySource, client: str) -> None:
        self._spec = spec
        self._topic = spec.topic.format(source=source.name, deployment=source.deployment)
        heard = Heard(lambda _number, _same: None, lambda _message: None)
        self._connection = Connection(spec, f"{client}-{spec.name}", heard)
        self._is_started = False

    def deliver(self, answers: Sequence[Owed]) -> Taken:
        """See `delivery.Sink`."""
        if not self._is_started:
            self._connection.start()
            self._is_started = True
        end = time.monotonic() + PATIENCE_S
        while not self._connection.is_up and time.monotonic() < end:
            time.sleep(0.05)
        sent = [
            (
                answer.number,
                self._connection.publish(self._topic, answer.body, answer.uid, retain=self._spec.retain),
            )
            for answer in answers
        ]
        has: list[int] = []
        for number, info in sent:
            try:
                info.wait_for_publish(max(0.0, end - time.monotonic()))
            except (RuntimeError, ValueError) as error:
                raise FeedError(f"{self._spec.broker}: {error}") from error
            if not info.is_published():
                break
            has.append(number)
        if not has:
            raise FeedError(f"{self._spec.broker}: no acknowledgement within {PATIENCE_S:.0f} s")
        return Taken(tuple(has))

    def close(self) -> None:
        if self._is_started:
            self._connection.close()

"""Where a device's inputs come from: folders, MQTT, cameras, microphones.

Each source of `agent.toml` is a process of its own (`process.py`), which the supervisor starts and keeps (`keeper.py`).
It asks the deployment over HTTP like any client (`ask.py`), keeps each answer on disk (`outbox.py`) until every sink has it,
and says how it is doing.
"""

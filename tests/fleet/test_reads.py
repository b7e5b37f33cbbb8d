"""Looking at the fleet waits for nobody who writes, on SQLite too: a tick may take its time."""

import concurrent.futures
from pathlib import Path

from access_support import Inside
from store_support import NOW, enrolled, rollout_of

from fleet.rules.access import Role
from fleet.server.store import rollouts

PATHS = (
    "/api/v1/status",
    "/api/v1/devices",
    "/api/v1/devices/d1/explain",
    "/api/v1/rollouts",
    "/api/v1/rollouts/r1",
    "/api/v1/releases",
    "/api/v1/tokens",
    "/api/v1/users",
    "/api/v1/waiting",
    "/api/v1/batches",
    "/api/v1/blocked",
    "/api/v1/audit",
)


def test_every_page_is_answered_while_a_transaction_writes(tmp_path: Path) -> None:
    inside = Inside(tmp_path)
    client = inside.client(inside.token("all", Role.ADMIN))
    enrolled(inside.database, ["d1", "d2"])
    with inside.database.begin() as connection:
        rollouts.add(connection, rollout_of(["d1", "d2"]), NOW)
    answers: dict[str, int] = {}
    with inside.database.begin() as connection, concurrent.futures.ThreadPoolExecutor(1) as pool:
        rollouts.save(connection, rollout_of(["d1"]), rollout_of(["d1", "d2"]), NOW)
        for path in PATHS:
            # Far less than the 10 s for which a writer waits for another.
            answers[path] = pool.submit(lambda where=path: client.get(where)).result(timeout=8).status_code
        shown = client.get("/api/v1/rollouts/r1").json()
    assert answers == dict.fromkeys(PATHS, 200)
    assert len(shown["members"]) == 2, "as it was before the transaction that still runs"
    inside.close()


def test_devices_come_in_pages_that_together_are_all_within_reach(tmp_path: Path) -> None:
    inside = Inside(tmp_path)
    client = inside.client(inside.token("all", Role.ADMIN))
    names = [f"d{n}" for n in range(7)]
    enrolled(inside.database, names)
    path, pages = "/api/v1/devices?limit=3", []
    while path:
        response = client.get(path)
        pages.append([found["device"] for found in response.json()])
        path = response.links.get("next", {}).get("url", "")
    assert pages == [names[:3], names[3:6], names[6:]]
    assert client.get("/api/v1/devices?limit=0").status_code == 400
    inside.close()

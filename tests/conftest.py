"""What every test gets: an empty cache of its own, so that neither what the user keeps there nor an emulator that is set
up changes what a test sees, and a place of its own for what running agents keep in memory.
"""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("edgekit-cache")))
        patch.setenv("EDGEKIT_RUNTIME_DIR", str(tmp_path_factory.mktemp("edgekit-runtime")))
        yield

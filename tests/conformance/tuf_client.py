"""What `tuf-client` does: nothing but to call the agent's client. Ends with 0 or 1; why not, on standard error."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from device_agent.tuf.client import Client
from device_agent.tuf.kept import Kept
from device_agent.tuf.targets import bring
from device_agent.tuf.web import Web, plain
from edgekit.errors import EdgeKitError, UsageError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="EdgeKit's client of The Update Framework, for conformance tests."
    )
    made.add_argument("command", choices=("init", "refresh", "download"))
    made.add_argument("trusted_root", nargs="?", type=Path, help="of init: the file with the root to trust")
    made.add_argument("--metadata-dir", type=Path, required=True)
    made.add_argument("--metadata-url")
    made.add_argument("--target-name", action="append", default=[], help="may be given several times")
    made.add_argument("--target-dir", type=Path)
    made.add_argument("--target-base-url")
    made.add_argument("-v", "--verbose", action="count", default=0)
    return made


def run(chosen: argparse.Namespace) -> None:
    kept = Kept(chosen.metadata_dir)
    if chosen.command == "init":
        if chosen.trusted_root is None:
            raise UsageError("init needs the file with the trusted root")
        kept.start(chosen.trusted_root.read_bytes())
        return
    if chosen.metadata_url is None:
        raise UsageError("--metadata-url is missing")
    web = Web(plain)
    client = Client(kept, web, chosen.metadata_url, datetime.now(UTC))
    client.refresh()
    if chosen.command == "refresh":
        return
    if not chosen.target_name or chosen.target_dir is None or chosen.target_base_url is None:
        raise UsageError("download needs --target-name, --target-dir and --target-base-url")
    for name in chosen.target_name:
        target = client.find(name)
        if target is None:
            raise UsageError(f"there is no target {name!r}")
        path = bring(
            web, chosen.target_base_url, target, chosen.target_dir, is_consistent=client.is_consistent
        )
        if chosen.verbose:
            print(f"tuf-client: {name} is {path}", file=sys.stderr)


def main() -> int:
    try:
        chosen = parser().parse_intermixed_args()
    except SystemExit as end:
        return 1 if end.code else 0
    try:
        run(chosen)
    except (EdgeKitError, OSError) as error:
        if chosen.verbose > 1:
            raise
        print(f"tuf-client: {error}", file=sys.stderr)
        return 1
    if chosen.verbose:
        print(f"tuf-client: {chosen.command} done", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

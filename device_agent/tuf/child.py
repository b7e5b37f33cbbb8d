"""The short-lived process in which an agent asks what is signed: `python -m device_agent.tuf.child`.

The supervisor starts it (`lookup`), writes a `Question` to its standard input, and reads an `Answer` from its standard
output. So the supervisor never imports `tuf`, and what a mirror's metadata do to a parser, they do to a process that ends.

Always true
 1. What is answered stands in metadata that were brought up to date in this very call, by the root that this device
    enrolled with and the roots that follow from it.
 2. Nothing secret goes in: metadata are no secret, so they are asked for without the device's certificate.
 3. A kept root that is damaged is replaced by the one of the enrolment, never by one that a mirror has.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import msgspec

from device_agent import durable, parent
from device_agent.network import Access
from device_agent.tuf.client import Client, MetadataRefusedError
from device_agent.tuf.kept import Kept
from device_agent.tuf.question import Answer, Listed, Question
from device_agent.tuf.web import Web, below
from device_agent.update.fetch import FetchError
from edgekit.errors import EdgeKitError
from edgekit.trust.orderkeys import PATH, OrderKeys
from edgekit.trust.orderkeys import read as read_order_keys

# Beside the metadata: the hash of the root that they began with. A role's file ends with `.json`.
_ANCHOR = "anchor"


def answer(question: Question) -> Answer:
    """Bring the metadata up to date and look up what is asked for."""
    access = Access(question.ca, question.allowed_hosts, lambda: question.known)
    told = _answer(question, access)
    return msgspec.structs.replace(told, passed=access.traffic.totals()["orders"])


def _answer(question: Question, access: Access) -> Answer:
    kept = Kept(Path(question.folder))
    try:
        _anchor(kept, question.root.encode())
        web = Web(access.open)
        client = _refreshed(kept, web, question)
        listed = {}
        for path in question.paths:
            target = client.find(path)
            if target is not None and "sha256" in target.hashes:
                custom = target.custom if isinstance(target.custom, dict) else {}
                base, method = str(custom.get("base", "")), str(custom.get("method", ""))
                listed[path] = Listed(target.length, target.hashes["sha256"], base, method)
        return Answer(listed, _order_keys(client, web, question.metadata_url))
    except (EdgeKitError, OSError) as error:
        return Answer(trouble=str(error) or type(error).__name__)


def _anchor(kept: Kept, root: bytes) -> None:
    """Begin with the enrolment's root, once: whoever enrols again may be given another one."""
    digest = hashlib.sha256(root).hexdigest().encode()
    path = kept.folder / _ANCHOR
    if path.is_file() and path.read_bytes() == digest and kept.read("root") is not None:
        return
    kept.start(root)
    durable.write(path, digest)


def _refreshed(kept: Kept, web: Web, question: Question) -> Client:
    try:
        client = Client(kept, web, question.metadata_url, question.now)
    except MetadataRefusedError:
        kept.start(question.root.encode())
        client = Client(kept, web, question.metadata_url, question.now)
    client.refresh()
    return client


def _order_keys(client: Client, web: Web, metadata_url: str) -> OrderKeys | None:
    target = client.find(PATH)
    if target is None:
        return None
    name = target.get_prefixed_paths()[0] if client.is_consistent else target.path
    data = web.document(below(f"{metadata_url.rstrip('/')}/targets", name), target.length)
    if len(data) != target.length or hashlib.sha256(data).hexdigest() != target.hashes.get("sha256"):
        raise FetchError(f"{PATH}: altered or damaged on the way, not what was signed")
    return read_order_keys(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="EdgeKit's look at metadata; started by 'edgekit agent run'."
    )
    parser.add_argument("--parent", type=int, required=True, help="the process that this one ends with")
    parent.die_with(parser.parse_args().parent)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(answer(question)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

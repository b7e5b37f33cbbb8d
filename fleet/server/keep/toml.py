"""Changing one setting in a file that people write, and leaving everything else as it is."""

import json
import re


def with_setting(text: str, name: str, value: str) -> str:
    """`fleet.toml` with `name = value` at its top level; empty takes it out. Lines are kept as they are.

    A setting stands on a line of its own, before the first table (TOML 1.0, "Table"); one that is written over several
    lines is none of ours.
    """
    lines = text.splitlines(keepends=True)
    end = next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    is_it = re.compile(rf"^\s*[\"']?{re.escape(name)}[\"']?\s*=")
    kept = [line for line in lines[:end] if not is_it.match(line)]
    if value:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append(f"{name} = {json.dumps(value)}\n")
    return "".join(kept + lines[end:])

"""What the demo's acts share: they say what they do, run the command in the open, and end at the first broken promise."""

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console

console = Console(highlight=False)


def fail(message: str) -> NoReturn:
    console.print(f"[red]demo failed:[/] {message}")
    sys.exit(1)


def expect(truth: bool, message: str) -> None:
    """Go on only if what the demo promises is so."""
    if not truth:
        fail(message)
    console.print(f"  [green]✓[/] {message}")


def edgekit(*arguments: str | Path, quiet: bool = False) -> str:
    """Run the command in the open, or with `quiet` unseen and for its standard output.

    Fails the demo if the command does.
    """
    words = [str(argument) for argument in arguments]
    if not quiet:
        console.print(f"[bold]$ edgekit {' '.join(words)}[/]", soft_wrap=True)
        sys.stdout.flush()
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *words], stdout=pipe, stderr=pipe, text=True, check=False
    )
    if done.returncode != 0:
        fail(f"edgekit {' '.join(words)} ended with {done.returncode}: {done.stderr or 'see above'}")
    return done.stdout or ""


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a child as Ctrl-C would, and wait for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

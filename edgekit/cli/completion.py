"""`edgekit completion`: what a shell reads so that TAB completes commands, options and names."""

import os
from typing import ClassVar

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

from edgekit.errors import UsageError

VARIABLE = "_EDGEKIT_COMPLETE"
EPILOG = """\b
Examples:
  edgekit completion bash > ~/.local/share/bash-completion/completions/edgekit
  edgekit completion zsh > "${fpath[1]}/_edgekit"
  edgekit completion fish > ~/.config/fish/completions/edgekit.fish
  source <(edgekit completion bash)      # for this shell only
"""
# bash ends a word at each of COMP_WORDBREAKS, and so in the middle of NAME@VERSION and --option=value: the line itself is
# sent, and of an answer only what follows the last such place goes into it.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    local word="${COMP_WORDS[COMP_CWORD]}" line="${COMP_LINE:0:COMP_POINT}"
    local typed="${line##*[[:space:]]}"
    [[ "$word" == [@:=] ]] && word=""
    local before="${typed%%"$word"}"
    response=$(env COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for completion in $response; do
        type="${completion%%%%,*}" value="${completion#*,}"
        case "$type" in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """bash, told by its line."""

    source_template: ClassVar[str] = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


add_completion_class(_Bash, "bash")


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    Names of devices, releases, rollouts, users and tokens are completed as the fleet has them (EDGEKIT_FLEET, or --fleet
    on the line); while it is away, nothing is offered and nothing said.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"this click knows no completion for {shell}")
    made = kind(ctx.find_root().command, {}, "edgekit", VARIABLE)
    # Not `source()`, which runs bash to look at its version.
    click.echo(made.source_template % made.source_vars(), nl=False)

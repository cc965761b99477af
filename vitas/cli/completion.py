"""`vitas completion`: completion of commands, options, files and keys of the YAML by the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from vitas.cli.options import command
from vitas.errors import UserError


@command(
    'eval "$(vitas completion bash)"                              # in ~/.bashrc',
    'eval "$(vitas completion zsh)"                               # in ~/.zshrc',
    "vitas completion fish > ~/.config/fish/completions/vitas.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, files and keys of the YAML."""
    of_shell = get_completion_class(shell)
    if of_shell is None:
        raise UserError(f"nothing is known of the shell {shell}")
    # click's own check of the version of bash would start one.
    print(of_shell(ctx.find_root().command, {}, "vitas", "_VITAS_COMPLETE").source())

"""The command `vitas`: everything that this project does, as subcommands.

Each command lies in a file of its own, which is loaded when the command is
given: `vitas --help` loads none of them. torch is loaded by the stages, once
their configuration is checked, by `export`, `predict` and `prune`, and by
`--measure`.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from vitas.errors import MISTAKE, exit_on_user_error
from vitas.run import EXPORT, PREDICT, load

# The exit code after Ctrl-C: 128 + SIGINT, what a shell reports.
_CTRL_C = 130
# Heading: name: (`module:name` of the command, what it does).
_GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Before a run": {
        "init": ("vitas.cli.init:init", "Write a commented YAML for the images in a folder."),
        "check": ("vitas.cli.check:check", "Find everything that a flagged stage would refuse."),
        "space": ("vitas.cli.space:space", "Show what a search space and its budget hold, and what a search takes."),
        "schema": ("vitas.cli.schema:schema", "Print the JSON Schema of the YAML, for editors."),
        "convert": ("vitas.cli.convert:convert", "Print what a released ViTAS YAML means here."),
    },
    "Stages, in order": {
        "search": ("vitas.cli.stages:search", "Train the supernet; or find and grow a topology, as As-ViT does."),
        "sample": ("vitas.cli.stages:sample", "Evolve architectures with the supernet's scores."),
        "retrain": ("vitas.cli.stages:retrain", "Train one architecture."),
        "test": ("vitas.cli.stages:test", "Measure trained networks on the test images."),
        "launch": ("vitas.cli.launch:launch", "Run a stage, or all of them, as Slurm jobs."),
    },
    "Of a run": {
        "status": ("vitas.cli.status:status", "Show how far runs are, and what stopped them."),
        "compare": ("vitas.cli.compare:compare", "Show the results of runs side by side."),
        "report": ("vitas.cli.report:report", "Write the page that shows a run, or several side by side."),
        "describe": ("vitas.cli.describe:describe", "Show an architecture block by block, with its costs."),
        "export": (EXPORT, "Write a trained network for other programs."),
        "predict": (PREDICT, "Show the most probable classes of pictures."),
    },
    "Beside": {
        "zoo": ("vitas.cli.zoo:zoo", "Show the published architectures side by side."),
        "prune": ("vitas.cli.prune:prune", "Cut a pretrained network to a budget, ready to be fine-tuned."),
        "pack": ("vitas.cli.pack:pack", "Write an image folder as a few large files."),
        "digits": ("vitas.cli.images:digits", "Write scikit-learn's digits as image folders."),
        "fashion": ("vitas.cli.images:fashion", "Write Fashion-MNIST as image folders."),
        "cluster": ("vitas.cli.cluster:cluster", "Print what configs/cluster.yaml sets, as options of sbatch."),
        "completion": ("vitas.cli.completion:completion", "Print what makes a shell complete this command."),
    },
}
COMMANDS = {name: command for group in _GROUPS.values() for name, command in group.items()}

_EXIT_CODES = """\
Exit codes:
  0    done
  1    it failed; the traceback or the log says why
  2    a mistake that you can mend: a wrong word, YAML, file or image folder
  75   a stage was stopped, and wrote a checkpoint; the same command resumes it
  130  Ctrl-C (of what is no stage)
  141  nobody reads the output any more"""


class Vitas(click.Group):
    """The command. It knows its subcommands by name, and loads the one that is given."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = load(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is named {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        if not names:
            return super(click.Group, self).shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=COMMANDS[name][1]) for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in _GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, says) for name, (_, says) in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{_EXIT_CODES}\n")

    def invoke(self, ctx: click.Context) -> Any:
        with exit_on_user_error():
            return super().invoke(ctx)


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"vitas {load('vitas:__version__')}")
        ctx.exit()


@click.group(
    cls=Vitas,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND ...",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print it.")
def vitas() -> None:
    """Find vision transformers under a compute budget, and train them.

    CONFIG is a YAML file; `key=value` words after it set keys of it for this call. `vitas COMMAND --help` has examples.
    """


def main() -> None:
    run(vitas, "vitas")


def run(command: click.Command, program: str, arguments: list[str] | None = None) -> None:
    """Run a command, and end the process with its exit code if that is not 0.

    program: how it was called. arguments: by default those of `sys.argv`.
    """
    try:
        with exit_on_user_error():
            code = command.main(arguments, prog_name=program, standalone_mode=False)
    except click.Abort:
        sys.exit(_CTRL_C)
    except click.ClickException as error:
        error.show()
        sys.exit(MISTAKE)
    if isinstance(code, int) and code:
        sys.exit(code)

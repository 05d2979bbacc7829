"""The command line: parse, call one stage, print. Stages are imported inside the commands that use them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgeft import __version__, plugins
from edgeft.budget_command import budget_options, read_budget
from edgeft.compare_command import asks_to_compare, compare_command, compare_options
from edgeft.contract.errors import EdgeftError, UsageError, did_you_mean
from edgeft.contract.events import event, log_as, logs_json
from edgeft.contract.files import refuse_existing
from edgeft.fit_command import fit_command
from edgeft.genai_command import genai_command
from edgeft.install_command import install_command
from edgeft.listings import devices_command, methods_command, plugins_command, print_json
from edgeft.pack_command import pack_command
from edgeft.report_command import report_command
from edgeft.run_commands import adapters_option, bench_command, chat_command, run_command
from edgeft.train.launch import first_to_fail, is_main
from edgeft.train_command import FOLDER, Methods
from edgeft.trust_commands import check_signatures, key_option, rollback_command, sign_command


class Commands(click.Group):
    """A group that knows the plugins' commands and says what a mistyped one may have meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load_plugins()
        return list(self.commands)  # in the order of the work, not of the alphabet

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._load_plugins()
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(f"There is no command {args[0]!r}.{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def _load_plugins(self) -> None:
        plugins.host().add_commands(self)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeft")
def cli() -> None:
    """Fine-tune a language model where the GPU is, run it with any number of adapters on the device."""


@cli.command(cls=Methods, name="train", subcommand_metavar="METHOD [OPTIONS]")
def train_group() -> None:
    """Train a method on a base; writes a run folder."""


def _loss(result: dict[str, Any]) -> str:
    """A loss for a person: per completion token, or of a classifier."""
    if "accuracy" in result:
        return (f"accuracy {result['accuracy']:.1%} of {result['examples']:,} examples, loss {result['loss']:.3f} nats "
                "per example")
    return f"loss {result['loss']:.4f} nats per completion token over {result['tokens']:,} tokens"


@cli.command("eval")
@click.argument("subject", type=FOLDER, metavar="RUN|BUNDLE|MODEL_DIR")
@click.option("--data", type=FOLDER, help="Lines to measure the loss on.")
@click.option("--probe", type=FOLDER, help="Text the base knew, to measure forgetting.")
@click.option("--pairs", type=FOLDER, help='Lines of {"good", "bad"} sentences: how often the good one is likelier.')
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Of a bundle; none: the bare base.")
@click.option("--base", help="Of a PEFT folder that does not say, or says wrongly.")
@click.option("--task", help="Whose prompt template phrases the data, where there are several.")
@click.option("--json", "as_json", is_flag=True)
@compare_options
def eval_command(subject: Path, data: Path | None, probe: Path | None, pairs: Path | None, adapter: tuple[str, ...],
                 base: str | None, task: str | None, as_json: bool, compare: bool, **comparing: Any) -> None:
    """Loss in nats per completion token; with --probe and --pairs what was forgotten."""
    if asks_to_compare(compare, **comparing):
        compare_command(subject, data, task, as_json, **comparing, probe=probe, pairs=pairs, adapter=adapter, base=base)
        return
    if not (data or probe or pairs):
        raise UsageError("--data is missing (or --probe, or --pairs): there is nothing to measure.")
    if (subject / "bundle.json").is_file():
        from edgeft.run.evaluate import evaluate

        result = evaluate(subject, data, probe, adapters_option(adapter), task, pairs)
    else:
        from edgeft.train.evaluate import evaluate_run

        if adapter:
            raise UsageError(f"--adapter is for bundles, and {subject} is none.")
        result = evaluate_run(subject, data, probe, base, plugins.host(), task, pairs)
    if as_json:
        print_json(result)
        return
    from edgeft.contract.forgetting import describe_forgetting

    for line in [*([_loss(result)] if data else []), *describe_forgetting(result)]:
        click.echo(line)


@cli.command("export")
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR|MODEL_DIR", required=False)
@click.option("--device", required=True, metavar="NAME|FILE.toml", help="The device to export for.")
@click.option("--out", required=True, type=FOLDER, help="The bundle folder to write.")
@click.option("--merge", is_flag=True, help="Fold what was learned into the weights.")
@click.option("--as-adapter", is_flag=True, help="Compress what was learned to a low-rank adapter beside its base.")
@click.option("--rank", type=click.IntRange(1), help="Of --as-adapter. [16]")
@click.option("--base", help="The base, where the folder does not name it: a folder, a hub id, or starter.")
@click.option("--graph", type=FOLDER, metavar="MODEL.onnx", help="The base's graph, exported by others; with --base.")
@click.option("--quant", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="[the device file's]")
@click.option("--block", type=click.Choice(["16", "32", "64", "128", "256"]), help="[the device file's]")
@click.option("--asymmetric/--symmetric", default=None, help="With zero points or without. [the device file's]")
@click.option("--rounding", type=click.Choice(["rtn", "mse"]), help="How codes are chosen. [the device file's]")
@click.option("--name", help="The adapter's name. [its folder's]")
@click.option("--task", help="Whose prompt to ship, of a method that learns one for each task.")
@click.option("--version", type=click.IntRange(0), default=0, metavar="N",
              help="Your count of this bundle: where one is installed, a lower one is refused.")
@budget_options
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def export_command(source: Path | None, device: str, out: Path, merge: bool, base: str | None,
                   graph: Path | None, quant: str | None, block: str | None, asymmetric: bool | None,
                   rounding: str | None, name: str | None, task: str | None, version: int, as_adapter: bool,
                   rank: int | None, as_json: bool, **limit: Any) -> None:
    """Write a verified bundle for a device: an ONNX base with the adapter beside it, or merged."""
    host = plugins.host()
    if merge and as_adapter:
        raise UsageError("--merge folds a change into the base, --as-adapter keeps it beside: choose one.")
    compressed = _rank(as_adapter, rank)
    target = host.device(device)  # a typo is told before torch is loaded
    refuse_existing(out)
    budget = read_budget(**limit)
    if source is None:
        source, base = _bare_base(graph, base), None
    from edgeft.export.bundle import export
    from edgeft.export.limit import export_within
    from edgeft.export.report import describe

    detailed = block or rounding or asymmetric is not None
    grid = target.graph.grid(quant).but(block=int(block) if block else None, rounding=rounding,
                                        symmetric=None if asymmetric is None else not asymmetric)
    make = partial(export_within, budget) if budget else export
    report = make(source, target, out, host=host, merge=merge, base=base, quant=grid if detailed else quant, name=name,
                  task=task, rank=compressed, graph=graph, version=version)
    print_json(report) if as_json else click.echo(describe(report, out))


def _bare_base(graph: Path | None, base: str | None) -> Path:
    """What is exported when no folder is named: with --graph the base itself."""
    from edgeft.contract.base import find_base

    if graph is None:
        raise UsageError("What is exported? Name a run, a PEFT folder or a model folder.")
    if base is None:
        raise UsageError(f"--graph {graph}: name the base that it was exported from with --base.")
    return find_base(base)


@cli.command("add")
@click.argument("bundle", type=FOLDER)
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR")
@click.option("--name", required=True, help="The adapter's name in the bundle.")
@click.option("--as-adapter", is_flag=True, help="Compress what was learned to a low-rank adapter beside its base.")
@click.option("--rank", type=click.IntRange(1), help="Of --as-adapter. [16]")
@click.option("--base", help="The base's folder, where the bundle does not find it.")
@click.option("--task", help="Whose prompt to ship, of a method that learns one for each task.")
@budget_options
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def add_command(bundle: Path, source: Path, name: str, base: str | None, task: str | None, as_adapter: bool,
                rank: int | None, as_json: bool, **limit: Any) -> None:
    """Put one more adapter beside the base of a bundle."""
    compressed, budget = _rank(as_adapter, rank), read_budget(**limit)
    from edgeft.export.bundle import add
    from edgeft.export.limit import add_within
    from edgeft.export.report import describe_adapter

    make = partial(add_within, budget) if budget else add
    report = make(bundle, source, name, host=plugins.host(), base=base, task=task, rank=compressed)
    print_json(report) if as_json else click.echo(describe_adapter(name, report))


def _rank(as_adapter: bool, rank: int | None) -> int:
    """The rank to compress to; 0: as it is."""
    if rank and not as_adapter:
        raise UsageError("--rank is for --as-adapter; a trained adapter keeps its own rank.")
    return (rank or 16) if as_adapter else 0


@cli.command("remove")
@click.argument("bundle", type=FOLDER)
@click.argument("name")
def remove_command(bundle: Path, name: str) -> None:
    """Take an adapter out of a bundle."""
    from edgeft.contract.bundle_adapters import remove_adapter

    remove_adapter(bundle, name)
    click.echo(f"removed {name} from {bundle}")


@cli.command("verify")
@click.argument("bundle", type=FOLDER)
@key_option
@click.option("--json", "as_json", is_flag=True)
def verify_command(bundle: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Check every digest and bound of a bundle, its signatures if a key is given, and show its recorded parity."""
    from edgeft.run.verify import verify

    signed = check_signatures(bundle, keys)
    result = {**verify(bundle), **({"signed": signed} if keys else {})}
    print_json(result) if as_json else click.echo(
        f"{bundle}: {result['files']} files, {result['bytes'] / 2**20:.1f} MiB, every digest as recorded\n"
        f"replayed {result['replayed']} recorded answers: {result['agreement']:.0%} of tokens equal" + "".join(
            f"\nsigned by {key}: {f'adapter {name}' if name else 'the bundle'}" for name, key in signed.items()))


for command in (fit_command, pack_command, install_command, rollback_command, sign_command, run_command, chat_command,
                bench_command, genai_command, report_command, methods_command, devices_command,
                plugins_command):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one message and exit code 1 or 2."""
    # OpenMP's threads spin while they wait; without a bound, another program on the machine costs a factor of ten
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        log_as()
        code = cli.main(args=arguments, prog_name="edgeft", standalone_mode=False)
    except EdgeftError as error:
        if first_to_fail():
            _tell("failed", error.exit_code, f"edgeft: {error}", reason=str(error))
        code = error.exit_code
    except click.ClickException as error:
        if first_to_fail():
            error.show() if not logs_json() else _tell("failed", error.exit_code, "", reason=error.format_message())
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if is_main():
            _tell("stopped", 130, "\nstopped")
        code = 130
    except BrokenPipeError:  # `edgeft run ... | head`
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _tell(name: str, code: int, message: str, **fields: Any) -> None:
    """How the program ends, for a person or for the log."""
    if logs_json():
        event(name, level=logging.ERROR, exit_code=code, **fields)
    else:
        click.echo(message, err=True)


if __name__ == "__main__":
    main()

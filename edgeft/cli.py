"""The command line: parse, call one stage, print. Stages are imported inside the commands that use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeft import __version__, plugins
from edgeft.contract.errors import EdgeftError, UsageError, did_you_mean
from edgeft.contract.files import refuse_existing
from edgeft.install_command import install_command
from edgeft.listings import devices_command, methods_command, plugins_command, print_json
from edgeft.train_command import FOLDER, Methods


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
@click.option("--data", required=True, type=FOLDER, help="Lines to measure the loss on.")
@click.option("--probe", type=FOLDER, help="Text the base knew, to measure forgetting.")
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Of a bundle; none: the bare base.")
@click.option("--base", help="Of a PEFT folder that does not say, or says wrongly.")
@click.option("--task", help="Whose prompt template phrases the data, where there are several.")
@click.option("--json", "as_json", is_flag=True)
def eval_command(subject: Path, data: Path, probe: Path | None, adapter: tuple[str, ...], base: str | None,
                 task: str | None, as_json: bool) -> None:
    """Loss in nats per completion token, and with --probe what was forgotten."""
    if (subject / "bundle.json").is_file():
        from edgeft.run.evaluate import evaluate

        result = evaluate(subject, data, probe, _adapters(adapter), task)
    else:
        from edgeft.train.evaluate import evaluate_run

        if adapter:
            raise UsageError(f"--adapter is for bundles, and {subject} is none.")
        result = evaluate_run(subject, data, probe, base, plugins.host(), task)
    if as_json:
        print_json(result)
        return
    click.echo(_loss(result))
    if "forgetting" in result:
        click.echo(f"forgetting {result['forgetting']:+.4f} nats per token")


@cli.command("export")
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR|MODEL_DIR")
@click.option("--device", required=True, metavar="NAME|FILE.toml", help="The device to export for.")
@click.option("--out", required=True, type=FOLDER, help="The bundle folder to write.")
@click.option("--merge", is_flag=True, help="Fold what was learned into the weights.")
@click.option("--as-adapter", is_flag=True, help="Compress what was learned to a low-rank adapter beside its base.")
@click.option("--rank", type=click.IntRange(1), help="Of --as-adapter. [16]")
@click.option("--base", help="The base, where the folder does not name it: a folder, a hub id, or starter.")
@click.option("--quant", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="[the device file's]")
@click.option("--name", help="The adapter's name. [its folder's]")
@click.option("--task", help="Whose prompt to ship, of a method that learns one for each task.")
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def export_command(source: Path, device: str, out: Path, merge: bool, base: str | None, quant: str | None,
                   name: str | None, task: str | None, as_adapter: bool, rank: int | None, as_json: bool) -> None:
    """Write a verified bundle for a device: an ONNX base with the adapter beside it, or merged."""
    host = plugins.host()
    if merge and as_adapter:
        raise UsageError("--merge folds a change into the base, --as-adapter keeps it beside: choose one.")
    compressed = _rank(as_adapter, rank)
    target = host.device(device)  # a typo is told before torch is loaded
    refuse_existing(out)
    from edgeft.export.bundle import export
    from edgeft.export.report import describe

    report = export(source, target, out, host=host, merge=merge, base=base, quant=quant, name=name, task=task,
                    rank=compressed)
    print_json(report) if as_json else click.echo(describe(report, out))


@cli.command("add")
@click.argument("bundle", type=FOLDER)
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR")
@click.option("--name", required=True, help="The adapter's name in the bundle.")
@click.option("--as-adapter", is_flag=True, help="Compress what was learned to a low-rank adapter beside its base.")
@click.option("--rank", type=click.IntRange(1), help="Of --as-adapter. [16]")
@click.option("--base", help="The base's folder, where the bundle does not find it.")
@click.option("--task", help="Whose prompt to ship, of a method that learns one for each task.")
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def add_command(bundle: Path, source: Path, name: str, base: str | None, task: str | None, as_adapter: bool,
                rank: int | None, as_json: bool) -> None:
    """Put one more adapter beside the base of a bundle."""
    compressed = _rank(as_adapter, rank)
    from edgeft.export.bundle import add
    from edgeft.export.report import describe_adapter

    report = add(bundle, source, name, host=plugins.host(), base=base, task=task, rank=compressed)
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
    from edgeft.contract.bundle import remove_adapter

    remove_adapter(bundle, name)
    click.echo(f"removed {name} from {bundle}")


@cli.command("verify")
@click.argument("bundle", type=FOLDER)
@click.option("--json", "as_json", is_flag=True)
def verify_command(bundle: Path, as_json: bool) -> None:
    """Check every digest and bound of a bundle and show its recorded parity."""
    from edgeft.run.verify import verify

    result = verify(bundle)
    print_json(result) if as_json else click.echo(
        f"{bundle}: {result['files']} files, {result['bytes'] / 2**20:.1f} MiB, every digest as recorded\n"
        f"replayed {result['replayed']} recorded answers: {result['agreement']:.0%} of tokens equal")


cli.add_command(install_command)


@cli.command("run")
@click.argument("bundle", type=FOLDER)
@click.option("--prompt", required=True, help="The request; - reads it from stdin.")
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Repeat to stack; none: the bare base.")
@click.option("--task", help="Whose prompt template to use, where the adapter has several.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy. [the base's generation config]")
@click.option("--top-k", type=click.IntRange(0), help="Draw from the k likeliest tokens; 0: from all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest with this mass.")
@click.option("--min-p", type=click.FloatRange(0, 1), help="Drop tokens below this share of the likeliest one.")
@click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), help="Above 1: repeat less.")
@click.option("--seed", type=click.IntRange(0), help="For the same draw again.")
@click.option("--stop", multiple=True, help="End before this text; repeat for more.")
@click.option("--json-schema", type=FOLDER, metavar="FILE", help="Answer in JSON that keeps to this schema.")
@click.option("--grammar", type=FOLDER, metavar="FILE", help="Answer in the language of this Lark grammar.")
@click.option("--raw", is_flag=True, help="Feed the text as it is, without any template or separator.")
@click.option("--lookup/--no-lookup", default=None, help="Draft tokens from those so far. [where answers stay exact]")
@click.option("--threads", type=click.IntRange(1), help="[the device file's]")
@click.option("--memory", type=click.IntRange(1), metavar="MIB", help="What the process may take. [the device file's]")
@click.option("--json", "as_json", is_flag=True)
def run_command(bundle: Path, prompt: str, adapter: tuple[str, ...], as_json: bool, threads: int | None,
                memory: int | None, **sampling: Any) -> None:
    """Answer one prompt."""
    from edgeft.run import load
    from edgeft.run.constrain import read_options

    wanted = _adapters(adapter)
    model = load(bundle, threads=threads, memory=memory, keep_prompts=0)  # one request: nothing comes again
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if model.task(wanted) != "text-generation":
        _classify(model, text, wanted, as_json)
        return
    sampling |= read_options(model, sampling)
    if as_json:
        print_json(model.generate(text, adapters=wanted, **sampling).to_json())
        return
    for piece in model.stream(text, adapters=wanted, **sampling):
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _classify(model: Any, text: str, wanted: dict[str, float] | None, as_json: bool) -> None:
    from edgeft.run.classify import answer

    context = click.get_current_context()
    others = ("bundle", "prompt", "adapter", "as_json", "threads", "memory")
    sampling = [name for name in context.params if name not in others
                and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if sampling:
        raise UsageError(f"--{sampling[0].replace('_', '-')} is for generating text, and this classifies or embeds it.")
    (found,) = answer(model, [text], [model.adapters_for(wanted)])
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    print_json(found.to_json()) if as_json else click.echo(found.describe())


@cli.command("chat")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--system", help="A system message.")
@click.option("--task", help="Whose prompt template to use, where the adapter has several.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0))
@click.option("--seed", type=click.IntRange(0))
@click.option("--memory", type=click.IntRange(1), metavar="MIB", help="What the process may take. [the device file's]")
def chat_command(bundle: Path, adapter: tuple[str, ...], system: str | None, memory: int | None,
                 **sampling: Any) -> None:
    """Talk with a bundle; /help lists what else can be typed."""
    from edgeft.run.chat import chat

    chat(bundle, _adapters(adapter), system, sampling, memory)


@cli.command("bench")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(0), help="Requests at once; 0: none.")
@click.option("--threads", type=click.IntRange(1), help="[the device file's]")
@click.option("--compare", is_flag=True, help="Also run onnxruntime-genai and llama.cpp, where they are installed.")
@click.option("--gguf", type=FOLDER, metavar="FILE", help="The same base, for llama.cpp.")
@click.option("--gguf-lora", type=FOLDER, metavar="FILE", help="The same adapter, for llama.cpp.")
@click.option("--peer-python", metavar="PYTHON", help="The interpreter that has the others. [this one]")
@click.option("--chart", type=FOLDER, metavar="FILE.svg", help="Draw the result here.")
@click.option("--json", "as_json", is_flag=True)
def bench_command(bundle: Path, adapter: tuple[str, ...], as_json: bool, compare: bool, gguf: Path | None,
                  gguf_lora: Path | None, peer_python: str | None, chart: Path | None, **settings: Any) -> None:
    """Speed, memory, what an adapter costs, switching and a mixed batch on this machine, medians."""
    _check_bench(compare, gguf, gguf_lora, peer_python, chart)
    from edgeft.run.bench import bench, describe, draw
    from edgeft.run.peers import compare as ask_peers
    from edgeft.run.peers import describe as describe_peers

    result = bench(bundle, _adapters(adapter), **settings)
    if compare:
        result["peers"] = ask_peers(bundle, result, python=peer_python, gguf=gguf, gguf_lora=gguf_lora)
    if chart is not None:
        draw(chart, bundle.name, result)
    if as_json:
        print_json(result)
        return
    click.echo(describe(result))
    if compare:
        click.echo("\n" + describe_peers(result))


def _check_bench(compare: bool, gguf: Path | None, lora: Path | None, python: str | None, chart: Path | None) -> None:
    """What can be refused before minutes are spent on measuring."""
    if not compare and (gguf or lora or python):
        raise UsageError("--gguf, --gguf-lora and --peer-python are for --compare.")
    if lora and not gguf:
        raise UsageError("--gguf-lora is an adapter for --gguf; give its base too.")
    for flag, file in (("--gguf", gguf), ("--gguf-lora", lora)):
        if file is not None and not file.is_file():
            raise UsageError(f"{flag} {file}: there is no such file.")
    if chart is not None and (chart.is_dir() or not chart.absolute().parent.is_dir()):
        raise UsageError(f"--chart {chart}: must be a file in a folder that is there.")


for listing in (methods_command, devices_command, plugins_command):
    cli.add_command(listing)


def _adapters(texts: tuple[str, ...]) -> dict[str, float] | None:
    """`menu:0.7` -> {"menu": 0.7}; nothing given -> None, the bundle's default; `none` -> {}."""
    if not texts or texts == ("none",):
        return {} if texts else None
    found: dict[str, float] = {}
    for text in texts:
        name, _, scale = text.partition(":")
        try:
            value = float(scale) if scale else 1.0
        except ValueError:
            raise UsageError(f"--adapter {text}: the scale must be a number, found {scale!r}") from None
        if name == "none" or name in found:
            raise UsageError(f"--adapter {text}: " + ("'none' stands alone." if name == "none" else "named twice."))
        found[name] = value
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one message and exit code 1 or 2."""
    # OpenMP's threads spin while they wait; without a bound, another program on the machine costs a factor of ten
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        code = cli.main(args=arguments, prog_name="edgeft", standalone_mode=False)
    except EdgeftError as error:
        click.echo(f"edgeft: {error}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nstopped", err=True)
        code = 130
    except BrokenPipeError:  # `edgeft run ... | head`
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

"""The command line: parse, call one stage, print. Stages are imported inside the commands that use them."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeft import __version__, options, plugins
from edgeft.contract.errors import EdgeftError, UsageError, did_you_mean
from edgeft.contract.files import refuse_existing
from edgeft.train.settings import TrainSettings

FOLDER = click.Path(path_type=Path)


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


class Methods(click.Group):
    """`edgeft train METHOD`: one command per method, its flags made from the method's options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(plugins.host().methods)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        method = plugins.host().method(cmd_name)
        own = options.click_options(method.Options)
        taken = {flag for item in SHARED for flag in item.opts}
        clash = sorted(flag for item in own for flag in item.opts if flag in taken and flag.startswith("-"))
        if clash:
            raise UsageError(f"method {cmd_name!r} has options named as every method's: {', '.join(clash)}. "
                             "Its author must rename them.")
        return click.Command(cmd_name, params=[*own, *SHARED], callback=_train(cmd_name), help=method.summary)


SHARED: list[click.Option] = [
    click.Option(["--base"], help="Base: a folder, a hub id, or starter."),
    click.Option(["--data"], multiple=True, metavar="D.jsonl[:weight]", help="Training data; several make a mixture."),
    click.Option(["--eval-data"], multiple=True, metavar="E.jsonl", help="Evaluate on these, each with its own loss."),
    click.Option(["--probe"], metavar="P.jsonl", help="Text the base knew: what is forgotten is measured on it."),
    click.Option(["--out"], type=FOLDER, required=True, help="The run folder to write."),
    click.Option(["--device"], metavar="NAME|FILE.toml", help="Train on this device's integer grid."),
    click.Option(["--config"], type=FOLDER, help="A TOML file with any of these options; flags win."),
    click.Option(["--resume"], is_flag=True, help="Go on from the last checkpoint in --out."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print edgeft.json to stdout at the end."),
    *options.click_options(TrainSettings),
]


GIVEN = ("base", "data", "eval_data", "probe", "device")  # SHARED options that are no settings


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeft")
def cli() -> None:
    """Fine-tune a language model where the GPU is, run it with any number of adapters on the device."""


@cli.command(cls=Methods, name="train", subcommand_metavar="METHOD [OPTIONS]")
def train_group() -> None:
    """Train a method on a base; writes a run folder."""


def _train(name: str) -> Any:
    def callback(**given: Any) -> None:
        method = plugins.host().method(name)
        out, resume, as_json = given.pop("out"), given.pop("resume"), given.pop("as_json")
        layers = [_toml(given.pop("config")), given]
        stored = {}
        if resume:
            stored = _stored_settings(out, name)
        layers.insert(0, {**{key: stored[key] for key in GIVEN if key in stored},
                          **stored.get("options", {}), **stored.get("settings", {})})
        if not resume:
            _refuse_existing_run(out)
        shared = {key: _last(layers, key) for key in GIVEN}
        for key in ("base", "data"):
            if not shared[key]:
                raise UsageError(f"edgeft train {name}: --{key} is missing.")
        for key, value in shared.items():
            if not isinstance(value, (str, list, tuple, type(None))):
                raise UsageError(f"edgeft train {name}: {key} must be text, found {value!r}")
        known = set(method.Options.__dataclass_fields__)
        own = options.resolve(method.Options, *[{k: v for k, v in layer.items() if k in known} for layer in layers],
                              who=f"edgeft train {name}")
        rest = [{k: v for k, v in layer.items() if k not in known and k not in shared} for layer in layers]
        settings = options.resolve(TrainSettings, *rest, who=f"edgeft train {name}")

        from edgeft.train.loop import Job, train

        job = Job(method, own, settings, shared["base"], _texts(shared["data"]), _texts(shared["eval_data"]),
                  str(shared["probe"] or ""), out,
                  plugins.host().device(shared["device"]) if shared["device"] else None)
        if resume and job.to_json() != stored:
            changed = [key for part in ("options", "settings") for key, value in job.to_json()[part].items()
                       if value != stored[part].get(key)]
            changed += [key for key in GIVEN if job.to_json()[key] != stored[key]]
            raise UsageError(f"{out}: --resume goes on with the run as it was started, and these differ: "
                             f"{', '.join(changed)}. Leave them out, or start a new run.")
        record = train(job, resume=resume)
        _print_run(out, record, as_json)

    return callback


def _stored_settings(out: Path, name: str) -> dict[str, Any]:
    from edgeft.train.loop import resume_settings

    stored = resume_settings(out)
    if stored.get("method") != name:
        raise UsageError(f"{out}: was started with method {stored.get('method')!r}, not {name!r}.")
    return stored


def _refuse_existing_run(out: Path) -> None:
    if (out / "settings.json").is_file() and not (out / "edgeft.json").is_file():
        raise UsageError(f"{out}: holds a run that has not ended. Go on with --resume, or remove it first.")
    if out.exists():
        raise UsageError(f"{out}: already exists. Choose another name, or remove it first.")


def _toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML ({error})") from None
    return {key.replace("-", "_"): value for key, value in table.items()}


def _last(layers: Sequence[dict[str, Any]], key: str) -> Any:
    return next((layer[key] for layer in reversed(layers) if layer.get(key) not in (None, (), "")), None)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]


def _print_run(out: Path, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _json(record)
        return
    metrics = record["metrics"]
    for task, result in metrics["eval"].items():
        before = metrics["eval_base"].get(task, {}).get("loss")
        was = f" (base {before:.3f})" if before is not None else ""
        click.echo(f"{task}: {_loss(result, was)}")
    if record["forgetting"]:
        click.echo(f"forgetting: {record['forgetting']['forgetting']:+.3f} nats per token on the probe")
    click.echo(f"{metrics['tokens_per_s']:,.0f} tokens/s, {metrics['seconds']:.0f} s, "
               f"peak {metrics['peak_mib']:,.0f} MiB")
    click.echo(f"wrote {out}")


def _loss(result: dict[str, Any], was: str = "") -> str:
    """A loss for a person: per completion token, or of a classifier."""
    if "accuracy" in result:
        return (f"accuracy {result['accuracy']:.1%} of {result['examples']:,} examples, loss {result['loss']:.3f} nats "
                f"per example{was}")
    return f"loss {result['loss']:.4f} nats per completion token{was}, {result['tokens']:,} tokens"


@cli.command("eval")
@click.argument("subject", type=FOLDER, metavar="RUN|BUNDLE|MODEL_DIR")
@click.option("--data", required=True, type=FOLDER, help="Lines to measure the loss on.")
@click.option("--probe", type=FOLDER, help="Text the base knew, to measure forgetting.")
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Of a bundle; none: the bare base.")
@click.option("--base", help="Of a PEFT folder that does not say, or says wrongly.")
@click.option("--json", "as_json", is_flag=True)
def eval_command(subject: Path, data: Path, probe: Path | None, adapter: tuple[str, ...], base: str | None,
                 as_json: bool) -> None:
    """Loss in nats per completion token, and with --probe what was forgotten."""
    if (subject / "bundle.json").is_file():
        from edgeft.run.evaluate import evaluate

        result = evaluate(subject, data, probe, _adapters(adapter))
    else:
        from edgeft.train.evaluate import evaluate_run

        if adapter:
            raise UsageError(f"--adapter is for bundles, and {subject} is none.")
        result = evaluate_run(subject, data, probe, base, plugins.host())
    if as_json:
        _json(result)
        return
    click.echo(_loss(result))
    if "forgetting" in result:
        click.echo(f"forgetting {result['forgetting']:+.4f} nats per token")


@cli.command("export")
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR|MODEL_DIR")
@click.option("--device", required=True, metavar="NAME|FILE.toml", help="The device to export for.")
@click.option("--out", required=True, type=FOLDER, help="The bundle folder to write.")
@click.option("--merge", is_flag=True, help="Fold what was learned into the weights.")
@click.option("--base", help="The base, where the folder does not name it: a folder, a hub id, or starter.")
@click.option("--quant", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="[the device file's]")
@click.option("--name", help="The adapter's name. [its folder's]")
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def export_command(source: Path, device: str, out: Path, merge: bool, base: str | None, quant: str | None,
                   name: str | None, as_json: bool) -> None:
    """Write a verified bundle for a device: an ONNX base with the adapter beside it, or merged."""
    host = plugins.host()
    target = host.device(device)  # a typo is told before torch is loaded
    refuse_existing(out)
    from edgeft.export.bundle import export
    from edgeft.export.report import describe

    report = export(source, target, out, host=host, merge=merge, base=base, quant=quant, name=name)
    _json(report) if as_json else click.echo(describe(report, out))


@cli.command("add")
@click.argument("bundle", type=FOLDER)
@click.argument("source", type=FOLDER, metavar="RUN|PEFT_DIR")
@click.option("--name", required=True, help="The adapter's name in the bundle.")
@click.option("--base", help="The base's folder, where the bundle does not find it.")
@click.option("--json", "as_json", is_flag=True, help="Print the parity report as JSON.")
def add_command(bundle: Path, source: Path, name: str, base: str | None, as_json: bool) -> None:
    """Put one more adapter beside the base of a bundle."""
    from edgeft.export.bundle import add
    from edgeft.export.report import describe_adapter

    report = add(bundle, source, name, host=plugins.host(), base=base)
    _json(report) if as_json else click.echo(describe_adapter(name, report))


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
    if as_json:
        _json(result)
    else:
        click.echo(f"{bundle}: {result['files']} files, {result['bytes'] / 2**20:.1f} MiB, every digest as recorded")
        click.echo(f"replayed {result['replayed']} recorded answers: {result['agreement']:.0%} of tokens equal")


@cli.command("run")
@click.argument("bundle", type=FOLDER)
@click.option("--prompt", required=True, help="The request; - reads it from stdin.")
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Repeat to stack; none: the bare base.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy. [the base's generation config]")
@click.option("--top-k", type=click.IntRange(0), help="Draw from the k likeliest tokens; 0: from all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest with this mass.")
@click.option("--min-p", type=click.FloatRange(0, 1), help="Drop tokens below this share of the likeliest one.")
@click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), help="Above 1: repeat less.")
@click.option("--seed", type=click.IntRange(0), help="For the same draw again.")
@click.option("--stop", multiple=True, help="End before this text; repeat for more.")
@click.option("--raw", is_flag=True, help="Feed the text as it is, without separator or chat template.")
@click.option("--threads", type=click.IntRange(1), help="[the device file's]")
@click.option("--json", "as_json", is_flag=True)
def run_command(bundle: Path, prompt: str, adapter: tuple[str, ...], as_json: bool, threads: int | None,
                **sampling: Any) -> None:
    """Answer one prompt."""
    from edgeft.run import load

    wanted = _adapters(adapter)
    model = load(bundle, threads=threads)
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if model.task(wanted) != "text-generation":
        _classify(model, text, wanted, as_json)
        return
    if as_json:
        _json(model.generate(text, adapters=wanted, **sampling).to_json())
        return
    for piece in model.stream(text, adapters=wanted, **sampling):
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _classify(model: Any, text: str, wanted: dict[str, float] | None, as_json: bool) -> None:
    from edgeft.run.classify import answer

    context = click.get_current_context()
    sampling = [name for name in context.params if name not in ("bundle", "prompt", "adapter", "as_json", "threads")
                and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if sampling:
        raise UsageError(f"--{sampling[0].replace('_', '-')} is for generating text, and this classifies or embeds it.")
    (found,) = answer(model, [text], [model.adapters_for(wanted)])
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    _json(found.to_json()) if as_json else click.echo(found.describe())


@cli.command("chat")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--system", help="A system message.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@click.option("--temperature", type=click.FloatRange(0))
@click.option("--seed", type=click.IntRange(0))
def chat_command(bundle: Path, adapter: tuple[str, ...], system: str | None, **sampling: Any) -> None:
    """Talk with a bundle; /help lists what else can be typed."""
    from edgeft.run.chat import chat

    chat(bundle, _adapters(adapter), system, sampling)


@cli.command("bench")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--threads", type=click.IntRange(1), help="[the device file's]")
@click.option("--json", "as_json", is_flag=True)
def bench_command(bundle: Path, adapter: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Prefill and decode speed (medians) and peak memory on this machine."""
    from edgeft.run.bench import bench, describe

    result = bench(bundle, _adapters(adapter), **settings)
    _json(result) if as_json else click.echo(describe(result))


@cli.command("methods")
@click.option("--json", "as_json", is_flag=True)
def methods_command(as_json: bool) -> None:
    """Fine-tuning methods that can be trained."""
    methods = plugins.host().methods
    rows = {name: {"summary": method.summary, "options": list(method.Options.__dataclass_fields__)}
            for name, method in sorted(methods.items())}
    _json(rows) if as_json else _table([(name, str(row["summary"])) for name, row in rows.items()])
    plugins.warn_about_broken()


@cli.command("devices")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True)
def devices_command(name: str | None, as_json: bool) -> None:
    """Devices that can be exported for; with a NAME, its file."""
    host = plugins.host()
    if name:
        host.device(name)  # checked before it is shown
        click.echo((Path(name) if name.endswith(".toml") else host.devices[name]).read_text(encoding="utf-8"), nl=False)
        return
    rows: dict[str, dict[str, str]] = {}
    for known in sorted(host.devices):
        try:
            device = host.device(known)
            rows[known] = {"verified": device.verified, "summary": device.summary}
        except EdgeftError as error:
            rows[known] = {"verified": "broken", "summary": str(error)}
    _json(rows) if as_json else _table([(key, row["verified"], row["summary"]) for key, row in rows.items()])
    plugins.warn_about_broken()


@cli.command("plugins")
@click.option("--json", "as_json", is_flag=True)
def plugins_command(as_json: bool) -> None:
    """Installed plugins, what each offers, and why a broken one is not used."""
    host = plugins.host()
    cli.list_commands(click.get_current_context())
    rows = [{"name": plugin.name, "source": plugin.source, "methods": plugin.methods, "devices": plugin.devices,
             "commands": plugin.commands, "errors": plugin.errors} for plugin in host.plugins]
    if as_json:
        _json({"plugins": rows})
        return
    _table([(str(row["name"]), str(row["source"]),
             ", ".join([*row["methods"], *row["devices"], *row["commands"]]) or "-",
             "; ".join(f"BROKEN: {error}" for error in row["errors"]) or "ok")
            for row in rows])


def _adapters(texts: tuple[str, ...]) -> dict[str, float] | None:
    """`menu:0.7` -> {"menu": 0.7}; nothing given -> None, the bundle's default; `none` -> {}."""
    if not texts:
        return None
    if texts == ("none",):
        return {}
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


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))


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

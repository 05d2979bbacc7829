"""The commands on the device that ask a bundle: run, chat, bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.events import FORMATS, log_as, warn
from edgeft.listings import print_json
from edgeft.train_command import FOLDER

LOG = click.option("--log", type=click.Choice(FORMATS), expose_value=False, is_eager=True,
                   callback=lambda _, __, form: log_as(form), help="json: one line an event, on stderr. [EDGEFT_LOG]")
TIMEOUT = click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
                       help="End an answer after so long.")


@click.command("run")
@click.argument("bundle", type=FOLDER)
@click.option("--prompt", required=True, help="The request; - reads it from stdin.")
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]", help="Repeat to stack; none: the bare base.")
@click.option("--task", help="Whose prompt template to use, where the adapter has several.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@TIMEOUT
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
@click.option("--provider", metavar="NAME", help="Another execution provider. [the device file's]")
@click.option("--memory", type=click.IntRange(1), metavar="MIB", help="What the process may take. [the device file's]")
@click.option("--json", "as_json", is_flag=True)
@LOG
def run_command(bundle: Path, prompt: str, adapter: tuple[str, ...], as_json: bool, threads: int | None,
                memory: int | None, provider: str | None, **sampling: Any) -> None:
    """Answer one prompt."""
    from edgeft.run import load
    from edgeft.run.chat import show
    from edgeft.run.constrain import read_options

    wanted = adapters_option(adapter)
    model = load(bundle, threads=threads, memory=memory, provider=provider,
                 keep_prompts=0)  # one request: nothing comes again
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if model.task(wanted) != "text-generation":
        _classify(model, text, wanted, as_json)
        return
    sampling |= read_options(model, sampling)
    if as_json:
        answer = model.generate(text, adapters=wanted, **sampling)
        print_json(answer.to_json())
    else:
        answer = show(model.stream(text, adapters=wanted, **sampling))
    if answer.finish == "timeout":
        raise EdgeftError(f"The answer was ended after {sampling['timeout']:g} s (--timeout), with "
                          f"{len(answer.tokens)} of up to {sampling['max_tokens']} tokens.")
    if answer.finish == "context":
        warn("context_full", f"note: the answer ends because the context of {model.context} tokens is full")


def _classify(model: Any, text: str, wanted: dict[str, float] | None, as_json: bool) -> None:
    from edgeft.run.classify import answer

    context = click.get_current_context()
    others = ("bundle", "prompt", "log", "adapter", "as_json", "threads", "memory", "provider")
    sampling = [name for name in context.params if name not in others
                and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if sampling:
        raise UsageError(f"--{sampling[0].replace('_', '-')} is for generating text, and this classifies or embeds it.")
    (found,) = answer(model, [text], [model.adapters_for(wanted)])
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    print_json(found.to_json()) if as_json else click.echo(found.describe())


@click.command("chat")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--system", help="A system message.")
@click.option("--task", help="Whose prompt template to use, where the adapter has several.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@TIMEOUT
@click.option("--temperature", type=click.FloatRange(0))
@click.option("--seed", type=click.IntRange(0))
@click.option("--json-schema", type=FOLDER, metavar="FILE", help="Every answer in JSON that keeps to this schema.")
@click.option("--grammar", type=FOLDER, metavar="FILE", help="Every answer in the language of this Lark grammar.")
@click.option("--memory", type=click.IntRange(1), metavar="MIB", help="What the process may take. [the device file's]")
@LOG
def chat_command(bundle: Path, adapter: tuple[str, ...], system: str | None, memory: int | None,
                 **sampling: Any) -> None:
    """Talk with a bundle; /help lists what else can be typed."""
    from edgeft.run.chat import chat

    chat(bundle, adapters_option(adapter), system, sampling, memory)


@click.command("bench")
@click.argument("bundle", type=FOLDER)
@click.option("--adapter", multiple=True, metavar="NAME[:SCALE]")
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--new-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(0), help="Requests at once; 0: none.")
@click.option("--threads", type=click.IntRange(1), help="[the device file's]")
@click.option("--provider", metavar="NAME", help="Another execution provider. [the device file's]")
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

    result = bench(bundle, adapters_option(adapter), **settings)
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


def adapters_option(texts: tuple[str, ...]) -> dict[str, float] | None:
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

"""`edgeft fit`: will it fit, and how fast will it be, before anything is exported."""

from __future__ import annotations

import sys

import click

from edgeft import plugins
from edgeft.contract.device import Device
from edgeft.listings import print_json


@click.command("fit")
@click.argument("source", metavar="MODEL_DIR|BUNDLE")
@click.option("--device", required=True, metavar="NAME|FILE.toml", help="Where it is to run.")
@click.option("--context", type=click.IntRange(1), help="Tokens of prompt and answer together. [the device file's]")
@click.option("--adapters", type=click.IntRange(0), help="Resident at once. [0; a bundle's default adapter]")
@click.option("--rank", type=click.IntRange(1), help="Of each adapter, on every linear layer. [16]")
@click.option("--quant", type=click.Choice(["int4", "int8", "fp16", "fp32"]), help="[the device file's]")
@click.option("--block", type=click.Choice(["16", "32", "64", "128", "256"]), help="[the device file's]")
@click.option("--json", "as_json", is_flag=True)
def fit_command(source: str, device: str, context: int | None, adapters: int | None, rank: int | None,
                quant: str | None, block: str | None, as_json: bool) -> None:
    """Predict memory and speed on a device, from config and file headers alone; exit code 1 if it does not fit."""
    target = plugins.host().device(device)
    from edgeft.contract.fit import fit, wish_for
    from edgeft.contract.shape import read_shape

    shape, recorded = read_shape(source)
    wish = wish_for(shape, target, recorded, quant=quant, block=int(block) if block else None, context=context,
                    adapters=adapters, rank=rank)
    found = fit(shape, target, wish)
    print_json(found.to_json()) if as_json else click.echo(describe(found, target))
    if not found.fits:
        click.echo(f"edgeft: {shape.name} does not fit {target.name}: {found.plan.peak_mib:,.0f} MiB at its peak, and "
                   f"the device gives {found.budget_mib:,}. What would help, the cheapest first:\n"
                   f"{found.describe_ways()}", err=True)
        sys.exit(1)


def describe(found: object, device: Device) -> str:
    """The prediction for a person."""
    from edgeft.contract.fit import Fit

    assert isinstance(found, Fit)
    wish, speed = found.wish, found.speed
    beside = f", {wish.adapters} adapter(s)" if wish.adapters else ""
    lines = [f"{found.shape.name} on {device.name}: {wish.quant}, {wish.context:,} tokens{beside}",
             *(f"  {name:<12}{size:>10,.1f} MiB" for name, size in found.plan.to_json().items() if size),
             f"  {'peak':<12}{found.plan.peak_mib:>10,.1f} MiB of {found.budget_mib:,}; after `edgeft install` "
             f"{found.plan.installed_mib:,.1f}",
             f"  {'prefill':<12}{speed.prefill:>10,.1f} tokens/s, of a prompt as long as the context"]
    if speed.decode is not None:
        lines.append(f"  {'decode':<12}{speed.decode:>10,.1f} tokens/s, with the context full")
    if device.run.provider != "CPUExecutionProvider":
        lines.append(f"  note: {device.run.provider} keeps weights in ways of its own; the memory is what onnxruntime "
                     "takes on a CPU, the speed what bandwidth and operations allow.")
    return "\n".join(lines)

"""Find, load and list plugins; a broken plugin is a row in a table with its reason, not a crash."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from edgeft import hookspecs
from edgeft.contract import Method
from edgeft.contract.errors import UsageError, did_you_mean
from edgeft.options import option_faults

if TYPE_CHECKING:
    import click

    from edgeft.contract.device import Device

GROUP = "edgeft"
FACES = ("attach", "collect", "lower", "merge")


@dataclass
class Plugin:
    """One entry point: what it offers, and every reason why something of it cannot be used."""

    name: str
    source: str
    methods: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    module: Any = None


@dataclass
class Host:
    """All that the installed plugins offer."""

    plugins: list[Plugin] = field(default_factory=list)
    methods: dict[str, Method[Any]] = field(default_factory=dict)
    devices: dict[str, Path] = field(default_factory=dict)
    _commands_added: bool = False
    _owners: dict[tuple[str, str], Plugin] = field(default_factory=dict)

    def method(self, name: str) -> Method[Any]:
        """The method of that name; UsageError with the nearest names otherwise."""
        if name not in self.methods:
            raise UsageError(f"There is no method {name!r}.{did_you_mean(name, list(self.methods))}"
                             f"{self._broken(name)}")
        return self.methods[name]

    def method_for_peft(self, peft_type: str) -> Method[Any] | None:
        """The method that reads PEFT folders of this type."""
        return next((method for method in self.methods.values() if peft_type and method.peft_type == peft_type), None)

    def device(self, name: str) -> Device:
        """The device of that name, or the file at that path; UsageError with the nearest names otherwise."""
        from edgeft.contract.device import read_device

        if name.endswith(".toml"):
            return read_device(Path(name))
        if name not in self.devices:
            raise UsageError(f"There is no device {name!r}.{did_you_mean(name, list(self.devices))}")
        return read_device(self.devices[name])

    def add_commands(self, cli: click.Group) -> None:
        """Let plugins add commands; a name that is taken is the plugin's error, and the first one stays."""
        if self._commands_added:
            return
        self._commands_added = True
        for plugin in self.plugins:
            if plugin.module is not None:
                self._add_commands(plugin, cli)

    def _add_commands(self, plugin: Plugin, cli: click.Group) -> None:
        import click

        scratch = click.Group()
        with _faults_of(plugin):
            _manager(plugin).hook.register_commands(cli=scratch)
        for name, command in scratch.commands.items():
            if self._claim(plugin, "command", name, taken=name in cli.commands):
                cli.add_command(command, name)
                plugin.commands.append(name)

    def offer_method(self, plugin: Plugin, method: Any) -> None:
        """Take one method in, or note why not."""
        name = getattr(method, "name", None)
        faults = method_faults(method)
        if faults:
            plugin.errors.append(f"method {name or type(method).__name__!r}: {'; '.join(faults)}")
        elif self._claim(plugin, "method", method.name):
            self.methods[method.name] = method
            plugin.methods.append(method.name)

    def offer_device(self, plugin: Plugin, path: Path) -> None:
        """Take one device file in; it is read when it is asked for."""
        path = Path(path)
        if path.suffix != ".toml" or not path.is_file():
            plugin.errors.append(f"device {path}: is not a .toml file")
        elif self._claim(plugin, "device", path.stem):
            self.devices[path.stem] = path
            plugin.devices.append(path.stem)

    def _claim(self, plugin: Plugin, kind: str, name: str, taken: bool = False) -> bool:
        owner = self._owners.get((kind, name))
        if owner or taken:
            holder = f"plugin '{owner.name}' ({owner.source})" if owner else "edgeft itself"
            plugin.errors.append(f"{kind} '{name}' of plugin '{plugin.name}' ({plugin.source}) is not used: the name "
                                 f"is taken by {holder}")
            return False
        self._owners[kind, name] = plugin
        return True

    def _broken(self, name: str) -> str:
        return "".join(f"\nPlugin '{plugin.name}' is broken: {error}" for plugin in self.plugins
                       for error in plugin.errors if name in (plugin.name, *error.split("'")[1:2]))


def method_faults(method: Any) -> list[str]:
    """What keeps an object from being a usable method; empty if nothing does."""
    faults = [f"has no {face}()" for face in FACES if not callable(getattr(method, face, None))]
    faults += [f"{face}() is abstract" for face in getattr(type(method), "__abstractmethods__", ())]
    if inspect.isclass(method):
        return ["register(method) takes an instance, found a class", *faults]
    if not isinstance(method, Method):
        faults.insert(0, "is not an edgeft.contract.Method")
    for attribute in ("name", "summary"):
        if not isinstance(getattr(method, attribute, None), str) or not getattr(method, attribute):
            faults.append(f"has no {attribute}")
    options = getattr(method, "Options", None)
    if not (inspect.isclass(options) and dataclasses.is_dataclass(options)):
        return [*faults, "Options is not a dataclass"]
    return faults + option_faults(options)


def discover(found: list[EntryPoint] | None = None) -> Host:
    """Load every plugin of the entry-point group, the first-party ones first."""
    if found is None:
        found = sorted(entry_points(group=GROUP), key=lambda point: (_distribution(point) != "edgeft", point.name))
    host = Host()
    for point in found:
        plugin = Plugin(point.name, _source(point))
        host.plugins.append(plugin)
        with _faults_of(plugin):
            plugin.module = point.load()
            manager = _manager(plugin)
            manager.check_pending()
            manager.hook.register_methods(register=_bound(host.offer_method, plugin))
            manager.hook.register_devices(register=_bound(host.offer_device, plugin))
    return host


@cache
def host() -> Host:
    """The host of this process."""
    return discover()


def _bound(offer: Callable[[Plugin, Any], None], plugin: Plugin) -> Callable[[Any], None]:
    return lambda offered: offer(plugin, offered)


def _manager(plugin: Plugin) -> pluggy.PluginManager:
    """A manager of its own per plugin: one plugin's failing hook must not stop another's."""
    manager = pluggy.PluginManager("edgeft")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin.module, plugin.name)
    return manager


class _faults_of:
    """Turn anything a plugin raises, SystemExit included, into a row's reason."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        self.plugin.errors.append(f"{type(error).__name__}: {text or 'no message'}")
        if self.plugin.module is not None and not (self.plugin.methods or self.plugin.devices):
            self.plugin.module = None
        return True


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def warn_about_broken(write: Callable[[str], Any] = lambda text: sys.stderr.write(text + "\n")) -> None:
    """One line on stderr when a plugin is broken, so that a missing method is no riddle."""
    broken = [plugin.name for plugin in host().plugins if plugin.errors]
    if broken:
        write(f"note: broken plugins: {', '.join(broken)} (see `edgeft plugins`)")

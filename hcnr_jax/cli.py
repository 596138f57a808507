"""Commands that parse and call, nothing else. Options are fields of `hcnr_jax.config`, turned into flags by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic.fields import FieldInfo
from rich.console import Console

from hcnr_jax import __version__
from hcnr_jax.config import Config, RunConfig, build, example_of, is_positional, option_name, read_yaml
from hcnr_jax.errors import InputError, RunError, Stopped
from hcnr_jax.presets import preset, presets
from hcnr_jax.runtime.heartbeat import exit_process

# Environment variable that asks for tracebacks.
TRACEBACK = "HCNR_TRACEBACK"


class Command(NamedTuple):
    """A subcommand: where its configuration and its function live, imported only when it is called.

    device: whether the devices are opened first; not by a command that needs none, or opens them itself.
    """

    config: str
    function: str
    summary: str
    device: bool = True


COMMANDS = {
    "demo": Command(
        "hcnr_jax.config:DemoConfig", "hcnr_jax.commands.demo:demo", "see it work, on a model trained here"
    ),
    "restore": Command(
        "hcnr_jax.config:RestoreConfig", "hcnr_jax.restoration:restore", "restore a fine-tuned model's honesty"
    ),
    "apply": Command(
        "hcnr_jax.config:ApplyConfig",
        "hcnr_jax.restoration:apply",
        "apply or revert a restoration's patch",
        device=False,
    ),
    "convert": Command(
        "hcnr_jax.config:ConvertConfig",
        "hcnr_jax.commands.convert:convert",
        "turn a tunix or MaxText checkpoint into a Hugging Face folder",
        device=False,
    ),
    "tune": Command("hcnr_jax.config:TuneConfig", "hcnr_jax.commands.tune:tune", "fine-tune a model on JSONL rows"),
    "evaluate": Command(
        "hcnr_jax.config:EvaluateConfig", "hcnr_jax.commands.evaluate:evaluate", "measure a model's honesty and task"
    ),
    "chat": Command("hcnr_jax.config:ChatConfig", "hcnr_jax.commands.chat:chat", "ask models the same questions"),
    "probe": Command(
        "hcnr_jax.config:ProbeConfig",
        "hcnr_jax.commands.probe:probe",
        "show which layers still tell unanswerable questions apart",
    ),
    "compare": Command(
        "hcnr_jax.config.experiments:CompareConfig",
        "hcnr_jax.experiments.compare:compare",
        "methods against each other",
    ),
    "ablate": Command(
        "hcnr_jax.config.experiments:AblateConfig", "hcnr_jax.experiments.ablate:ablate", "what each part is worth"
    ),
    "sweep": Command(
        "hcnr_jax.config.experiments:SweepConfig", "hcnr_jax.experiments.sweep:sweep", "a grid of settings, one scoring"
    ),
    "recovery": Command(
        "hcnr_jax.config.experiments:RecoveryConfig",
        "hcnr_jax.experiments.recovery:recovery",
        "how fast honesty comes back when it is taught",
    ),
    "data": Command(
        "hcnr_jax.config:DataConfig", "hcnr_jax.commands.data:data", "make honesty and task rows", device=False
    ),
    "diagnose": Command(
        "hcnr_jax.config:DiagnoseConfig", "hcnr_jax.commands.diagnose:diagnose", "check whether restoring will work"
    ),
    "lm-eval-path": Command(
        "hcnr_jax.config:LmEvalPathConfig",
        "hcnr_jax.integrations.lm_eval_path:print_path",
        "print the folder of the tasks for lm-eval",
        device=False,
    ),
    "bench": Command(
        "hcnr_jax.config:BenchConfig", "hcnr_jax.bench:bench", "measure speed and memory on this machine", device=False
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 2: wrong use or bad input, one message; 1: a fault during the run; 130: Ctrl-C;
    143: SIGTERM.

    An error nobody foresaw is told in one line too; with HCNR_TRACEBACK=1 in the environment its traceback follows. A
    failed process of several does not return: it ends.
    """
    code = _run(argv)
    exit_process(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if not arguments or arguments[0] in ("-h", "--help"):
        Console().print(usage(), highlight=False, markup=False)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        Console().print(f"hcnr_jax {__version__}", highlight=False)
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise InputError(f"unknown command {name!r}; expected one of: {', '.join(COMMANDS)}")
        command = COMMANDS[name]
        config = parse(_load(command.config), rest, f"hcnr {name}")
        if command.device and getattr(config, "distributed", None) is None:
            _load("hcnr_jax.runtime.devices:open_devices")()
        with _compilation_cache(command):
            _load(command.function)(config)
    except InputError as error:
        errors.print(f"hcnr {name}: {error}", markup=False)
        return 2
    except RunError as error:
        errors.print(f"hcnr {name}: the run stopped: {error}", markup=False)
        return 1
    except Stopped as stop:
        errors.print(f"hcnr {name}: {stop}", markup=False)
        return stop.code
    except KeyboardInterrupt:
        errors.print(f"hcnr {name}: stopped by Ctrl-C; no unfinished output is left", markup=False)
        return 130
    except SystemExit as stop:  # tyro has printed its help (0) or what is wrong with the options (2)
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        errors.print(f"hcnr {name}: {_unforeseen(error)}", markup=False)
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        return 1
    return 0


def _compilation_cache(command: Command) -> contextlib.AbstractContextManager[None]:
    """Keep compiled programs in the user's cache folder while a command computes."""
    if not command.device:
        return contextlib.nullcontext()
    cache: contextlib.AbstractContextManager[None] = _load("hcnr_jax.runtime.compile:compilation_cache")("auto")
    return cache


def _unforeseen(error: Exception) -> str:
    """One line on a fault of the program itself: what, where, and how to see the rest."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    cause = " ".join(str(error).split())[:500]
    return (
        f"an error that is not handled: {type(error).__name__}{where}: {cause}; please report it, with the traceback "
        f"that {TRACEBACK}=1 in the environment shows"
    )


def usage() -> str:
    """The text of `hcnr --help`."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hcnr COMMAND ...",
            "",
            *lines,
            "",
            "hcnr COMMAND --help lists a command's options; --config FILE reads them from YAML.",
            "hcnr --version names this release.",
        ]
    )


def parse(cls: type[Config], arguments: Sequence[str], program: str) -> Config:
    """Command line to configuration: --config FILE first, options override it."""
    _refuse_repeats(cls, arguments)
    arguments, config_file = _take_config(list(arguments))
    given = read_yaml(cls, config_file) if config_file else {}
    lowered = [_lower_none(cls, before, argument) for before, argument in _pairs(arguments)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = tyro.cli(
            _flags(cls, given),
            args=lowered,
            prog=program,
            description=cls.__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return build(cls, {name: getattr(parsed, name) for name in cls.model_fields})


def _refuse_repeats(cls: type[RunConfig], arguments: Sequence[str]) -> None:
    """InputError for an option of several values that is given twice: only the last would count."""
    given = [argument.partition("=")[0] for argument in arguments]
    for field, info in cls.model_fields.items():
        name = option_name(cls, field)
        if getattr(info.annotation, "__origin__", None) is tuple and given.count(name) > 1:
            raise InputError(f"{name} is given {given.count(name)} times; give all its values after one {name}")


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *arguments], arguments, strict=False))


def _lower_none(cls: type[RunConfig], before: str, argument: str) -> str:
    """`--seed none` and `--seed=none` as tyro spells them."""
    option, equals, value = argument.partition("=")
    if equals and value == "none" and _takes_none(cls, option):
        return f"{option}=None"
    return "None" if argument == "none" and _takes_none(cls, before) else argument


def _takes_none(cls: type[RunConfig], option: str) -> bool:
    """Whether `option none` means no value: the field allows None. A row file or folder may well be called none."""
    info = cls.model_fields.get(option.removeprefix("--").replace("-", "_"))
    return info is not None and _allows_none(info.annotation)


def _allows_none(kind: Any) -> bool:
    return type(None) in getattr(kind, "__args__", ())


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without --config, and its file. InputError where it has none, or is given twice."""
    places = [place for place, argument in enumerate(arguments) if argument.partition("=")[0] == "--config"]
    if not places:
        return arguments, None
    if len(places) > 1:
        raise InputError(f"--config is given {len(places)} times; put all keys into one file, or give them as options")
    place = places[0]
    _, equals, value = arguments[place].partition("=")
    if equals:
        return arguments[:place] + arguments[place + 1 :], _config_file(value)
    if place + 1 == len(arguments):
        raise InputError("--config: expected the path of a YAML file")
    return arguments[:place] + arguments[place + 2 :], _config_file(arguments[place + 1])


def _config_file(text: str) -> Path:
    """A file as named, or a preset's: a bare word that is no file. InputError lists the presets."""
    path = Path(text)
    bare = path.name == text and not path.suffix and not path.exists()
    return preset(text, "--config") if bare else path


def _flags(cls: type[RunConfig], given: dict[str, Any]) -> Any:
    """A plain dataclass twin of the configuration for tyro: types and help, no checks, so that messages stay ours."""
    fields: list[tuple[str, Any, Any]] = []
    if not cls.model_fields:
        return dataclasses.make_dataclass(cls.__name__, fields)
    for name, info in cls.model_fields.items():
        default = given.get(name, tyro.MISSING if info.is_required() else info.default)
        marks: list[Any] = [tyro.conf.Positional] if is_positional(info.metadata) else []
        kind: Any = Annotated[info.annotation, _argument(name, info, default), *marks]
        fields.append((name, kind, dataclasses.field(default=default)))
    help_ = f"YAML file with these options as keys ({example_of(cls)}), read first: options override it"
    if cls.__name__ == "RestoreConfig":
        help_ += f"; or the name of a preset: {', '.join(presets())}"
    config: Any = Annotated[Path | None, tyro.conf.arg(help=help_, metavar="FILE", help_behavior_hint="(optional)")]
    fields.append(("config", config, dataclasses.field(default=None)))  # for the help; `_take_config` has taken it
    return dataclasses.make_dataclass(cls.__name__, fields)


def _argument(name: str, info: FieldInfo, default: Any) -> Any:
    """How the help shows a field: BASE, INT|none; and `none`, as it is typed, where that is the default."""
    metavar, hint = (name.upper() if is_positional(info.metadata) else None), None
    if _allows_none(info.annotation):
        kinds = [kind for kind in getattr(info.annotation, "__args__", ()) if kind is not type(None)]
        metavar = metavar or "|".join([*(kind.__name__.upper() for kind in kinds), "none"])
        hint = "(default: none)" if default is None else None
    return tyro.conf.arg(help=info.description, metavar=metavar, help_behavior_hint=hint)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())

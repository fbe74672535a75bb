"""The command line read from RunConfig: one typer option a field, so that the two cannot disagree."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from autoflip_secure.config import ConfigFile, RunConfig, flag_of
from autoflip_secure.errors import AutoflipSecureError, InputError, Interrupted
from autoflip_secure.presets import preset_options

__all__ = ["config_from", "run_command", "with_config_options"]

EXIT_BAD_INPUT = 2
EXIT_CANNOT_CONTINUE = 3
EXIT_INTERRUPTED = 130

LENGTH_OF_ROUND = frozenset({"local_steps", "local_epochs"})


def _option_type(annotation: Any) -> Any:
    """int, float, bool, str or Path of a field; choices stay strings, so that RunConfig words the refusal."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return str if get_origin(annotation) is Literal else annotation


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(options: dict, **own)` one keyword option for each field of RunConfig.

    Options that were not given are absent from `options`: a file or a default may then say them.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    for name, field in RunConfig.model_fields.items():
        kind = _option_type(field.annotation)
        shown = "" if field.default is None or kind is bool else f" [{field.default}]"
        names = [f"{flag_of(name)}/--no-{name.replace('_', '-')}"] if kind is bool else [flag_of(name)]
        option = typer.Option(*names, help=(field.description or "") + shown, show_default=False)
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in RunConfig.model_fields}
        command({name: value for name, value in options.items() if value is not None}, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def config_from(options: dict[str, Any], file: Path | None, preset: str | None = None) -> RunConfig:
    """Validated configuration: the command line wins over the file, the file over the preset, that over defaults.

    Local steps and local epochs are two ways to say one thing, so that either takes the place of both further down.

    `model_fields_set` of what comes back is what the user chose. A preset, and the config.toml of an earlier run, say
    more: they were written for one method, and what another one does not use of them is no contradiction.

    Raises
    ------
    ConfigError
        Names the option.
    """
    read = ConfigFile({}, is_marked=False) if file is None else ConfigFile.read(file)
    base, written = preset_options(preset), read.options
    if read.is_record:
        if not read.is_marked and written.keys() >= LENGTH_OF_ROUND:
            # Unmarked ones say epochs beside the steps they came to. In a marked one somebody wrote the second.
            written = {name: value for name, value in written.items() if name != "local_epochs"}
        base, chosen = _over(base, written), options
    else:
        chosen = _over(written, options)
    config = RunConfig.create(**_over(base, chosen))
    return RunConfig.model_construct(_fields_set=set(chosen), **dict(config))


def _over(weaker: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    replaced = LENGTH_OF_ROUND if LENGTH_OF_ROUND & stronger.keys() else frozenset()
    return {**{name: value for name, value in weaker.items() if name not in replaced}, **stronger}


def run_command(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a typer app; returns the exit code. Wrong use and foreseen errors are one line on stderr, no traceback."""
    import click

    try:
        result = typer.main.get_command(app).main(arguments, standalone_mode=False)
    except click.UsageError as error:
        return _fail(error.format_message().rstrip(".") + "; `--help` lists the options", EXIT_BAD_INPUT)
    except InputError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except Interrupted as error:
        return _fail(str(error), EXIT_INTERRUPTED)
    except AutoflipSecureError as error:
        return _fail(str(error), EXIT_CANNOT_CONTINUE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    return int(result or 0)


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code

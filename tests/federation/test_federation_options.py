"""The command line is read from RunConfig, so no option can be missing, renamed or of another type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import typer

from autoflip_secure.config import RunConfig, flag_of
from autoflip_secure.errors import BudgetExhausted, ConfigError, StorageError
from autoflip_secure.options import config_from, run_command, with_config_options
from autoflip_secure.sim import app as sim_app

GIVEN: dict[str, Any] = {}


def echo(options: dict[str, Any], *, extra: str = "none") -> None:
    """Keep what was given."""
    GIVEN.clear()
    GIVEN.update(options, extra=extra)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(with_config_options(echo))
    return made


def flags(app: typer.Typer) -> dict[str, click.Option]:
    command = typer.main.get_command(app)
    return {flag: p for p in command.params if isinstance(p, click.Option) for flag in p.opts}


def test_every_field_is_a_flag_with_its_description() -> None:
    shown = flags(sim_app)
    for name, field in RunConfig.model_fields.items():
        option = shown[flag_of(name)]
        assert field.description, name
        assert option.help.startswith(field.description)
        assert option.default is None, "a default on the command line would win over a file"
        if field.default not in (None, False):
            assert f"[{field.default}]" in option.help


def test_the_command_has_no_option_besides_the_fields_and_its_own() -> None:
    own = {"--resume", "--config", "--preset", "--summary", "--quiet", "--report", "--help"}
    assert set(flags(sim_app)) - own == {flag_of(name) for name in RunConfig.model_fields}


def test_values_have_the_fields_types(app: typer.Typer) -> None:
    arguments = ["--rounds", "3", "--dp-epsilon", "2", "--dataset", "digits", "--run-dir", "x", "--no-warm-start"]
    assert run_command(app, [*arguments, "--record-server-view", "--aggregation", "plain", "--extra", "own"]) == 0
    assert {
        "rounds": 3,
        "dp_epsilon": 2.0,
        "dataset": "digits",
        "run_dir": Path("x"),
        "warm_start": False,
        "record_server_view": True,
        "aggregation": "plain",
        "extra": "own",
    } == GIVEN


def test_what_was_not_given_is_absent(app: typer.Typer) -> None:
    assert run_command(app, []) == 0
    assert GIVEN == {"extra": "none"}


def test_false_is_given_too(app: typer.Typer) -> None:
    """An option that is False must still win over a file that says true."""
    assert run_command(app, ["--no-insecure-reproducible-noise"]) == 0
    assert GIVEN["insecure_reproducible_noise"] is False


def test_precedence_is_command_line_then_file_then_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("rounds = 9\nseed = 4\ninsecure-reproducible-noise = true\n")
    config = config_from({"rounds": 2, "insecure_reproducible_noise": False}, file)
    assert (config.rounds, config.seed, config.bits) == (2, 4, 16)
    assert config.insecure_reproducible_noise is False
    assert config_from({}, None) == RunConfig()


def test_a_wrong_value_in_the_file_is_refused_although_others_win(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("silos = 1\n")
    with pytest.raises(ConfigError, match="--silos"):
        config_from({"rounds": 2}, tmp_path / "c.toml")
    assert config_from({"silos": 5}, tmp_path / "c.toml").silos == 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("one\nline"), 2),
        (StorageError("disk"), 3),
        (BudgetExhausted("spent"), 3),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.command()
    def fail() -> None:
        raise error

    assert run_command(made, []) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.command()
    def fail() -> None:
        raise KeyboardInterrupt

    assert run_command(made, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_nobody_foresaw_is_not_hidden() -> None:
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(made, [])


def test_wrong_use_is_exit_code_two(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--rounds", "three"], ["--round"], ["--rounds"], ["stray"]):
        assert run_command(app, arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1

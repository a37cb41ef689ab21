"""models, history, promote, rollback, verify: the registry."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from contrique.cli.options import (
    add_command,
    add_settings,
    print_line,
    resolve_config,
)
from contrique.text import dump_json, escape_control


def add_parsers(commands: Any) -> None:
    """Add the commands of this module."""
    models = add_command(
        commands, "models", list_models, "list the registered versions, newest first", "contrique models --format json"
    )
    history = add_command(
        commands,
        "history",
        list_history,
        "list every promotion, rollback and hold: who, when, why",
        "contrique history",
    )
    for command in (models, history):
        command.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
        add_settings(command)

    promotion = add_command(
        commands,
        "promote",
        promote,
        "make a registered version champion; the one before stays reachable as `previous`",
        "contrique promote 3 --reason 'better on our scans'",
    )
    promotion.add_argument("version", metavar="VERSION", help="a number from `contrique models`")
    reversal = add_command(
        commands,
        "rollback",
        rollback,
        "give the alias back to the champion before this one",
        "contrique rollback --reason 'scores drift on night shots'",
    )
    verification = add_command(
        commands,
        "verify",
        verify,
        "prove a version by its hash, and by asking MLflow's server for a score",
        "contrique verify\n  contrique verify 3   # one that was promoted on MLflow's page",
    )
    verification.add_argument(
        "version", nargs="?", default="", metavar="VERSION", help="a number or an alias; default: the champion"
    )
    add_settings(verification)
    for command in (promotion, reversal):
        command.add_argument("--reason", default="", help="for the history")
        add_settings(command)


def list_models(options: argparse.Namespace) -> None:
    """Print the registered versions."""
    from contrique.registry.promotion import find_unrecorded
    from contrique.registry.versions import UNPROVEN, Registry

    columns = {
        "version": "version",
        "aliases": "alias",
        "srcc": "SRCC",
        "interval": "interval",
        "labels": "labels",
        "proof": "proof",
        "created": "created",
        "data_hash": "data",
        "run": "run",
    }
    registry = Registry(resolve_config(options).registry)
    rows = registry.list_versions()
    _print_rows(rows, columns, options.format, "no model is registered yet; run the pipeline, such as `make demo`")
    for row in rows:
        if registry.config.alias in row.aliases and row.proof == UNPROVEN:
            _warn(f"version {row.version} is champion and was never proven: `contrique verify {row.version}`")
    if version := find_unrecorded(registry):
        _warn(f"version {version} became champion past this project, as on MLflow's page: `contrique history` lacks it")


def list_history(options: argparse.Namespace) -> None:
    """Print all changes of the champion."""
    from contrique.registry.promotion import read_history
    from contrique.registry.versions import Registry

    columns = {
        "time": "time (UTC)",
        "action": "action",
        "replaced": "from",
        "version": "to",
        "who": "who",
        "data_hash": "data",
        "reason": "why",
    }
    rows = read_history(Registry(resolve_config(options).registry))
    _print_rows(rows, columns, options.format, "nothing has happened yet")


def promote(options: argparse.Namespace) -> None:
    """Make a version champion."""
    from contrique.registry import promotion
    from contrique.registry.versions import Registry

    champion = promotion.promote(Registry(resolve_config(options).registry), options.version, options.reason)
    print_line(f"version {champion.version} of '{champion.name}' is {champion.alias}")


def rollback(options: argparse.Namespace) -> None:
    """Make the previous champion champion again."""
    from contrique.registry import promotion
    from contrique.registry.versions import Registry

    champion = promotion.rollback(Registry(resolve_config(options).registry), options.reason)
    print_line(f"version {champion.version} of '{champion.name}' is {champion.alias} again")


def verify(options: argparse.Namespace) -> None:
    """Prove a version."""
    from contrique.registry import proof
    from contrique.registry.versions import Registry

    registry = Registry(resolve_config(options).registry)
    name = options.version or registry.config.alias
    words = proof.verify(registry, name)
    version = registry.find_version(name).version
    print_line(f"version {version} of '{registry.config.model}' is proven, {words}")


def _warn(text: str) -> None:
    print(f"contrique: warning: {escape_control(text)}", file=sys.stderr)


def _print_rows(rows: Sequence[Any], columns: dict[str, str], form: str, empty: str) -> None:
    """Print dataclasses as JSON, or some of their fields as a table.

    Args:
        rows: dataclasses.
        columns: field to heading.
        form: `json` or `table`.
        empty: printed instead of a table without rows.
    """
    if form == "json":
        print(dump_json([dataclasses.asdict(row) for row in rows], indent=2))
    elif not rows:
        print(empty)
    else:
        from tabulate import tabulate

        cells = [[_format_cell(getattr(row, name)) for name in columns] for row in rows]
        print(tabulate(cells, list(columns.values()), tablefmt="plain", disable_numparse=True))


def _format_cell(value: Any) -> str:
    return escape_control(", ".join(value) if isinstance(value, tuple) else str(value)) or "-"

"""What the verbs have in common: options, the settings, and how a running daemon is asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from streamlearn.errors import StreamlearnError
from streamlearn.settings import Settings, load

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file.", metavar="FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="A setting, such as learner.batch_size=64.", metavar="NAME=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="For a script.")]
Url = Annotated[str, typer.Option("--url", envvar="STREAMLEARN_URL", help="The daemon's address.")]


def console() -> Console:
    """For what a verb prints; in a pipe or a log as wide as it needs, for there 80 columns would cut tables short."""
    usual = Console()
    return usual if usual.is_terminal or "COLUMNS" in os.environ else Console(width=200)


def settings_of(config: Path | None, override: list[str] | None) -> Settings:
    """The settings that these options name.

    Raises:
        SettingsError: one is wrong.
    """
    values: dict[str, Any] = {}
    for pair in override or []:
        name, equals, value = pair.partition("=")
        if not equals:
            # Not all of it: it may hold a secret.
            raise typer.BadParameter(f"--set {re.match(r'[a-z_.]*', pair)[0]} ...: write NAME=VALUE")  # type: ignore[index]
        values[name.strip()] = value
    return load(config, values)


def ask(
    url: str, path: str, body: dict[str, Any] | None = None, *, method: str | None = None, timeout_s: float = 30
) -> Any:
    """What a daemon answers; None where it answers nothing.

    Args:
        url: of the daemon.
        path: of the resource.
        body: makes it a POST.
        method: another one.
        timeout_s: for the answer.

    Raises:
        StreamlearnError: it is not there, or refuses, with its sentence.
    """
    if not url.startswith(("http://", "https://")):
        raise StreamlearnError(f"no daemon answers at {url}: write http://HOST:PORT")
    headers: dict[str, Any] = {"Content-Type": "application/json"}
    if token := os.environ.get("STREAMLEARN_TOKEN", "").strip():
        headers["Authorization"] = b"Bearer " + token.encode()
    try:
        request = urllib.request.Request(
            url.rstrip("/") + path, None if body is None else json.dumps(body).encode(), headers, method=method
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return None if response.status == 204 else json.load(response)
    except urllib.error.HTTPError as error:
        raise StreamlearnError(f"{url}{path}: {error.code}: {_detail(error)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StreamlearnError(f"no daemon answers at {url}: {error}; start one with `streamlearn run`") from error


def _detail(error: urllib.error.HTTPError) -> str:
    """What a problem document says; the status line's words where another server answered."""
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return error.reason

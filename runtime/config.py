"""The configuration of a deployment: one TOML file, every value with a default."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ..actors.registry import ModelSpec, check_models, default_models
from ..schemas import InvalidRequest, Wire
from ..schemas.wire import convert

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class GatewayConfig(Wire, frozen=True):
    """The limits of the gateway.

    Attributes:
        max_message_bytes: the largest websocket message or HTTP body from a client.
        max_calls_per_connection: how many calls may run at once on one websocket.
        max_timeout: the longest deadline that a client may ask for, in seconds.
        write_timeout: how long a client may take nothing before its connection is dropped, in seconds.
        shutdown_grace: how long running calls may go on after the gateway was told to stop, in seconds.
    """

    max_message_bytes: Count = 1 << 20
    max_calls_per_connection: Count = 256
    max_timeout: Seconds = 86_400.0
    write_timeout: Seconds = 15.0
    shutdown_grace: Seconds = 5.0


class Config(Wire, frozen=True):
    """A deployment.

    Attributes:
        models: what the inference workers serve; SmolLM2-135M-Instruct where nothing is configured.
        gateway: the limits of the gateway.
    """

    models: list[ModelSpec] = []
    gateway: GatewayConfig = GatewayConfig()

    @property
    def served_models(self) -> list[ModelSpec]:
        """The configured models, or the embedded default."""
        return self.models or default_models()


def load_config(path: Path | None) -> Config:
    """Read a configuration file; without one, everything has its default.

    Raises:
        InvalidRequest: the file is missing or wrong; the message names the file and the path of the value.
    """
    if path is None:
        return Config()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(
            f"the configuration {path} cannot be read: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the configuration {path} is not TOML: {error}") from error
    try:
        config = convert(values, Config)
        check_models(config.served_models)
    except InvalidRequest as error:
        raise InvalidRequest(f"the configuration {path} is wrong: {error.message}") from error
    return config

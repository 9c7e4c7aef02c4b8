"""The configuration of a deployment: one TOML file, every value with a default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ..actors.attachments.settings import AttachmentsConfig
from ..actors.datasets.settings import DatasetsConfig
from ..actors.embedding.registry import EmbedderSpec, check_embedders, default_embedders
from ..actors.registry import ModelSpec, check_models, default_models
from ..actors.rewards.specs import AnyRewardSpec, check_rewards, default_rewards
from ..actors.serving.settings import ServingConfig
from ..actors.shields.settings import ShieldsConfig, check_shields
from ..actors.synthetic.settings import SyntheticDataConfig
from ..actors.tools.settings import ToolsConfig, check_tools
from ..actors.training.settings import TrainingSettings
from ..schemas import OPERATIONS, InvalidRequest, Wire
from ..schemas.wire import convert
from .auth import TokenSpec, check_tokens
from .toml_files import read_toml

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class GatewayConfig(Wire, frozen=True):
    """Who may talk to the gateway, and its limits.

    Attributes:
        max_message_bytes: the largest websocket message or HTTP body from a client.
        max_calls_per_connection: how many calls may run at once on one websocket.
        max_timeout: the longest deadline that a client may ask for, in seconds.
        write_timeout: how long a client may take nothing before its connection is dropped, in seconds.
        shutdown_grace: how long running calls may go on after the gateway was told to stop, in seconds.
        request_timeout: how long a client may take to send a request's headers and body, in seconds.
        ping_interval: how often websocket clients are asked whether they are there, and how long they have to answer, in
            seconds.
        max_connections: how many connections there may be; further ones are told to come back later.
        max_calls_per_caller: how many calls of one token (of one address, where there are no tokens) may run at once.
        calls_per_second: how many calls of one token or address may begin in a second; by default as many as come.
        tokens: who may call; without any, everybody who reaches the gateway, which must then be on loopback.
        allowed_hosts: the names under which clients reach the gateway, besides ``localhost`` and its addresses.
        allowed_origins: whose pages may call (``https://HOST[:PORT]``), besides those that the gateway serves.
        certfile: a PEM file with the certificate and its chain, for TLS.
        keyfile: the PEM file of its key.
    """

    max_message_bytes: Count = 1 << 20
    max_calls_per_connection: Count = 256
    max_timeout: Seconds = 86_400.0
    write_timeout: Seconds = 15.0
    shutdown_grace: Seconds = 5.0
    request_timeout: Seconds = 30.0
    ping_interval: Seconds = 20.0
    max_connections: Count = 10_000
    max_calls_per_caller: Count = 1024
    calls_per_second: Seconds | None = None
    tokens: list[TokenSpec] = []
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    certfile: str | None = None
    keyfile: str | None = None

    @property
    def tls(self) -> bool:
        """Whether clients talk to it over TLS."""
        return self.certfile is not None


def check_gateway(gateway: GatewayConfig) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: the tokens contradict each other, or half of a certificate is missing.
    """
    check_tokens(gateway.tokens, {operation.api for operation in OPERATIONS.values()})
    if (gateway.certfile is None) != (gateway.keyfile is None):
        raise InvalidRequest("gateway.certfile and gateway.keyfile belong together")
    if "*" in gateway.allowed_origins:
        raise InvalidRequest("gateway.allowed_origins: name the origins, `*` would be everybody")


class Config(Wire, frozen=True):
    """A deployment.

    Attributes:
        models: what the inference workers serve; SmolLM2-135M-Instruct where nothing is configured.
        embedders: what memory banks find documents by, the first one where a bank names none; all-MiniLM-L6-v2 where
            nothing is configured.
        rewards: what answers are scored by; the first language model as a judge where nothing is configured.
        gateway: the limits of the gateway.
        attachments: from where the attachments of messages may come, and what they may cost.
        datasets: from where the content of datasets may come.
        training: what trainers run jobs on.
        serving: what may be registered of what was trained.
        synthetic_data: who answers and scores where requests do not say.
        tools: what agents may call beside the operations of actors.
        shields: how the shields are set.
    """

    models: list[ModelSpec] = []
    embedders: list[EmbedderSpec] = []
    rewards: list[AnyRewardSpec] = []
    gateway: GatewayConfig = GatewayConfig()
    attachments: AttachmentsConfig = AttachmentsConfig()
    datasets: DatasetsConfig = DatasetsConfig()
    training: TrainingSettings = TrainingSettings()
    serving: ServingConfig = ServingConfig()
    synthetic_data: SyntheticDataConfig = SyntheticDataConfig()
    tools: ToolsConfig = ToolsConfig()
    shields: ShieldsConfig = ShieldsConfig()

    @property
    def served_models(self) -> list[ModelSpec]:
        """The configured models, or the embedded default."""
        return self.models or default_models()

    @property
    def served_embedders(self) -> list[EmbedderSpec]:
        """The configured embedding models, or the default."""
        return self.embedders or default_embedders()

    @property
    def served_rewards(self) -> list[AnyRewardSpec]:
        """The configured reward models, or the default."""
        return self.rewards or default_rewards(self._other_names)

    @property
    def _other_names(self) -> list[str]:
        """The names of all models that are no reward models, those of language models first."""
        models = [name for spec in self.served_models for name in (spec.name, *spec.aliases)]
        return [*models, *(spec.name for spec in self.served_embedders)]

    def check(self) -> None:
        """Refuse what types cannot tell.

        Raises:
            InvalidRequest: something is wrong; the message names the entry.
        """
        check_models(self.served_models)
        check_embedders(self.served_embedders)
        check_rewards(self.served_rewards, self._other_names)
        check_gateway(self.gateway)
        check_tools(self.tools)
        check_shields(self.shields)


def load_config(path: Path | None) -> Config:
    """Read a configuration file; without one, everything has its default.

    Raises:
        InvalidRequest: the file is missing or wrong; the message names the file and the path of the value.
    """
    if path is None:
        return Config()
    try:
        values = read_toml(path)
    except InvalidRequest as error:
        raise InvalidRequest(f"the configuration {error.message}") from error
    try:
        config = convert(values, Config)
        config.check()
    except InvalidRequest as error:
        raise InvalidRequest(f"the configuration {path} is wrong: {error.message}") from error
    return config

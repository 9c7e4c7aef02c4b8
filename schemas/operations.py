"""The table of all operations of the specification and of its extensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from .agents import AgenticSystem, AgentTurns
from .datasets import Datasets
from .embeddings import Embeddings
from .groups import Groups
from .improvement import Improvement
from .inference import Inference
from .memory import MemoryBankDocuments, MemoryBanks
from .model_registry import ModelRegistry
from .models import Models
from .post_training import PostTraining
from .rewards import RewardScoring
from .safety import Safety
from .synthetic_data import SyntheticDataGeneration, SyntheticDataJobs
from .tools import ToolList, Tools
from .tracing import TurnTraces
from .training_jobs import PostTrainingJobs
from .triggers import Triggers
from .webmethod import Operation, operations_of

PROTOCOLS: tuple[type, ...] = (
    Inference,
    AgenticSystem,
    AgentTurns,
    TurnTraces,
    MemoryBanks,
    MemoryBankDocuments,
    RewardScoring,
    SyntheticDataGeneration,
    SyntheticDataJobs,
    Datasets,
    PostTraining,
    PostTrainingJobs,
    Models,
    ModelRegistry,
    Improvement,
    Embeddings,
    Tools,
    ToolList,
    Safety,
    Triggers,
    Groups,
)


def table_of(protocols: Iterable[type]) -> Mapping[str, Operation]:
    """Return the operations of many Protocols by name.

    Raises:
        TypeError: two operations have the same name.
    """
    table: dict[str, Operation] = {}
    for protocol in protocols:
        for operation in operations_of(protocol):
            if operation.name in table:
                raise TypeError(f"two operations are called {operation.name}")
            table[operation.name] = operation
    return MappingProxyType(table)


OPERATIONS: Mapping[str, Operation] = table_of(PROTOCOLS)

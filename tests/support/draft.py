"""What of the table of operations is not the draft's."""

from __future__ import annotations

EXTENSIONS = frozenset(
    {
        "models",
        "embeddings",
        "memory_bank.query",
        "memory_bank.documents",
        "memory_bank.stats",
        "agentic_system.get",
        "agentic_system.list",
        "agentic_system.turn.get",
        "agentic_system.turn.list",
        "agentic_system.turn.events",
        "agentic_system.turn.cancel",
        "datasets.list",
        "post_training.job.events",
        "post_training.job.list",
        "models.register",
        "models.unregister",
        "models.registered",
        "models.rollback",
        "post_training.reward_model",
        "synthetic_data_generation.job.start",
        "synthetic_data_generation.job.results",
        "synthetic_data_generation.job.statistics",
        "improvement.start",
        "improvement.report",
        "agentic_system.turn.approve",
        "agentic_system.turn.approvals",
        "agentic_system.turn.trace",
        "tools.call",
        "tools.list",
        "safety.check",
        "groups.create",
        "groups.get",
        "groups.list",
        "groups.delete",
        "groups.post",
        "groups.events",
        "groups.close",
        "triggers.create",
        "triggers.get",
        "triggers.list",
        "triggers.delete",
        "triggers.preview",
    }
)
"""Operations that the draft does not have."""
EXTRA_PARAMETERS = {"memory_banks.create": ["embedding_model", "chunk_size", "chunk_overlap"]}
"""What operations of the draft take beside what it names; none of it is required."""

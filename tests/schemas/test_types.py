"""Every type has the specification's fields, types and defaults; what we added is optional."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, get_type_hints

import msgspec
import pytest

from ayllu import schemas as s

REQUIRED: Any = msgspec.NODEFAULT
Fields = dict[str, tuple[Any, Any]]

LORA: Fields = {
    "lora_attn_modules": (list[str], REQUIRED),
    "apply_lora_to_mlp": (bool, REQUIRED),
    "apply_lora_to_output": (bool, REQUIRED),
    "rank": (int, REQUIRED),
    "alpha": (int, REQUIRED),
}
JOB: Fields = {
    "job_uuid": (str, REQUIRED),
    "dataset": (s.Dataset, REQUIRED),
    "validation_dataset": (s.Dataset, REQUIRED),
    "optimizer_config": (s.OptimizerConfig, REQUIRED),
    "training_config": (s.TrainingConfig, REQUIRED),
    "hyperparam_search_config": (s.HyperparameterSearch, REQUIRED),
    "logger_config": (s.LoggerConfig, REQUIRED),
}
SAMPLED: Fields = {
    "model": (str, REQUIRED),
    "sampling_params": (s.SamplingParams, s.SamplingParams()),
    "max_tokens": (int, 0),
    "logprobs": (bool, False),
}
ANSWERED: Fields = {
    "stop_reason": (s.StopReason | None, None),
    "logprobs": (dict[str, Any] | None, None),
}

# Names of models are strings (decision 1), `strategy` is the enum of decision 4, the two configurations that the draft
# leaves open are ours (decision 8); URL is a string with a pattern.
STRUCTS: dict[type[msgspec.Struct], Fields] = {
    s.Attachment: {"url": (str, REQUIRED), "mime_type": (str, REQUIRED)},
    s.ToolCall: {"tool_name": (str, REQUIRED), "arguments": (dict[str, Any], REQUIRED)},
    s.ToolResponse: {"tool_name": (str, REQUIRED), "content": (s.Content, REQUIRED)},
    s.ToolDefinition: {
        "tool_name": (str, REQUIRED),
        "parameters": (dict[str, Any] | None, None),
        "input_shields": (list[s.ShieldConfig], []),
        "output_shields": (list[s.ShieldConfig], []),
    },
    s.Message: {
        "role": (s.Role, REQUIRED),
        "content": (s.Content, REQUIRED),
        "tool_calls": (list[s.ToolCall], []),
        "tool_responses": (list[s.ToolResponse], []),
    },
    s.Dialog: {
        "message": (s.Message, REQUIRED),
        "message_history": (list[s.Message] | None, None),
    },
    s.SamplingParams: {
        "temperature": (float, 0.0),
        "strategy": (s.SamplingStrategy, "greedy"),
        "top_p": (float, 0.95),
        "top_k": (int, 0),
    },
    s.ShieldConfig: {"shield_type": (str, REQUIRED), "params": (dict[str, Any], {})},
    s.SafetyViolation: {
        "violation_type": (str, REQUIRED),
        "details": (str, REQUIRED),
        "suggested_user_response": (str | None, None),
    },
    s.ModelInferenceStep: {
        "uuid": (str, REQUIRED),
        "text": (str, REQUIRED),
        "logprobs": (dict[str, Any] | None, None),
    },
    s.ToolExecutionStep: {
        "uuid": (str, REQUIRED),
        "tool_calls": (list[s.ToolCall], REQUIRED),
        "tool_responses": (list[s.ToolResponse], REQUIRED),
    },
    s.SafetyFilteringStep: {
        "uuid": (str, REQUIRED),
        "violation": (s.SafetyViolation | None, None),
    },
    s.MemoryRetrievalStep: {
        "uuid": (str, REQUIRED),
        "documents": (list[s.MemoryBankDocument], REQUIRED),
        "scores": (list[float], REQUIRED),
    },
    s.MemoryBank: {"uuid": (str, REQUIRED), "name": (str, REQUIRED)},
    s.MemoryBankDocument: {
        "uuid": (str, REQUIRED),
        "content": (bytes, REQUIRED),
        "metadata": (dict[str, Any], REQUIRED),
        "mime_type": (str, REQUIRED),
    },
    s.AgenticSystemTurn: {
        "user_messages": (list[s.Message], REQUIRED),
        "steps": (list[s.ExecutionStep], REQUIRED),
        "response_message": (s.Message, REQUIRED),
    },
    s.Dataset: {
        "columns": (dict[str, s.DatasetColumnType], REQUIRED),
        "content_url": (str, REQUIRED),
        "metadata": (dict[str, Any], {}),
    },
    s.OptimizerConfig: {
        "optimizer_type": (s.OptimizerType, REQUIRED),
        "lr": (float, REQUIRED),
        "lr_min": (float, REQUIRED),
        "weight_decay": (float, REQUIRED),
    },
    s.TrainingConfig: {
        "n_epochs": (int, REQUIRED),
        "batch_size": (int, REQUIRED),
        "shuffle": (bool, REQUIRED),
        "n_iters": (int, REQUIRED),
        "enable_activation_checkpointing": (bool, REQUIRED),
        "memory_efficient_fsdp_wrap": (bool, REQUIRED),
        "fsdp_cpu_offload": (bool, REQUIRED),
    },
    s.LoraFinetuningConfig: LORA,
    s.QLoraFinetuningConfig: LORA,
    s.DoraFinetuningConfig: LORA,
    s.PostTrainingJobLogStream: {
        "job_uuid": (str, REQUIRED),
        "log_lines": (list[str], REQUIRED),
    },
    s.Checkpoint: {"iters": (int, REQUIRED), "path": (str, REQUIRED)},
    s.DPOAlignmentConfig: dict.fromkeys(
        ("reward_scale", "reward_clip", "epsilon", "gamma"), (float, REQUIRED)
    ),
    s.CompletionRequest: {**SAMPLED, "content": (s.Content, REQUIRED), "stream": (bool, False)},
    s.CompletionResponse: {**ANSWERED, "content": (s.Content, REQUIRED)},
    s.CompletionResponseStreamChunk: {**ANSWERED, "text_delta": (str, REQUIRED)},
    s.ChatCompletionRequest: {
        **SAMPLED,
        "dialog": (s.Dialog, REQUIRED),
        "available_tools": (list[s.ToolDefinition], []),
        "stream": (bool, False),
    },
    s.ChatCompletionResponse: {
        **ANSWERED,
        "content": (s.Content, REQUIRED),
        "tool_calls": (list[s.ToolCall], []),
    },
    s.ChatCompletionResponseStreamChunk: {
        "text_delta": (str, REQUIRED),
        "stop_reason": (s.StopReason | None, None),
        "tool_call": (s.ToolCall | None, None),
    },
    s.BatchCompletionRequest: {**SAMPLED, "content_batch": (list[s.Content], REQUIRED)},
    s.BatchChatCompletionRequest: {
        **SAMPLED,
        "batch_dialogs": (list[s.Dialog], REQUIRED),
        "available_tools": (list[s.ToolDefinition], []),
    },
    s.AgenticSystemCreateRequest: {
        "uuid": (str, REQUIRED),
        "instructions": (str, REQUIRED),
        "model": (str, REQUIRED),
        "available_tools": (list[s.ToolDefinition], []),
        "executable_tools": (set[str], set()),
        "memory_bank_uuids": (list[str], []),
        "input_shields": (list[s.ShieldConfig], []),
        "output_shields": (list[s.ShieldConfig], []),
    },
    s.AgenticSystemCreateResponse: {"agent_uuid": (str, REQUIRED)},
    s.AgenticSystemExecuteRequest: {
        "agent_uuid": (str, REQUIRED),
        "messages": (list[s.Message], REQUIRED),
        "turn_history": (list[s.AgenticSystemTurn] | None, None),
        "stream": (bool, False),
    },
    s.AgenticSystemExecuteResponse: {"turn": (s.AgenticSystemTurn, REQUIRED)},
    s.AgenticSystemExecuteResponseStreamChunk: {
        "event_type": (s.AgenticSystemExecuteResponseEventType, REQUIRED),
        "step_uuid": (str, REQUIRED),
        "step_type": (s.ExecutionStepType, REQUIRED),
        "violation": (s.SafetyViolation | None, None),
        "tool_call": (s.ToolCall | None, None),
        "tool_response_delta": (s.ToolResponse | None, None),
        "response_text_delta": (str | None, None),
        "retrieved_document": (s.MemoryBankDocument | None, None),
        "stop_reason": (s.StopReason | None, None),
    },
    s.KPromptGenerations: {
        "dialog": (s.Dialog, REQUIRED),
        "k_generations": (list[s.Message], REQUIRED),
    },
    s.ScoredMessage: {"message": (s.Message, REQUIRED), "score": (float, REQUIRED)},
    s.KScoredPromptGenerations: {
        "prompt": (s.Message, REQUIRED),
        "k_scored_generations": (list[s.ScoredMessage], REQUIRED),
    },
    s.RewardScoringRequest: {
        "prompt_generations": (list[s.KPromptGenerations], REQUIRED),
        "model": (str, REQUIRED),
    },
    s.RewardScoringResponse: {"scored_generations": (list[s.KScoredPromptGenerations], REQUIRED)},
    s.RewardScoringConfig: {"model": (str, REQUIRED), "threshold": (float | None, None)},
    s.SyntheticDataGenerationRequest: {
        "prompts": (list[s.Message], REQUIRED),
        "filtering_function": (s.FilteringFunction, "none"),
        "reward_scoring": (s.RewardScoringConfig | None, None),
    },
    s.SyntheticDataGenerationResponse: {
        "synthetic_data": (list[s.KScoredPromptGenerations], REQUIRED),
        "statistics": (dict[str, Any] | None, None),
    },
    s.CreateDatasetRequest: {"uuid": (str, REQUIRED), "dataset": (s.Dataset, REQUIRED)},
    s.PostTrainingSFTRequest: {
        **JOB,
        "model": (str, REQUIRED),
        "algorithm": (s.FinetuningAlgorithm, REQUIRED),
        "algorithm_config": (s.LoraFinetuningConfig, REQUIRED),
    },
    s.PostTrainingRLHFRequest: {
        **JOB,
        "finetuned_model": (str, REQUIRED),
        "algorithm": (s.RLHFAlgorithm, REQUIRED),
        "algorithm_config": (s.DPOAlignmentConfig, REQUIRED),
    },
    s.PostTrainingJobStatusResponse: {
        "job_uuid": (str, REQUIRED),
        "status": (s.PostTrainingJobStatus, REQUIRED),
        "scheduled_at": (datetime | None, None),
        "started_at": (datetime | None, None),
        "completed_at": (datetime | None, None),
        "resources_allocated": (dict[str, Any] | None, None),
        "checkpoints": (list[s.Checkpoint], []),
    },
    s.PostTrainingJobArtifactsResponse: {
        "job_uuid": (str, REQUIRED),
        "checkpoints": (list[s.Checkpoint], []),
    },
}

ADDED: dict[type[msgspec.Struct], set[str]] = {
    s.ModelInferenceStep: {"stop_reason", "usage"},
    s.AgenticSystemTurn: {"turn_id", "usage", "history"},
    s.AgenticSystemCreateRequest: {
        "sampling_params", "max_tokens", "tool_choice", "max_steps", "history_policy", "retrieval",
        "require_approval", "approval_timeout", "sub_agents", "limits",
    },
    s.AgenticSystemExecuteRequest: {
        "turn_id", "when_busy", "expires_in", "limits", "detached", "cause",
    },
    s.AgenticSystemExecuteResponseStreamChunk: {"approval", "child_turn", "child", "call"},
    s.SafetyViolation: {"shield", "observed", "score"},
    s.ToolDefinition: {"description"},
    s.SamplingParams: {"seed", "stop"},
    s.CompletionResponse: {"usage"},
    s.CompletionResponseStreamChunk: {"usage"},
    s.ChatCompletionRequest: {"tool_choice", "assistant_prefix", "json_schema", "answer_choices"},
    s.ChatCompletionResponse: {"usage"},
    s.ChatCompletionResponseStreamChunk: {"logprobs", "usage"},
    s.BatchChatCompletionRequest: {"tool_choice", "json_schema"},
    s.SyntheticDataGenerationRequest: {
        "model", "num_candidates", "k", "p", "temperature", "seed", "max_tokens", "context", "help", "references",
        "max_similarity", "target", "max_candidates",
    },
    s.KPromptGenerations: {"reference"},
    s.ScoredMessage: {"parts"},
    s.KScoredPromptGenerations: {"index", "unscored"},
    s.RewardScoringRequest: {"threshold", "stream"},
    s.Dataset: {"fingerprint"},
    s.TrainingConfig: {
        "checkpoint_every", "keep_checkpoints", "evaluate_every", "max_length", "seed", "num_processes",
    },
    s.Checkpoint: {"kind", "validation_loss"},
    s.PostTrainingJobStatusResponse: {
        "kind", "model", "algorithm", "phase", "position", "attempt", "metrics",
        "dataset_fingerprint", "validation_fingerprint", "progress", "trials", "failure",
    },
    s.PostTrainingJobArtifactsResponse: {"files", "tensorboard", "metrics"},
}  # fmt: skip

ENUMS: dict[type[StrEnum], set[str]] = {
    s.Role: {"system", "user", "assistant", "tool"},
    s.BuiltinTool: {"web_search", "math", "image_gen", "code_interpreter"},
    s.StopReason: {"not_stopped", "finished_ok", "max_tokens"},
    s.SamplingStrategy: {"greedy", "top_p", "top_k"},
    s.PretrainedModel: {"llama3_8b", "llama3_70b"},
    s.InstructModel: {"llama3_8b_chat", "llama3_70b_chat"},
    s.RewardModel: {"llama3_405b_reward"},
    s.ShieldType: {"llama_guard", "prompt_guard", "code_guard"},
    s.ExecutionStepType: {
        "model_inference", "tool_execution", "safety_filtering", "memory_retrieval",
    },
    s.AgenticSystemExecuteResponseEventType: {"step_start", "step_end", "step_progress"},
    s.FilteringFunction: {"none", "random", "top_k", "top_p", "top_k_top_p", "sigmoid"},
    s.DatasetColumnType: {"dialog", "text", "media", "number", "json"},
    s.OptimizerType: {"adam", "adamw", "sgd"},
    s.FinetuningAlgorithm: {"full", "lora", "qlora", "dora"},
    s.PostTrainingJobStatus: {"running", "completed", "failed", "scheduled"},
    s.RLHFAlgorithm: {"dpo"},
}  # fmt: skip


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """Return a field's default, also one that is made anew for each value."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


@pytest.mark.requirement("spec-types")
@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_a_struct_has_the_drafts_fields(struct: type[msgspec.Struct]) -> None:
    hints = get_type_hints(struct)
    found = {
        field.encode_name: (hints[field.name], default_of(field))
        for field in msgspec.structs.fields(struct)
    }
    added = ADDED.get(struct, set())
    assert {name: found[name] for name in found if name not in added} == STRUCTS[struct]


@pytest.mark.requirement("spec-extensions-optional")
@pytest.mark.parametrize("struct", ADDED, ids=lambda struct: struct.__name__)
def test_what_was_added_is_optional(struct: type[msgspec.Struct]) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    assert REQUIRED not in [default_of(fields[name]) for name in ADDED[struct]]


@pytest.mark.requirement("spec-types")
@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_an_enum_has_the_drafts_names(enum: type[StrEnum]) -> None:
    assert {member.value for member in enum} == ENUMS[enum]
    assert all(member.name == member.value for member in enum)


def test_no_type_is_forgotten() -> None:
    """Every struct that an operation reads or writes is in the table above, or is an extension of ours."""
    ours = {
        s.AnswerChoice,
        s.Model,
        s.TokenUsage,
        s.DatasetInfo,
        s.HyperparameterSearch,
        s.SearchParameter,
        s.LoggerConfig,
        s.JobEvent,
        s.JobFailure,
        s.JobFile,
        s.JobMetrics,
        s.JobProgress,
        s.JobTrial,
        s.PostTrainingRewardRequest,
        s.ScoreAnswerRequest,
        s.ScoreAnswerResponse,
        s.UnscoredGeneration,
        s.PromptStatistics,
        s.ScoreDistribution,
        s.SyntheticDataJobRequest,
        s.SyntheticDataStatistics,
        s.SyntheticDataset,
        s.Evaluation,
        s.ImproveRequest,
        s.ImprovementEvaluation,
        s.ImprovementGeneration,
        s.ImprovementReport,
        s.ImprovementRound,
        s.ImprovementTraining,
        s.LossPoint,
        s.PromptSet,
        s.RegisterModelRequest,
        s.RegisteredModel,
        s.ModelVersion,
        s.EmbeddingsRequest,
        s.EmbeddingsResponse,
        s.MemoryBankMatch,
        s.MemoryBankQuery,
        s.MemoryBankQueryResult,
        s.MemoryBankStats,
        s.Agent,
        s.HistoryUse,
        s.Retrieval,
        s.ToolOffer,
        s.ToolRequest,
        s.Approval,
        s.ApproveRequest,
        s.ShieldOffer,
        s.ShieldRequest,
        s.ShieldResponse,
        s.Turn,
        s.TurnEvent,
        s.ChildEvent,
        *(s.Cause, s.ChildTurn, s.Limits, s.Spent, s.SubAgent, s.TurnRef),
        *(s.DocumentsChanged, s.JobEnded, s.ScheduleDue, s.TurnEnded),
        *(s.Schedule, s.Trigger, s.TriggerCreateRequest, s.TriggerPreview, s.TriggerPreviewRequest),
        *(s.CallTrace, s.StepTrace, s.TurnTrace),
        *(s.Group, s.GroupCreateRequest, s.GroupEvent, s.GroupMember, s.GroupPostRequest),
        *(s.GroupRemark, s.GroupTurn),
        *(s.DescribedOperation, s.OwnOperation),
        *(s.Eq, s.Ne, s.In, s.Lt, s.Gt, s.Exists, s.And, s.Or, s.Not),
    }
    exported = [getattr(s, name) for name in s.__all__]
    structs = {
        value
        for value in exported
        if isinstance(value, type) and issubclass(value, s.Wire | s.Reply)
    }
    assert structs - {s.Wire, s.Reply} == STRUCTS.keys() | ours


@pytest.mark.requirement("spec-types")
def test_every_step_type_tags_a_step() -> None:
    tags = {
        step.__struct_config__.tag
        for step in (
            s.ModelInferenceStep,
            s.ToolExecutionStep,
            s.SafetyFilteringStep,
            s.MemoryRetrievalStep,
        )
    }
    assert tags == {member.value for member in s.ExecutionStepType}

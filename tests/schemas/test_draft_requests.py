"""Requests that are valid under the draft are valid here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.draft import EXTENSIONS

from ayllu import schemas as s

USER = {"role": "user", "content": "Hello"}
DIALOG = {"message": USER, "message_history": [{"role": "system", "content": "Be brief."}]}
DATASET = {"columns": {"dialog": "dialog"}, "content_url": "https://example.com/data.jsonl"}
TRAINING: dict[str, Any] = {
    "job_uuid": "job-1",
    "dataset": DATASET,
    "validation_dataset": {**DATASET, "metadata": {"split": "validation"}},
    "optimizer_config": {
        "optimizer_type": "adamw", "lr": 2e-5, "lr_min": 0, "weight_decay": 0.1,
    },
    "training_config": {
        "n_epochs": 1, "batch_size": 8, "shuffle": True, "n_iters": 100,
        "enable_activation_checkpointing": False, "memory_efficient_fsdp_wrap": False,
        "fsdp_cpu_offload": False,
    },
    "hyperparam_search_config": {},
    "logger_config": {},
}  # fmt: skip
DOCUMENT = {"uuid": "d", "content": "aGVsbG8=", "metadata": {}, "mime_type": "text/plain"}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("completion", {"content": "Once upon", "model": "llama3_8b"}),
    (
        "completion",
        {
            "content": ["Describe", {"url": "https://example.com/a.png", "mime_type": "image/png"}],
            "model": "llama3_70b",
            "sampling_params": {"temperature": 0.6, "strategy": "top_p", "top_p": 0.9, "top_k": 0},
            "max_tokens": 64,
            "stream": True,
            "logprobs": True,
        },
    ),
    ("chat_completion", {"model": "llama3_8b_chat", "dialog": {"message": USER}}),
    (
        "chat_completion",
        {
            "model": "llama3_70b_chat",
            "dialog": DIALOG,
            "available_tools": [
                {"tool_name": "web_search"},
                {"tool_name": "weather", "parameters": {"city": "string"}, "input_shields": []},
            ],
            "stream": False,
        },
    ),
    ("batch_completion", {"model": "llama3_8b", "content_batch": ["a", ["b", "c"]]}),
    ("batch_chat_completion", {"model": "llama3_8b_chat", "batch_dialogs": [DIALOG]}),
    (
        "agentic_system.create",
        {
            "uuid": "agent-1",
            "instructions": "You help.",
            "model": "llama3_8b_chat",
            "available_tools": [{"tool_name": "code_interpreter", "parameters": None}],
            "executable_tools": ["code_interpreter"],
            "memory_bank_uuids": ["bank-1"],
            "input_shields": [{"shield_type": "llama_guard"}],
            "output_shields": [{"shield_type": "code_guard", "params": {"strict": True}}],
        },
    ),
    ("agentic_system.execute", {"agent_uuid": "agent-1", "messages": [USER], "stream": True}),
    (
        "agentic_system.execute",
        {
            "agent_uuid": "agent-1",
            "messages": [
                {
                    "role": "tool",
                    "content": "",
                    "tool_responses": [{"tool_name": "weather", "content": "sunny"}],
                }
            ],
            "turn_history": [
                {
                    "user_messages": [USER],
                    "steps": [{"step_type": "model_inference", "uuid": "s", "text": "Hi"}],
                    "response_message": {"role": "assistant", "content": "Hi"},
                }
            ],
        },
    ),
    ("agentic_system.delete", {"agent_id": "agent-1"}),
    (
        "memory_banks.create",
        {"bank_uuid": "bank-1", "bank_name": "notes", "documents": [DOCUMENT]},
    ),
    ("memory_banks.get", {}),
    ("memory_banks.drop", {"bank_uuid": "bank-1"}),
    ("memory_bank.insert", {"bank_uuid": "bank-1", "documents": [DOCUMENT]}),
    ("memory_bank.update", {"bank_uuid": "bank-1", "documents": []}),
    ("memory_bank.get", {"bank_uuid": "bank-1", "document_uuids": ["d"]}),
    ("memory_bank.delete", {"bank_uuid": "bank-1", "document_uuids": ["d"]}),
    (
        "reward_scoring.score",
        {
            "prompt_generations": [{"dialog": {"message": USER}, "k_generations": [USER]}],
            "model": "llama3_405b_reward",
        },
    ),
    (
        "synthetic_data_generation.generate",
        {"prompts": [USER], "filtering_function": "sigmoid", "reward_scoring": None},
    ),
    ("datasets.create", {"uuid": "data-1", "dataset": DATASET}),
    ("datasets.get", {"dataset_id": "data-1"}),
    ("datasets.delete", {"dataset_id": "data-1"}),
    (
        "post_training.supervised_fine_tune",
        {
            **TRAINING,
            "model": "llama3_8b",
            "algorithm": "qlora",
            "algorithm_config": {
                "lora_attn_modules": ["q_proj"],
                "apply_lora_to_mlp": True,
                "apply_lora_to_output": False,
                "rank": 8,
                "alpha": 16,
            },
        },
    ),
    (
        "post_training.preference_optimize",
        {
            **TRAINING,
            "finetuned_model": "file:///checkpoints/1",
            "algorithm": "dpo",
            "algorithm_config": {
                "reward_scale": 1,
                "reward_clip": 5.0,
                "epsilon": 0.1,
                "gamma": 0.99,
            },
        },
    ),
    ("post_training.job.logs", {"job_uuid": "job-1"}),
    ("post_training.job.status", {"job_uuid": "job-1"}),
    ("post_training.job.cancel", {"job_uuid": "job-1"}),
    ("post_training.job.artifacts", {"job_uuid": "job-1"}),
]


@pytest.mark.requirement("spec-draft-requests")
@pytest.mark.parametrize(("name", "request_"), REQUESTS, ids=[name for name, _ in REQUESTS])
def test_a_request_of_the_draft_is_accepted(name: str, request_: dict[str, Any]) -> None:
    operation = s.OPERATIONS[name]
    value = operation.read(json.dumps(request_))
    assert operation.read(s.encode(value)) == value


def test_every_operation_of_the_draft_has_an_example() -> None:
    whole = {operation.base_name for operation in s.OPERATIONS.values()}
    assert {name for name, _ in REQUESTS} == whole - EXTENSIONS

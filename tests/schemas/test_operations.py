"""The table of operations is the specification's, row by row."""

from __future__ import annotations

import pytest
from support.draft import EXTENSIONS, EXTRA_PARAMETERS

from ayllu import schemas as s
from ayllu.schemas.webmethod import NoParameters

# Name: API, verb, route, kind, streamed form, the draft's method name, query parameters, body, reply or item.
DRAFT: dict[str, tuple[str, str, str, str, bool, str, list[str], object, object]] = {
    "completion": (
        "Inference", "POST", "/completion", "unary", True, "post_completion",
        [], s.CompletionRequest, s.CompletionResponse,
    ),
    "chat_completion": (
        "Inference", "POST", "/chat_completion", "unary", True, "post_chat_completion",
        [], s.ChatCompletionRequest, s.ChatCompletionResponse,
    ),
    "batch_completion": (
        "Inference", "POST", "/batch_completion", "list", False, "post_batch_completion",
        [], s.BatchCompletionRequest, s.CompletionResponse,
    ),
    "batch_chat_completion": (
        "Inference", "POST", "/batch_chat_completion", "list", False, "post_batch_chat_completion",
        [], s.BatchChatCompletionRequest, s.ChatCompletionResponse,
    ),
    "agentic_system.create": (
        "AgenticSystem", "POST", "/agentic_system/create", "unary", False, "create_agentic_system",
        [], s.AgenticSystemCreateRequest, s.AgenticSystemCreateResponse,
    ),
    "agentic_system.execute": (
        "AgenticSystem", "POST", "/agentic_system/execute", "unary", True,
        "create_agentic_system_execute",
        [], s.AgenticSystemExecuteRequest, s.AgenticSystemExecuteResponse,
    ),
    "agentic_system.delete": (
        "AgenticSystem", "DELETE", "/agentic_system/delete", "unary", False,
        "delete_agentic_system", ["agent_id"], None, None,
    ),
    "memory_banks.create": (
        "MemoryBanks", "POST", "/memory_banks/create", "unary", False, "create_memory_bank",
        ["bank_uuid", "bank_name"], list[s.MemoryBankDocument], None,
    ),
    "memory_banks.get": (
        "MemoryBanks", "GET", "/memory_banks/get", "list", False, "get_memory_banks",
        [], None, s.MemoryBank,
    ),
    "memory_banks.drop": (
        "MemoryBanks", "DELETE", "/memory_banks/drop", "unary", False, "remove_memory_bank",
        ["bank_uuid"], None, None,
    ),
    "memory_bank.insert": (
        "MemoryBanks", "POST", "/memory_bank/insert", "unary", False,
        "post_insert_memory_documents", ["bank_uuid"], list[s.MemoryBankDocument], None,
    ),
    "memory_bank.update": (
        "MemoryBanks", "POST", "/memory_bank/update", "unary", False,
        "post_update_memory_documents", ["bank_uuid"], list[s.MemoryBankDocument], None,
    ),
    "memory_bank.get": (
        "MemoryBanks", "POST", "/memory_bank/get", "list", False, "post_get_memory_documents",
        ["bank_uuid"], list[str], s.MemoryBankDocument,
    ),
    "memory_bank.delete": (
        "MemoryBanks", "POST", "/memory_bank/delete", "unary", False, "remove_memory_documents",
        ["bank_uuid"], list[str], None,
    ),
    "reward_scoring.score": (
        "RewardScoring", "POST", "/reward_scoring/score", "unary", True, "post_score",
        [], s.RewardScoringRequest, s.RewardScoringResponse,
    ),
    "synthetic_data_generation.generate": (
        "SyntheticDataGeneration", "POST", "/synthetic_data_generation/generate", "unary", False,
        "post_generate", [], s.SyntheticDataGenerationRequest, s.SyntheticDataGenerationResponse,
    ),
    "datasets.create": (
        "Datasets", "POST", "/datasets/create", "unary", False, "create_dataset",
        [], s.CreateDatasetRequest, None,
    ),
    "datasets.get": (
        "Datasets", "GET", "/datasets/get", "unary", False, "get_dataset",
        ["dataset_id"], None, s.Dataset,
    ),
    "datasets.delete": (
        "Datasets", "DELETE", "/datasets/delete", "unary", False, "delete_dataset",
        ["dataset_id"], None, None,
    ),
    "post_training.supervised_fine_tune": (
        "PostTraining", "POST", "/post_training/supervised_fine_tune/", "unary", False,
        "post_supervised_fine_tune", [], s.PostTrainingSFTRequest, None,
    ),
    "post_training.preference_optimize": (
        "PostTraining", "POST", "/post_training/preference_optimize/", "unary", False,
        "post_preference_optimize", [], s.PostTrainingRLHFRequest, None,
    ),
    "post_training.job.logs": (
        "PostTraining", "GET", "/post_training/job/logs", "stream", False,
        "get_training_log_stream", ["job_uuid"], None, s.PostTrainingJobLogStream,
    ),
    "post_training.job.status": (
        "PostTraining", "GET", "/post_training/job/status", "unary", False,
        "get_training_job_status", ["job_uuid"], None, s.PostTrainingJobStatusResponse,
    ),
    "post_training.job.cancel": (
        "PostTraining", "POST", "/post_training/job/cancel", "unary", False,
        "cancel_training_job", ["job_uuid"], None, None,
    ),
    "post_training.job.artifacts": (
        "PostTraining", "GET", "/post_training/job/artifacts", "unary", False,
        "get_training_job_artifacts", ["job_uuid"], None, s.PostTrainingJobArtifactsResponse,
    ),
}  # fmt: skip

CHUNKS = {
    "completion": s.CompletionResponseStreamChunk,
    "chat_completion": s.ChatCompletionResponseStreamChunk,
    "agentic_system.execute": s.AgenticSystemExecuteResponseStreamChunk,
    "reward_scoring.score": s.KScoredPromptGenerations,  # ours: the draft has no streamed form
}


@pytest.mark.requirement("spec-operations", "spec-names")
def test_the_table_has_the_operations_of_the_draft_and_the_extensions() -> None:
    assert len(DRAFT) == 25
    streamed = {f"{name}.stream" for name, row in DRAFT.items() if row[4]}
    assert set(s.OPERATIONS) == DRAFT.keys() | streamed | EXTENSIONS


@pytest.mark.requirement("spec-operations", "spec-names")
@pytest.mark.parametrize("name", DRAFT)
def test_an_operation_is_the_drafts(name: str) -> None:
    api, verb, route, kind, streamed, operation_id, query, body, output = DRAFT[name]
    operation = s.OPERATIONS[name]
    assert operation.name == name
    assert operation.api == api
    assert (operation.verb, operation.route) == (verb, route)
    assert operation.kind == kind
    assert operation.operation_id == operation_id
    assert operation.output == output
    in_query = [parameter for parameter in operation.parameters if parameter.in_query]
    extra = EXTRA_PARAMETERS.get(name, [])
    assert [parameter.name for parameter in in_query] == query + extra
    assert [parameter.name for parameter in in_query if not parameter.required] == extra
    bodies = [parameter.type for parameter in operation.parameters if not parameter.in_query]
    if not operation.parameters and operation.input is not NoParameters:
        bodies = [operation.input]
    assert bodies == ([] if body is None else [body])
    assert (f"{name}.stream" in s.OPERATIONS) is streamed
    assert operation.subject == f"ayllu.v1.op.{name}"
    assert operation.method == name.rpartition(".")[2]


@pytest.mark.requirement("spec-streamed-forms")
@pytest.mark.parametrize("name", CHUNKS)
def test_a_streamed_form_shares_the_route(name: str) -> None:
    whole, streamed = s.OPERATIONS[name], s.OPERATIONS[f"{name}.stream"]
    assert streamed.base_name == whole.base_name == name
    assert (streamed.verb, streamed.route) == (whole.verb, whole.route)
    assert streamed.operation_id == whole.operation_id
    assert streamed.input is whole.input
    assert streamed.output is CHUNKS[name]
    assert (streamed.kind, streamed.sse) == ("stream", True)
    assert streamed.method == f"stream_{whole.method}"
    assert streamed.namespace == whole.namespace


@pytest.mark.requirement("spec-streamed-forms")
def test_logs_are_server_sent_events() -> None:
    assert s.OPERATIONS["post_training.job.logs"].sse


@pytest.mark.requirement("subjects-models")
def test_inference_is_routed_by_the_model() -> None:
    routed = {name for name, operation in s.OPERATIONS.items() if operation.routed_by == "model"}
    inference = {name for name, operation in s.OPERATIONS.items() if operation.api == "Inference"}
    assert routed == inference | {
        "embeddings",
        "reward_scoring.score",
        "reward_scoring.score.stream",
    }


def test_two_operations_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError):
        s.table_of([s.Datasets, s.Datasets])


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        s.OPERATIONS["x"] = s.OPERATIONS["models"]  # type: ignore[index]


def test_a_turn_is_not_assembled_from_its_chunks() -> None:
    assemble = s.OPERATIONS["agentic_system.execute.stream"].assemble
    assert assemble is not None
    with pytest.raises(TypeError, match="0 chunks are no turn"):
        assemble([])

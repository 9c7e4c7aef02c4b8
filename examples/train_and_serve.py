"""Fine-tune a model on a few dialogs, follow the job, serve what it made, and ask it.

Run `make train` and `ayllu up` first, and give the gateway's address: `python examples/train_and_serve.py http://127.0.0.1:8321`.
"""

import json
import sys

import anyio

from ayllu.client import Stack, connect
from ayllu.schemas import (
    ChatCompletionRequest,
    Dataset,
    DatasetColumnType,
    Dialog,
    FinetuningAlgorithm,
    HyperparameterSearch,
    LoggerConfig,
    LoraFinetuningConfig,
    Message,
    OptimizerConfig,
    OptimizerType,
    PostTrainingSFTRequest,
    RegisterModelRequest,
    Role,
    TrainingConfig,
)

QUESTIONS = ["Who are you?", "What is your name?", "Please introduce yourself.", "Who is there?"]
ANSWER = "I am Ayni."
JOB = "introduction"


def dataset() -> Dataset:
    """Return dialogs that are small enough to be sent along."""
    rows = [
        {
            "dialog": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": ANSWER},
            ]
        }
        for question in QUESTIONS
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    return Dataset({"dialog": DatasetColumnType.dialog}, f"data:application/jsonl,{text}")


def request() -> PostTrainingSFTRequest:
    return PostTrainingSFTRequest(
        job_uuid=JOB,  # The same request again is the same job.
        model="smollm2",
        dataset=dataset(),
        validation_dataset=dataset(),
        algorithm=FinetuningAlgorithm.lora,
        algorithm_config=LoraFinetuningConfig(
            ["q_proj", "v_proj"],
            apply_lora_to_mlp=True,
            apply_lora_to_output=False,
            rank=8,
            alpha=16,
        ),
        optimizer_config=OptimizerConfig(
            OptimizerType.adamw, lr=2e-3, lr_min=0.0, weight_decay=0.0
        ),
        training_config=TrainingConfig(
            n_epochs=0,
            n_iters=8,
            batch_size=4,
            shuffle=True,
            enable_activation_checkpointing=False,
            memory_efficient_fsdp_wrap=False,
            fsdp_cpu_offload=False,
        ),
        hyperparam_search_config=HyperparameterSearch(),
        logger_config=LoggerConfig(),
    )


async def ask(stack: Stack, model: str) -> str:
    question = Message(role=Role.user, content=QUESTIONS[0])
    chat = ChatCompletionRequest(model=model, dialog=Dialog(message=question), max_tokens=24)
    return str((await stack.chat_completion(chat)).content)


async def main(url: str) -> None:
    async with connect(url) as stack:
        await stack.post_training.supervised_fine_tune(request())
        async for event in stack.post_training.job.events(JOB):
            for line in event.lines:
                print(line)
        registered = await stack.models.register(RegisterModelRequest(name="ayni", job_uuid=JOB))
        print(f"{registered.name} is served, version {registered.current}")
        for model in ("smollm2", "ayni"):
            print(f"{model}: {await ask(stack, model)}")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])

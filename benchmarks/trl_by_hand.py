"""What a person would write with TRL for the job that `training.py` measures: the same weights, examples, adapter and schedule.

python -m benchmarks.trl_by_hand WEIGHTS DATA OUT ITERATIONS
"""

from __future__ import annotations

import sys


def main(weights: str, data: str, out: str, iterations: int) -> None:
    """Train, and save the adapter."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(weights, dtype="float32")
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(weights),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=out,
            max_steps=iterations,
            per_device_train_batch_size=4,
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            logging_steps=1,
            save_steps=max(1, iterations // 10),
            save_total_limit=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
    )
    trainer.train()
    trainer.save_model(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

"""Fine-tuning jobs: kept on the bus, and run by trainers in child processes."""

"""Fine-tuning jobs: states, queue, lease."""

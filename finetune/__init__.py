"""The fine-tuning service: files, datasets, jobs, trainers, evaluation."""

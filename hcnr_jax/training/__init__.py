"""Fine-tuning: objectives, one optax step and its loop, low-rank adapters, and the function behind `hcnr tune`."""

"""Fine-tunes models: objectives, one optax step and its loop, low-rank adapters, the function behind `hcnr tune`."""

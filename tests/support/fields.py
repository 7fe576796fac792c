"""List the fields of `results.json`."""

FIELDS = {
    *("algorithm", "model", "dataset", "H", "topology", "workers", "epochs", "steps"),
    *("gossip_steps", "global_steps", "parameters", "train_loss", "val_loss", "val_accuracy"),
    *("seconds", "compute_seconds", "communication_seconds", "bytes_sent_per_worker"),
    *("consensus_distance", "history", "optimizer_state", "unigram_cross_entropy"),
    *("overlap", "wire_dtype", "outer_optimizer", "gossip_every"),
}

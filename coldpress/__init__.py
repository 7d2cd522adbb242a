"""coldpress: from a checkpoint to a served artifact."""

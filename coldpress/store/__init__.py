"""The local store: models by name and tag, their files by what is in them."""

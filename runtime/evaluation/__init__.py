"""How well a model predicts a text, how far it is from a baseline, and how sure that is."""

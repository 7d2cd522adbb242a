"""Model families: each row of the table turns a Hugging Face config into a Program."""

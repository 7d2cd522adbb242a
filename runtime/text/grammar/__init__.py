"""Answers held to a JSON schema, a regular expression or a grammar.

`check` refuses what cannot be honoured, in a confined process; `compiler` makes matchers where the
engine runs. Masks are computed by llguidance (https://github.com/guidance-ai/llguidance).
"""

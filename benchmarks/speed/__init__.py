"""What each contender of `benchmarks.compare` runs: a process that prints one JSON line of cells.

prefill_512: tokens per second of one prompt. decode_N: of N streams together, behind 128 tokens
each. in_flight: tokens made per second by 32 requests of 128 and 128 that arrive together.
"""

"""Quality side by side: coldpress, llm-compressor and llama.cpp's quantizer on the same tokens.

    python -m benchmarks.quality --model DIR --text FILE --work DIR \
        --llm-compressor PYTHON --llama-cpp PYTHON --seeds 0 1 2

What is equal for every contestant:

- The model: one checkpoint, its channels rescaled at random by seed, so that no weight sits on a
  grid that some tool happens to use. The function stays the same but for one rounding to bfloat16.
- The calibration: the first `samples x tokens` tokens of the text's first half, in that order.
  Other tools are handed the token numbers; coldpress reads a text that is cut where it has exactly
  these tokens, and the digest of the tokens that it reports is compared with ours.
- The test: windows from the text's second half, every position but a window's first, against the
  float model's predictions in float32.
- The machine: one process at a time, bound to the same number of processors and threads.
- The reader: Hugging Face directories are read by transformers in float32, which rounds
  activations where the checkpoint says so (checked against a rounding by hand in every run); GGUF
  files are read by llama.cpp with a float32 cache. No score is computed by coldpress.

What is not equal, and should be kept in mind:

- A GGUF file's figures hold llama.cpp's own rounding of activations to 8 bits, the others' do not:
  compare GGUF with GGUF. The row `llama.cpp f32` shows what the reader alone costs.
- Seconds are those of a whole process, from start to the last file written. For llama.cpp's
  quantizer that leaves out the float GGUF and the importance matrix, which stand as rows of their
  own; the float GGUF of all GGUF rows was converted by coldpress.
- Each tool runs with its own defaults in all that the row does not name. llm-compressor works on a
  bfloat16 model, as its examples do.
- A row that an earlier run finished keeps that run's seconds; `load` in the JSON tells how busy the
  machine was. For timings that belong together, start in an empty work directory.
- Bytes are those of the files that hold weights; a GGUF file holds its tokenizer too.
"""

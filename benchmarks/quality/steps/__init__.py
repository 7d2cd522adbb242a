"""Each step is one process: `python -m benchmarks.quality.steps.NAME OUT ...`, in the environment
of the tool that it drives, which is all that it imports. It writes into OUT."""

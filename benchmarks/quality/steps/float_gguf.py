"""The float model as a float32 GGUF, made by coldpress: OUT MODEL."""

import subprocess
import sys

out, model = sys.argv[1:]
command = ["build", model, "-o", f"{out}/gguf", "--target", "gguf:f32"]
sys.exit(subprocess.run([sys.executable, "-m", "coldpress", *command]).returncode)

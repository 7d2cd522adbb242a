"""coldpress, by its command line: OUT MODEL TEXT CALIBRATION.npy RECIPE [--gguf] [--set K=V ...].

Writes OUT/checkpoint, or OUT/gguf. The calibration array is there to be compared with what
coldpress says it used.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np


def coldpress(*words: str) -> None:
    """Ends this process where coldpress fails, whose own words are then the log's last."""
    code = subprocess.run([sys.executable, "-m", "coldpress", *words]).returncode
    if code:
        sys.exit(code)


def check_calibration(directory: Path, calibration: Path) -> None:
    """Raises ValueError when the tokens were not the same as every other tool's."""
    used = json.loads((directory / "manifest.json").read_text("utf-8")).get("calibration")
    if not used or not used.get("sha256"):
        print("calibrated on nothing")
        return
    tokens = np.load(calibration).astype("<i8")
    if used["sha256"] != hashlib.sha256(tokens.tobytes()).hexdigest():
        raise ValueError(f"coldpress calibrated on other tokens: {used}")


def quantize(args: argparse.Namespace, output: Path) -> None:
    samples, tokens = np.load(args.calibration).shape
    settings = [f"calibration.samples={samples}", f"calibration.tokens={tokens}", *args.settings]
    changes = [word for setting in settings for word in ("--set", setting)]
    coldpress(
        *("quantize", str(args.model), "-o", str(output), "--recipe", args.recipe),
        *("--calibration", str(args.text), *changes),
    )


def build(checkpoint: Path, output: Path, target: str) -> None:
    """Into a GGUF file, unless quantizing has written one already."""
    if next(checkpoint.glob("*.gguf"), None) is None:
        coldpress("build", str(checkpoint), "-o", str(output), "--target", target)
        shutil.rmtree(checkpoint)
    else:
        checkpoint.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--gguf", action="store_true")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    args = parser.parse_args()
    checkpoint = args.out / "checkpoint"
    quantize(args, checkpoint)
    check_calibration(checkpoint, args.calibration)
    if args.gguf:
        build(checkpoint, args.out / "gguf", "gguf")


if __name__ == "__main__":
    main()

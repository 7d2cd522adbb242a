"""parity.json: the proof that an artifact means its checkpoint's numbers, kept in the artifact."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compile.manifest import MANIFEST, FileEntry, file_sha256, manifest_bytes, read_manifest
from quant.format.errors import InputError
from quant.format.staging import write_file_atomically

if TYPE_CHECKING:
    from compile.verify import VerifyReport

PARITY = "parity.json"


def record_parity(artifact: Path, report: "VerifyReport") -> bool:
    """Write a report that has passed into the artifact, and list it in the manifest.

    False where it has not passed: then nothing is written. The same report gives the same bytes:
    of paths, names alone are kept. Raises InputError for what is no artifact of ours, or was not
    compared with a checkpoint.
    """
    if not (artifact / MANIFEST).is_file():
        raise InputError(f"{artifact}: has no {MANIFEST} to list a report in; build it first")
    if report.against is None:
        raise InputError(f"{artifact}: name the checkpoint that it must equal with --against")
    if not report.passed:
        return False
    named = replace(report, artifact=artifact.resolve().name, against=Path(report.against).name)
    text = json.dumps(named.to_json(), indent=1, sort_keys=True, allow_nan=False)
    write_file_atomically(artifact / PARITY, f"{text}\n".encode())
    manifest = read_manifest(artifact)
    size = (artifact / PARITY).stat().st_size
    entry = FileEntry(size, file_sha256(artifact / PARITY))
    listed = replace(manifest, files={**manifest.files, PARITY: entry})
    write_file_atomically(artifact / MANIFEST, manifest_bytes(listed))
    return True

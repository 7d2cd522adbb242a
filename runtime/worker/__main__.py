"""`python -m runtime.worker SOCKET RECORD` is what the front starts; see `start_worker`."""

import sys

from runtime.worker.main import run

run(int(sys.argv[1]), int(sys.argv[2]))

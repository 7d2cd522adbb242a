"""A rank that follows: loads its part, then runs what the first one tells until it is gone."""

import json
import sys
from dataclasses import fields
from pathlib import Path

from compile.open_model import open_model
from quant.format.errors import ColdpressError
from runtime.engine.batch import Executor, GivesHidden
from runtime.parallel.leading import START_SECONDS, loaded_key
from runtime.parallel.part import device_of, open_part
from runtime.parallel.ranks import Kind, Meeting, Ranks
from runtime.part_spec import PartSpec


def main(told: str) -> int:
    """Exit code 0 after the first rank said so; 2 where the part cannot be loaded."""
    values = json.loads(told)
    meeting = Meeting(values["rank"], values["ranks"], values["port"])
    told_of_part = {field.name: values[field.name] for field in fields(PartSpec)}
    spec = PartSpec(**told_of_part | {"path": Path(values["path"])})
    ranks = Ranks(meeting, device_of(spec, meeting.rank), START_SECONDS)
    try:
        executor = open_part(open_model(spec.path), spec, ranks)
    except ColdpressError as error:
        print(error, file=sys.stderr)
        return 2
    ranks.store.set(loaded_key(meeting.rank), "yes")
    ranks.join()
    follow(executor, ranks)
    ranks.leave()
    return 0


def follow(executor: Executor, ranks: Ranks) -> None:
    """Every step that the first rank runs, until it says stop; but logits, which it makes alone."""
    while True:
        kind, batch = ranks.hear()
        if kind is Kind.STOP or batch is None:
            executor.close()
            return
        if isinstance(executor, GivesHidden):
            executor.hidden(batch)
        else:
            executor.step(batch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

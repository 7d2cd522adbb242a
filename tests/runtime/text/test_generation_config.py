from pathlib import Path

import pytest

from quant.format.errors import FileFormatError
from runtime.text.generation_config import load_sampling_defaults
from tests.runtime.text.gguf_keys import byte_level_keys, text_model


def test_only_what_the_makers_set_is_taken(tmp_path: Path) -> None:
    assert load_sampling_defaults(text_model(tmp_path)) == {}
    assert load_sampling_defaults(text_model(keys=byte_level_keys())) == {}
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "top_p": null, "do_sample": true, "eos_token_id": 2}'
    )
    assert load_sampling_defaults(text_model(tmp_path)) == {"temperature": 0.6, "top_k": 20}


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"generation_config\.json: is not JSON"):
        load_sampling_defaults(text_model(tmp_path))

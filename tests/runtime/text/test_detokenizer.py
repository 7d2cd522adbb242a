from hypothesis import given
from hypothesis import strategies as st

from runtime.text.detokenizer import Detokenizer
from runtime.text.tokenizer import Tokenizer, load_tokenizer
from tests.runtime.text.gguf_keys import byte_level_keys, sentence_piece_keys, text_model

TOKENIZERS: tuple[Tokenizer, ...] = tuple(
    load_tokenizer(text_model(keys=keys)) for keys in (byte_level_keys(), sentence_piece_keys())
)
IDS = st.lists(st.integers(0, 290), max_size=20)


@given(st.sampled_from(TOKENIZERS), IDS, st.booleans())
def test_deltas_add_up_to_the_bytes_decoded_at_once(
    tokenizer: Tokenizer, ids: list[int], skip: bool
) -> None:
    stream = Detokenizer(tokenizer, skip_special_tokens=skip)
    text = "".join([*map(stream.feed, ids), stream.finish()])
    kept = [id_ for id_ in ids if not (skip and id_ in tokenizer.special_ids)]
    data = b"".join(map(tokenizer.token_bytes, kept))
    assert text == data.decode("utf-8", errors="replace")


@given(st.sampled_from(TOKENIZERS), st.text(alphabet="ap é日本🙂́", max_size=12))
def test_no_delta_holds_a_part_of_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = Detokenizer(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert all("\ufffd" not in stream.feed(id_) for id_ in ids)
    assert stream.finish() == ""


def test_an_unfinished_character_is_held_then_replaced() -> None:
    tokenizer = TOKENIZERS[0]
    first, *_ = tokenizer.encode("🙂")
    stream = Detokenizer(tokenizer)
    assert stream.feed(first) == ""
    assert stream.finish() == "\ufffd"


def test_only_the_beginning_of_a_text_loses_its_space() -> None:
    tokenizer = TOKENIZERS[1]
    ids = tokenizer.encode("the press", add_special_tokens=False)
    assert "".join(map(Detokenizer(tokenizer, continues=True).feed, ids)) == " the press"
    assert "".join(map(Detokenizer(tokenizer, continues=False).feed, ids)) == "the press"


def test_ids_outside_the_vocabulary_have_no_text() -> None:
    assert TOKENIZERS[0].decode([383, 384, 10**6]) == TOKENIZERS[0].decode([383])

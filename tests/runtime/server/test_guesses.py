"""W2: a hundred thousand wrong keys, from one address and from as many."""

from runtime.server.guesses import FORGET_SECONDS, FREE_GUESSES, MAX_ADDRESSES, Guesses

MANY = 100_000


def test_one_address_tries_one_key_in_six_seconds() -> None:
    now, tried = [0.0], 0
    guesses = Guesses(lambda: now[0])
    for _ in range(MANY):
        if guesses.seconds_to_wait("one") == 0:
            guesses.wrong("one")
            tried += 1
        now[0] += 0.01
    assert tried <= FREE_GUESSES + now[0] / FORGET_SECONDS + 1
    assert guesses.seconds_to_wait("other") == 0


def test_many_addresses_take_no_more_memory_than_some() -> None:
    guesses = Guesses(lambda: 0.0)
    for number in range(MANY):
        guesses.wrong(str(number))
    assert len(guesses._wrong) == MAX_ADDRESSES

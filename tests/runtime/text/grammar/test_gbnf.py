import re

import pytest

from runtime.confined.messages import Refused
from runtime.engine.request import RequestError, SamplingParams
from runtime.text.grammar.check import checked
from runtime.text.grammar.gbnf import to_lark
from tests.runtime.text.grammar.harness import RandomModel, answers, request

GRAMMARS = {
    r'root ::= "yes" | "no"': "yes|no",
    r'root ::= ("a" | [b-d])+ "\n"': "[a-d]+\n",
    'root ::= first second\nfirst ::= "x"{2,3}  # two or three\nsecond ::= [^a-zA-Z"\\\\]{1}': (
        r'x{2,3}[^a-zA-Z"\\]'
    ),
    'root ::= digit+ | "(" root ")"\n\ndigit ::= [0-9]': r"\(*[0-9]+\)*",
    'root ::=\n  "é" "\\u00e9" "\\x41"\n  | "b"': "ééA|b",
    'root ::= a-1 [x\\-\\]]?\na-1 ::= "1"*': r"1*[x\-\]]?",
    'root ::= "a"{3} "b"{0,1} "c"{1,}': "a{3}b?c+",
    'root ::= "/" "\\"" "#" # "not here"': '/"#',
}


@pytest.mark.parametrize("source", GRAMMARS)
def test_texts_are_of_the_language(source: str) -> None:
    constraint = checked("gbnf", source, "grammar")
    for seed in range(3):
        one = request("x", constraint, max_tokens=200, sampling=SamplingParams(seed=seed))
        (answer,) = answers([one], RandomModel(eager=4.0)).values()
        if answer.end.finish_reason == "stop":
            assert re.fullmatch(GRAMMARS[source], answer.text), answer.text
            if source.startswith("root ::= digit"):
                assert answer.text.count("(") == answer.text.count(")")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "does not define 'root'"),
        ('start ::= "a"', "does not define 'root'"),
        ("root ::= other", "does not define 'other'"),
        ('root ::= "a', "line 1: a string"),
        ('root ::= "a"\nx ::= [b', "line 2: a string"),
        ('root ::= ("a"', "')' is expected"),
        ('root = "a"', "'::=' is expected"),
        ("root ::= [z-a]", "runs backwards"),
        ("root ::= []", "is empty"),
        ('root ::= "\\q"', "an escape is not known"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "a"{9999}', "2000"),
        ("root ::= <think>", "single tokens"),
        ("root ::= !<[7]>", "single tokens"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "too deeply"),
    ],
)
def test_what_is_no_gbnf_is_refused(source: str, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        to_lark(source)


def test_the_field_is_named() -> None:
    with pytest.raises(RequestError, match="the grammar in 'grammar' is refused: line 1") as caught:
        checked("gbnf", "root ::= [z-a]", "grammar")
    assert caught.value.param == "grammar"

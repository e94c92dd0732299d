"""What a model wrote as arguments, as an event shows it."""

from __future__ import annotations

import pytest
from google.protobuf import json_format, struct_pb2

from agent_svc.domain import tools as t
from svckit.content import arguments_struct

# JSON, or nearly, that Python reads and an event cannot hold.
ODD = {
    "not a number": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "larger than any double": '{"a": ' + "9" * 400 + "}",
    "half a surrogate pair": '{"a": "\\ud83d"}',
    "deeper than a message may be": '{"a":' * 60 + "1" + "}" * 60,
    "deeper than any parser goes": "[" * 100_000,
}


@pytest.mark.parametrize("arguments", ODD.values(), ids=ODD)
def test_odd_arguments_are_shown_as_text(arguments: str) -> None:
    shown = arguments_struct(arguments)
    again = struct_pb2.Struct.FromString(shown.SerializeToString())
    assert list(json_format.MessageToDict(again)) == ["text"]


def test_arguments_are_shown_as_they_are() -> None:
    shown = arguments_struct('{"task": "x", "n": 1.5, "list": [true, null, {"a": "b"}]}')
    assert json_format.MessageToDict(shown) == {
        "task": "x",
        "n": 1.5,
        "list": [True, None, {"a": "b"}],
    }


@pytest.mark.parametrize("arguments", ODD.values(), ids=ODD)
def test_odd_arguments_are_refused_to_the_model(arguments: str) -> None:
    with pytest.raises(t.BadArguments):
        t.read_yield(arguments)

"""Which error replies mean that the same call may succeed later."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from distier.drive.replies import is_passing

MOVING = "Script attempted to access a non local key in a cluster node script: 0123abcd, on @user_script:12."


@pytest.mark.parametrize(
    "text", ["TRYAGAIN Multiple keys request during rehashing of slot", "LOADING x", "BUSY x", MOVING]
)
def test_temporary_refusal_is_tried_again(text: str) -> None:
    assert is_passing(ResponseError(text))


@pytest.mark.parametrize("reply", [ResponseError("ERR syntax error"), ResponseError("WRONGTYPE x"), b"TRYAGAIN", None])
def test_any_other_reply_is_final(reply: object) -> None:
    assert not is_passing(reply)

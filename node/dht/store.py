"""Store into hivemind's DHT although one of its peers is silent and another one lies.

Two habits of ``DHTNode.store`` (hivemind 1.1.12) are mended by wrapping the one method through which
it calls other peers; ``DHTNode.create`` offers no way to hand in a protocol object of our own:

- It calls peers that did not answer the lookup a moment before, so one silent peer costs two
  timeouts instead of one.
- It returns what the last of its replicas said, so one peer that always says no makes every store
  look refused.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_answers: ContextVar[list[bool] | None] = ContextVar("_answers", default=None)
"""What other peers said to the store in progress; hivemind's tasks inherit the context."""


def wrap_calls(dht: Any) -> None:
    """Once per DHTNode, before `store_record`."""
    call_store = dht.protocol.call_store

    async def guarded(peer: Any, *arguments: Any, **options: Any) -> Any:
        if peer in dht.blacklist:
            return None
        answer = await call_store(peer, *arguments, **options)
        answers = _answers.get()
        if answers is not None and answer is not None:
            answers.extend(answer)
        return answer

    dht.protocol.call_store = guarded


async def store_record(dht: Any, key: str, subkey: bytes, value: bytes, expiration: float) -> bool:
    """Whether another peer took the record, or, when there is none, this one.

    The caller sets the deadline.
    """
    answers: list[bool] = []
    token = _answers.set(answers)
    try:
        is_last_answer_yes = await dht.store(key, value, expiration, subkey=subkey)
    finally:
        _answers.reset(token)
    return bool(is_last_answer_yes) or any(answers)

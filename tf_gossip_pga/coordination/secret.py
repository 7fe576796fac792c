"""Find a job's secret, and let two processes prove to each other that they know it.

The workers of a job may share a secret. A restarted worker uses it to prove that it belongs to the
job, and the members use it to prove the same to the restarted worker. The secret itself is never
sent. Each listening process has a *key* of 32 bytes. Whoever knows the secret can derive this key
from the secret, the job's addresses and the process's rank (`key_of`).

Requests and answers are authenticated with the key of the process that listens::

    listener -> asker      nonce
    asker -> listener      HMAC(key, nonce, request), request       the request has a nonce as well
    listener -> asker      HMAC(key, HMAC of the request, answer), answer

The listener's nonce and the nonce in the request are random. A recorded request is therefore
invalid on any other connection, and a recorded answer is invalid for any other request. Nothing is
encrypted.
"""

from __future__ import annotations

import hmac
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Mapping, Sequence

from tf_gossip_pga._log import logger
from tf_gossip_pga.cluster.tf_config import SECRET, SECRET_FILE
from tf_gossip_pga.coordination.messages import Message
from tf_gossip_pga.coordination.reports import named

_SHORTEST, _LONGEST = 16, 4096  # characters
_MAC_BYTES = 64  # length of a MAC (message authentication code) in hexadecimal

_HOW = (
    "Give every worker of the job the same random text of at least "
    f"{_SHORTEST} characters, for example the output of `openssl rand -hex 16`"
)


def find(environment: Mapping[str, str] | None = None) -> bytes | None:
    """Return the secret of this process's job, or None if the job has none.

    `TF_GOSSIP_PGA_SECRET` holds the secret, or `TF_GOSSIP_PGA_SECRET_FILE` names a file that holds
    it.

    Args:
      environment: the environment variables to read. Default: those of this process.

    Raises:
      ValueError: both variables are set, the file cannot be read, or the secret is too short or too
        long.
    """
    environment = os.environ if environment is None else environment
    if SECRET in environment and SECRET_FILE in environment:
        raise ValueError(f"{SECRET} and {SECRET_FILE} are both set. Unset one of them.")
    if SECRET in environment:
        name, text = SECRET, environment[SECRET]
    elif SECRET_FILE in environment:
        name, text = _contents(environment[SECRET_FILE])
    else:
        return None
    found = text.strip().encode()
    if not _SHORTEST <= len(found) <= _LONGEST:
        raise ValueError(
            f"{name} has {len(found)} characters, but a secret must have {_SHORTEST} to "
            f"{_LONGEST}. {_HOW}."
        )
    return found


def missing(rank: int) -> ValueError:
    """Return the error for a worker that should join a running job but has no secret."""
    return ValueError(
        f"Rank {rank} cannot join a running job: it has no secret to prove that it belongs to the "
        f"job. Set {SECRET} to the secret of the other workers, or {SECRET_FILE} to the name of a "
        f"file that holds it. If the others have none, restart the whole job with one. {_HOW}."
    )


def differing(fingerprints: Sequence[str | None]) -> ValueError:
    """Return the error for workers that do not have the same secret.

    Args:
      fingerprints: the fingerprint of each worker's secret, in rank order, or None for no secret.
    """
    ranks: dict[str | None, list[int]] = {}
    for rank, each in enumerate(fingerprints):
        ranks.setdefault(each, []).append(rank)
    texts = [
        f"{'no secret' if each is None else f'a secret with fingerprint {each[:6]}…'} on "
        f"{named(those)}"
        for each, those in ranks.items()
    ]
    return ValueError(f"The workers do not have the same secret: {', '.join(texts)}. {_HOW}.")


def key_of(secret: bytes, addresses: Sequence[str], rank: int) -> bytes:
    """Return the key of the process with this rank, in the job at these addresses."""
    return hmac.digest(secret, json.dumps(["key", rank, *addresses]).encode(), "sha256")


def fingerprint(secret: bytes, addresses: Sequence[str]) -> str:
    """Return a string that is equal for equal secrets but does not reveal the secret."""
    text = json.dumps(["fingerprint", *addresses])
    return hmac.digest(secret, text.encode(), "sha256").hex()[:16]


def nonce() -> str:
    """Return a random string that a listener sends at the start of a conversation."""
    return secrets.token_hex(16)


def seal_request(key: bytes, begins_with: str, request: Message) -> tuple[bytes, str]:
    """Return a request as an authenticated line, and the MAC that the answer must refer to.

    Args:
      key: key of the process that is asked.
      begins_with: the nonce that the asked process has sent.
      request: a JSON-serializable dict.

    Returns:
      The line, and its MAC, which `open_answer` needs as `to`.
    """
    line = _seal(key, "request " + begins_with, {**request, "nonce": nonce()})
    return line, _mac_of(line)


def open_request(key: bytes, begins_with: str, line: bytes) -> tuple[Message, str]:
    """Return a received request, and the MAC that the answer must refer to.

    Args:
      key: key of this process.
      begins_with: the nonce that this process has sent.
      line: the line that it has received.

    Returns:
      The request, and its MAC, which `seal_answer` needs as `to`.

    Raises:
      ValueError: the asker does not know the key, or the line is not a request.
    """
    request = _open(key, "request " + begins_with, line)
    request.pop("nonce", None)
    return request, _mac_of(line)


def seal_answer(key: bytes, to: str, answer: Message) -> bytes:
    """Return an answer as an authenticated line. `to` comes from `open_request`."""
    return _seal(key, "answer " + to, answer)


def open_answer(key: bytes, to: str, line: bytes) -> Message:
    """Return the answer that a received line contains. `to` comes from `seal_request`.

    Raises:
      ValueError: the answering process does not know the key, or the line is not an answer.
    """
    return _open(key, "answer " + to, line)


def _contents(path: str) -> tuple[str, str]:
    """Return a phrase that names a secret file in error messages, and the contents of this file."""
    name = f"{SECRET_FILE}, {path!r},"
    file = pathlib.Path(path).expanduser()
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ValueError(f"{name} is not a regular file. {_HOW}, in a file.")
        if status.st_mode & 0o077:
            logger.warning(f"{name} can be read by other users. Run chmod 600 {path}")
        with file.open("rb") as opened:
            return name, opened.read(_LONGEST + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read: {error}. {_HOW}, in a file.") from None


def _mac(key: bytes, context: str, body: str) -> str:
    return hmac.digest(key, f"{context}\n{body}".encode(), "sha256").hex()


def _seal(key: bytes, context: str, message: Message) -> bytes:
    body = json.dumps(message)
    return f"{_mac(key, context, body)} {body}\n".encode()


def _open(key: bytes, context: str, line: bytes) -> Message:
    mac, _, body = line.rstrip(b"\n").decode().partition(" ")
    if not hmac.compare_digest(mac.encode(), _mac(key, context, body).encode()):
        raise ValueError("not from a process of this job")
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message  # pyright: ignore[reportUnknownVariableType]


def _mac_of(line: bytes) -> str:
    return line[:_MAC_BYTES].decode()

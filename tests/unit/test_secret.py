"""The secret of a job: where it is found, and what two processes prove with it."""

import random

import pytest

from tf_gossip_pga.coordination import secret

TEXT = "0123456789abcdef"
KEY = secret.key_of(TEXT.encode(), ["a:1", "b:1"], 0)


def test_a_job_without_a_secret():
    assert secret.find({}) is None


def test_the_secret_is_in_the_environment_or_in_a_file(tmp_path, capfd):
    path = tmp_path / "secret"
    path.write_text(f"{TEXT}\n")
    path.chmod(0o600)
    assert secret.find({"TF_GOSSIP_PGA_SECRET": TEXT}) == TEXT.encode()
    assert secret.find({"TF_GOSSIP_PGA_SECRET_FILE": str(path)}) == TEXT.encode()
    assert capfd.readouterr().err == ""


def test_a_file_that_others_can_read_is_used_with_a_warning(tmp_path, capfd):
    path = tmp_path / "secret"
    path.write_text(TEXT)
    path.chmod(0o644)
    assert secret.find({"TF_GOSSIP_PGA_SECRET_FILE": str(path)}) == TEXT.encode()
    assert f"can be read by other users. Run chmod 600 {path}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TF_GOSSIP_PGA_SECRET": ""},
            "TF_GOSSIP_PGA_SECRET has 0 characters, but a secret must have 16 to 4096. Give every",
        ),
        (
            {"TF_GOSSIP_PGA_SECRET": "short"},
            "has 5 characters, but a secret must have 16 to 4096. Give every worker",
        ),
        ({"TF_GOSSIP_PGA_SECRET": "x" * 5000}, "has 5000 characters"),
        ({"TF_GOSSIP_PGA_SECRET": TEXT, "TF_GOSSIP_PGA_SECRET_FILE": "/x"}, "are both set"),
        ({"TF_GOSSIP_PGA_SECRET_FILE": "/no/such/file"}, "cannot be read: .* in a file"),
        ({"TF_GOSSIP_PGA_SECRET_FILE": "/dev/null"}, "is not a regular file"),
        ({"TF_GOSSIP_PGA_SECRET_FILE": ""}, "is not a regular file"),
    ],
)
def test_a_secret_that_cannot_be_used_is_answered_with_how_to_make_one(environment, message):
    with pytest.raises(ValueError, match=message):
        secret.find(environment)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"\xff" * 20)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="cannot be read: 'utf-8' codec"):
        secret.find({"TF_GOSSIP_PGA_SECRET_FILE": str(path)})


def test_keys_differ_by_secret_job_and_rank():
    found = {
        secret.key_of(text, given, rank)
        for text in (b"a" * 16, b"b" * 16)
        for given in (["a:1", "b:1"], ["a:1", "b:2"])
        for rank in (0, 1)
    }
    assert len(found) == 8
    assert secret.fingerprint(b"a" * 16, ["a:1"]) != secret.fingerprint(b"b" * 16, ["a:1"])


def test_a_request_and_its_answer_come_through():
    line, to_asker = secret.seal_request(KEY, "n1", {"kind": "status", "rank": 1, "of": "\ud800é"})
    request, to = secret.open_request(KEY, "n1", line)
    assert request == {"kind": "status", "rank": 1, "of": "\ud800é"}
    assert secret.open_answer(KEY, to_asker, secret.seal_answer(KEY, to, {"a": 1})) == {"a": 1}


def test_nothing_can_be_used_a_second_time_or_in_another_place():
    request, first = secret.seal_request(KEY, "n1", {"kind": "status"})
    again, second = secret.seal_request(KEY, "n1", {"kind": "status"})
    answer = secret.seal_answer(KEY, first, {"a": 1})
    assert request != again
    other = secret.key_of(TEXT.encode(), ["a:1", "b:1"], 1)
    for opens in (
        lambda: secret.open_request(KEY, "n2", request),  # another conversation
        lambda: secret.open_request(other, "n1", request),  # another listener
        lambda: secret.open_answer(KEY, second, answer),  # the same request, but later
        lambda: secret.open_answer(KEY, "n1", request),  # sent back
        lambda: secret.open_request(KEY, first, answer),
    ):
        with pytest.raises(ValueError, match="not from a process of this job"):
            opens()


def test_one_changed_byte_is_noticed():
    line, to = secret.seal_request(KEY, "n1", {"kind": "regroup", "rank": 1, "wants": 2})
    answer = secret.seal_answer(KEY, to, {"view": 1})
    draw = random.Random(0)
    for original, opens in (
        (line, lambda changed: secret.open_request(KEY, "n1", changed)),
        (answer, lambda changed: secret.open_answer(KEY, to, changed)),
    ):
        for place in range(len(original) - 1):  # without the newline
            changed = bytearray(original)
            changed[place] ^= draw.randrange(1, 256)
            with pytest.raises(ValueError):
                opens(bytes(changed))
        for length in range(len(original) - 1):
            with pytest.raises(ValueError, match="not from a process of this job"):
                opens(original[:length])

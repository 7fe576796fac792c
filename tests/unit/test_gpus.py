"""The GPUs of a machine and their division, with stand-ins for the driver and its library."""

import sys
import types

import pytest

from tf_gossip_pga.launch import gpus


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _library(has_driver=True):
    """NVIDIA's management library: GPU 0 as it is, GPU 1 in two parts, GPU 2 without MIG mode."""

    class Error(Exception):
        pass

    def check(is_possible, value=None):
        if not is_possible:
            raise Error
        return value

    return types.SimpleNamespace(
        NVMLError=Error,
        nvmlInit=lambda: check(has_driver),
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: (index,),
        nvmlDeviceGetMigMode=lambda handle: check(handle != (2,), [handle == (1,), 0]),
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=lambda handle, k: check(k < 2, (*handle, k)),
        nvmlDeviceGetUUID=lambda handle: "GPU-" + ".".join(map(str, handle)),
    )


def test_the_library_names_gpus_and_their_parts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", _library())
    assert gpus.visible() == ["GPU-0", "GPU-1.0", "GPU-1.1", "GPU-2"]


@pytest.mark.parametrize("library", [None, _library(has_driver=False)])
def test_without_the_library_the_drivers_files_do(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpus._from_driver, "__defaults__", (tmp_path,))
    assert gpus.visible() == []
    for place, text in (("a", "Model: X\nGPU UUID:   GPU-8f\nIRQ: 1\n"), ("b", "Model: X\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(text)
    assert gpus.visible() == ["GPU-8f", "1"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("0, 2", ["0", "2"]), ("GPU-8f", ["GPU-8f"]), ("-1", []), ("", []), ("0,-1", [])],
)
def test_the_variable_takes_precedence(monkeypatch, chosen, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus.visible() == expected


@pytest.mark.parametrize(
    ("present", "workers", "per_worker", "share", "expected"),
    [
        ("", 2, 1, False, [[], []]),
        ("ab", 2, 1, False, [["a"], ["b"]]),
        ("abcd", 2, 2, False, [["a", "b"], ["c", "d"]]),
        ("abc", 2, 1, True, [["a"], ["b"]]),
        ("ab", 4, 1, True, [["a"], ["b"], ["a"], ["b"]]),
        ("ab", 2, 2, True, [["a", "b"], ["a", "b"]]),
    ],
)
def test_how_gpus_are_divided(present, workers, per_worker, share, expected):
    assert gpus.divide(list(present), workers, per_worker, share) == expected


@pytest.mark.parametrize(
    ("workers", "per_worker", "share", "text"),
    [
        (4, 1, False, "4 workers with 1 GPU each need 4, but this machine has 2"),
        (1, 3, True, "1 worker with 3 GPUs each need 3, but this machine has 2"),
    ],
)
def test_too_few_gpus_are_an_error(workers, per_worker, share, text):
    with pytest.raises(ValueError, match=text):
        gpus.divide(["a", "b"], workers, per_worker, share)

"""The GPUs of a machine and their division, with stand-ins for the driver and its library."""

import sys
import types

import pytest

from tf_gossip_pga.launch import gpus


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _library():
    """NVIDIA's management library: GPU 0 as it is, GPU 1 in two parts, GPU 2 without MIG mode."""

    class Error(Exception):
        pass

    class NotSupportedError(Error):
        pass

    class NotFoundError(Error):
        pass

    def check(is_possible, value=None, error=Error):
        if not is_possible:
            raise error
        return value

    return types.SimpleNamespace(
        NVMLError=Error,
        NVMLError_NotSupported=NotSupportedError,
        NVMLError_NotFound=NotFoundError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: (index,),
        nvmlDeviceGetMigMode=lambda handle: check(
            handle != (2,), [handle == (1,), 0], NotSupportedError
        ),
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=lambda handle, k: check(
            k < 2, (*handle, k), NotFoundError
        ),
        nvmlDeviceGetUUID=lambda handle: "GPU-" + ".".join(map(str, handle)),
    )


@pytest.mark.parametrize("kind", [str, str.encode])  # old versions return bytes
def test_the_library_names_gpus_and_their_parts(monkeypatch, kind):
    library = _library()
    named = library.nvmlDeviceGetUUID
    library.nvmlDeviceGetUUID = lambda handle: kind(named(handle))
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert gpus.visible() == ["GPU-0", "GPU-1.0", "GPU-1.1", "GPU-2"]


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Add a GPU to the driver's files, which belong to a machine whose GPUs can be used."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus._from_driver, "__defaults__", (tmp_path,))
    monkeypatch.setattr(gpus, "_CONTROL", tmp_path)

    def add(place, text):
        (tmp_path / place).mkdir()
        if text is not None:
            (tmp_path / place / "information").write_text(text)

    return add


KNOWN = "Model: X\nGPU UUID:   GPU-8f\nIRQ: 1\n"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("GPU UUID:\tGPU-9a\n", ["GPU-8f", "GPU-9a"]),
        ("Model: X\n", ["0", "1"]),
        ("GPU UUID: \t GPU-????????-????-????-????-????????????\n", ["0", "1"]),
        (None, ["0", "1"]),  # the file cannot be read
    ],
)
def test_without_the_library_the_drivers_files_name_all_gpus_or_none(driver, second, expected):
    assert gpus.visible() == []
    driver("a", KNOWN)
    driver("b", second)
    assert gpus.visible() == expected


def test_where_the_driver_is_seen_but_cannot_be_used_there_is_no_gpu(driver, monkeypatch, tmp_path):
    driver("a", KNOWN)
    monkeypatch.setattr(gpus, "_CONTROL", tmp_path / "nvidiactl")
    assert gpus.visible() == []


@pytest.mark.parametrize(
    "name",
    [
        *("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMigMode"),
        *("nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex"),
        *("nvmlDeviceGetUUID", "nvmlShutdown"),
    ],
)
def test_where_the_library_fails_the_drivers_files_do(driver, monkeypatch, name):
    driver("a", KNOWN)
    library = _library()

    def fail(*arguments):
        raise library.NVMLError

    setattr(library, name, fail)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert gpus.visible() == ["GPU-8f"]
    delattr(library, name)  # the function does not exist yet in an old library
    assert gpus.visible() == ["GPU-8f"]


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
        ("abc", 3, 2, True, [["a", "b"]] * 3),
        ("abcde", 3, 2, True, [["a", "b"], ["c", "d"], ["a", "b"]]),
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

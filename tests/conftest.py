"""Provide what all tests share: deadlines, pools of workers, and checks at the end of a session."""

import collections
import contextlib
import os
import pathlib
import tempfile

import pytest

from tests.support import deadlines, gpus, nursery, pool, processes

gpus.hide()

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CACHES = {".git", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__"}
_COST = "processor seconds"
_SHOWN = 40

# The tests marked "gpu" need only TensorFlow, Keras, NumPy, absl and pytest.
with contextlib.suppress(ImportError):
    import hypothesis

    # No test depends on how fast the machine is. Examples are the same in every run.
    hypothesis.settings.register_profile(
        "any machine",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption(
        "--processor-times",
        action="store_true",
        help="measure and show the processor time of each test, its processes included",
    )


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the main process; the others inherit its factor
        deadlines.calibrate()
    processes.mark()
    processes.heed_signals()


def pytest_ignore_collect(collection_path, config):
    """With `-m gpu`, import no other test, because others need more packages."""
    is_other = collection_path.suffix == ".py" and collection_path.name != "test_gpu.py"
    return True if config.option.markexpr == "gpu" and is_other else None


def pytest_report_header():
    return f"deadlines: {deadlines.factor():g} times those of an idle machine"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(tmp_path_factory):
    """Check at the end that the tests leave no process and no file behind."""
    before = set(os.listdir(_ROOT))
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield
    nursery.close()
    deadline = deadlines.Deadline(30)  # some processes may just be ending
    deadline.until(lambda: not processes.marked(), lambda: f"Still running: {processes.marked()}")
    new = set(os.listdir(_ROOT)) - before - _CACHES
    assert not new, f"The tests have left {sorted(new)} in {_ROOT}."


@pytest.fixture(scope="session")
def pools(_nothing_is_left_behind):
    """Return worker processes that tests share; see `pool`."""
    shared = pool.Pools()
    yield shared
    shared.close()


# ---- Where the processor time goes --------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if not item.config.getoption("--processor-times"):
        return (yield)
    before = processes.processor_seconds()
    item.user_properties.append((_COST, lambda: processes.processor_seconds() - before))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.user_properties = [
        (name, value()) if callable(value) else (name, value)
        for name, value in item.user_properties
        if name != _COST or call.when == "teardown"
    ]
    return report


# ---- What was left out --------------------------------------------------------------------------

_deselected = pytest.StashKey[list]()


def pytest_deselected(items):
    if items:
        items[0].config.stash.setdefault(_deselected, []).extend(item.nodeid for item in items)


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["deselected"] = config.stash.get(_deselected, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    found = getattr(node, "workeroutput", {}).get("deselected", [])
    node.config.stash[_deselected] = found  # every node deselects the same tests


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash.get(_deselected, [])
    if left_out:
        terminalreporter.write_line(
            f"{len(left_out)} tests were left out; all: make test-all", yellow=True
        )
    costs = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", []):
                if name == _COST:
                    costs[report.nodeid] += value
    if costs:
        _show(terminalreporter, costs)


def _show(terminalreporter, costs: collections.Counter):
    files = collections.Counter()
    for nodeid, seconds in costs.items():
        files[nodeid.partition("::")[0]] += seconds
    terminalreporter.section(f"processor time: {sum(costs.values()) / 60:.1f} minutes")
    for counted in (files, costs):
        for name, seconds in counted.most_common(_SHOWN):
            terminalreporter.write_line(f"{seconds:8.1f} s  {name}")

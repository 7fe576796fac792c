"""Whether a function still runs, asked from another thread; no process is started."""

import threading

from tf_gossip_pga.coordination.running_call import Frame


def _ask(frame: Frame) -> bool:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(frame.is_running))
    thread.start()
    thread.join()
    return answers[0]


def _body(fails: bool, frames: list[Frame]):
    frames.append(Frame(_body.__code__))
    assert _ask(frames[0])
    if fails:
        raise KeyError


def test_a_frame_runs_until_its_function_returns_or_raises():
    for fails in (False, True):
        frames: list[Frame] = []
        try:
            _body(fails, frames)
        except KeyError:
            assert fails
        assert not _ask(frames[0])
        assert not _ask(frames[0])


def test_a_function_that_is_not_on_the_stack_does_not_run():
    assert not Frame(_ask.__code__).is_running


def test_other_threads_may_ask_while_the_frames_come_and_go():
    frames, over, asked = [], threading.Event(), []

    def ask():
        while not over.is_set():
            asked.extend(frame.is_running for frame in frames[-1:])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()

    def recurse(depth: int):
        frames[:] = [Frame(recurse.__code__)]
        return depth and recurse(depth - 1)

    try:
        for _ in range(2000):
            recurse(20)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert asked

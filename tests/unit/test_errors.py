"""One tree of exceptions, which its docstring draws."""

import inspect
import re

from tf_gossip_pga import errors


def _depth(exception: type) -> int:
    """Levels below `GossipError`."""
    return sum(issubclass(base, errors.GossipError) for base in exception.__mro__) - 1


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(
        r"^    (│   |    )?(├── |└── )?(\w+)(?: \((\w+)\))?(?:  .*)?$", errors.__doc__, re.M
    )
    names = [name for _, _, name, _ in drawn]
    own = {
        name: each
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.GossipError)
    }
    assert sorted(names) == sorted(own)
    for indent, branch, name, builtin in drawn:
        assert _depth(own[name]) == bool(indent) + bool(branch), name
        assert not builtin or builtin in {base.__name__ for base in own[name].__mro__}


def test_what_interrupts_an_exchange_keeps_its_reason():
    broken = errors.ExchangeBroken(
        "the gossip of step 7", "socket closed", "the worker with index 1"
    )
    assert str(broken) == "socket closed"
    assert (broken.doing, broken.peer, broken.findings) == (
        "the gossip of step 7",
        "the worker with index 1",
        None,
    )

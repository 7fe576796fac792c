"""What a type checker, and so a user's editor, knows of the public names."""

import json
import pathlib
import subprocess
import sys

from tests.support import deadlines

ROOT = pathlib.Path(__file__).parents[2]

# Each line of the script, and the rule that pyright reports for it, if any.
LINES = {
    "import tf_gossip_pga as pga": None,
    "pga.GossipPGA(H=6, topology='ring', overlap=True)": None,
    "pga.GossipPGA(H=None)": None,
    "pga.GossipPGA(H=pga.AdaptivePeriod(initial=4))": None,
    "pga.GossipPGA(topology=pga.topology.ring(4))": None,
    "losses: list = pga.initialize().gather(0.5)": None,
    "pga.Nonsense": "reportAttributeAccessIssue",
    "pga.GossipPGA(period=6)": "reportCallIssue",
    "pga.GossipPGA(H='often')": "reportArgumentType",
    "pga.Checkpoint(gossip=3, directory='d')": "reportArgumentType",
}


def test_public_names_and_arguments_are_known(tmp_path):
    (tmp_path / "script.py").write_text("\n".join(LINES) + "\n")
    settings = {"extraPaths": [str(ROOT)], "reportUnusedExpression": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "script.py"], cwd=tmp_path, capture_output=True, timeout=deadlines.long()
    )
    rules = dict.fromkeys(LINES)
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        rules[list(LINES)[each["range"]["start"]["line"]]] = each["rule"]
    assert rules == LINES

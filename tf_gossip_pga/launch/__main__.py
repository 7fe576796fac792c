"""Run the launcher: `python -m tf_gossip_pga.launch --workers=4 SCRIPT`."""

import sys

from tf_gossip_pga import launch

sys.exit(launch.main())

"""Run the planner: `python -m tf_gossip_pga.plan --nodes=32 …`."""

from absl import app, flags

from tf_gossip_pga import plan

plan._define_flags(flags)
app.run(plan._main)

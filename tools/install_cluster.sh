#!/bin/sh
# Install what tools/box.py needs to simulate a cluster: iproute2, sshd, Slurm, munge, Open MPI.
# Run this script as root on Debian or Ubuntu. It starts no service.
set -e
export DEBIAN_FRONTEND=noninteractive
# Keep the packages' scripts from starting services.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
    iproute2 util-linux openssh-server slurmctld slurmd slurm-client munge openmpi-bin

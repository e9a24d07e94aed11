#!/bin/bash
# First process of a machine that is made of Linux namespaces. It readies the machine, says so, then collects
# orphans until its standard input ends, which also happens when the test session is killed. With the first
# process the kernel ends every other one of the machine and removes its network.
#
#   machine.sh login FOLDER                 the machine around all others; it has a view of its own of these folders:
#                                           /run, /etc/hosts, /etc/slurm
#   machine.sh NAME FOLDER LOCAL_FOLDER…    a node inside it; LOCAL_FOLDERs are disks of its own
set -euo pipefail
name=$1 folder=$2
shift 2

hostname "$name"
if [[ $name == login ]]; then
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/lock
    mount --bind "$folder/hosts" /etc/hosts
    mkdir -p /etc/slurm
    mount --bind "$folder/etc" /etc/slurm
    ip link set lo up
    # slurmctld refuses a machine whose only address is loopback; the bridge brings one.
    ip link add bridge type bridge
    ip address add "$(awk '$2 == "login" { print $1 }' /etc/hosts)/16" dev bridge
    ip link set bridge up
else
    mount -t tmpfs -o size=2g tmpfs /dev/shm
    for disk in "$@"; do
        mkdir -p "$disk" "$folder/disks/$name$disk"
        mount --bind "$folder/disks/$name$disk" "$disk"
    done
fi

echo ready
while read -r _; do :; done

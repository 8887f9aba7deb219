#!/bin/sh
# boot.sh, by root of a bare machine (tests/packages/machine.sh) on which systemd is installed: boots it, with systemd as
# process 1 of namespaces of its own, in a control group of its own. Ends with the machine.
set -eu
mkdir -p /run/outer
mount -t cgroup2 cgroup2 /run/outer
group=/run/outer/skerry-box-$1
mkdir "$group"
echo $$ >"$group/cgroup.procs"
umount /run/outer
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -euc '
    mount --make-rprivate /
    mount -t proc -o nosuid,nodev,noexec proc /proc
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
    hostname box
    # No clock, no modules and no log of the kernel: those are the outer machine'"'"'s.
    exec setpriv --bounding-set=-sys_time,-sys_module,-syslog --inh-caps=-all --ambient-caps=-all \
        env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        /lib/systemd/systemd --unit=multi-user.target'

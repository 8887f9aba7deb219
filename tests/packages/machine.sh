#!/usr/bin/env bash
# machine.sh FOLDER NAME…, as root: unpacks FOLDER/base.tar and is a machine in it, in namespaces of its own for mounts
# and processes, until its standard input ends. It says its number of process first. The names lead to 127.0.0.1.
# When whoever started it ends, in whatever way, so does its input: all that runs in it is killed, all that is mounted
# in it is gone, and the folder is removed.
set -euo pipefail
PATH=/usr/sbin:/usr/bin:/sbin:/bin

inside() {
    local root=$1 number node repository names=("${@:2}")
    # /proc is still that of the outer world, and so is this number.
    read -r number _ </proc/self/stat
    mount --bind "$root" "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
    mkdir -m 1777 "$root/run/lock"
    # Nodes of its own: owners and modes of the outer world's can't be changed from here.
    mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
    for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
        read -r name major minor <<<"$node"
        mknod -m 0666 "$root/dev/$name" c "$major" "$minor"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s /proc/self/fd/0 "$root/dev/stdin"
    ln -s /proc/self/fd/1 "$root/dev/stdout"
    ln -s /proc/self/fd/2 "$root/dev/stderr"
    mkdir "$root/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mkdir -m 1777 "$root/dev/shm"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
    # apt, as it is set up on the outer machine, with the folders that its sources name; what it gets is kept.
    mount --bind -o ro /etc/apt "$root/etc/apt"
    while read -r repository; do
        [ -d "$repository" ] || continue
        mkdir -p "$root$repository"
        mount --bind -o ro "$repository" "$root$repository"
    done < <(apt-get indextargets --format '$(REPO_URI)' | sed -n 's/^\(file\|copy\):\(\/\/\)\?\(\/.*\)/\3/p' | sort -u)
    mkdir -p "$root/var/cache/skerry-archives"
    mount --bind "$root/../archives" "$root/var/cache/skerry-archives"
    mount --bind "$root/../lists" "$root/var/lib/apt/lists"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    { cat /etc/hosts; for name in "${names[@]}"; do echo "127.0.0.1 $name"; done; } >"$root/etc/hosts"
    # It is on no disk that anything has to last on.
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
    cd "$root"
    pivot_root . mnt
    cd /
    umount --lazy /mnt
    echo "$number"
    # Bash, since it waits for processes whose parents are gone.
    exec bash -c 'while read -r _; do :; done'
}

if [ "$1" = inside ]; then
    inside "${@:2}"
fi
folder=$(realpath "$1")
exec 9>"$folder/lock"
flock --nonblock 9 || { echo "another run has the machine in $folder" >&2; exit 1; }
root=$folder/machine
rm -rf --one-file-system "$root"
mkdir -p "$root" "$folder/archives" "$folder/lists"
trap 'rm -rf --one-file-system "$root"' EXIT
tar --extract --directory "$root" --file "$folder/base.tar"
unshare --mount --pid --fork --kill-child bash "$0" inside "$root" "${@:2}"

# Hosts a and b: network namespaces with names, addresses and, on b, an sshd; sourced by scripts of test_hosts.py.
#
# To be run by `unshare --net --uts --mount --pid --fork --kill-child --mount-proc` in a folder of its own: all that is
# made here, processes, links and mounts, ends with that process. Keys lie in the folder.

set -eu
mount --make-rprivate /
hostname a
ip link set lo up
printf '127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n' > hosts
mount --bind hosts /etc/hosts
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc  # whatever it does takes time, or a lock, at every ssh
mount -t tmpfs none /run
mkdir /run/sshd keys
ssh-keygen -q -t ed25519 -N '' -f keys/user
ssh-keygen -q -t ed25519 -N '' -f keys/host
cat > sshd_config <<X
HostKey $PWD/keys/host
AuthorizedKeysFile $PWD/keys/user.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
X
cat > ssh_config <<X
IdentityFile $PWD/keys/user
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
X
export PRTE_MCA_plm_ssh_args="-F $PWD/ssh_config"
export PRTE_MCA_prte_tmpdir_base=$PWD/sessions  # a lost host leaves some, named by process numbers that come again
ON_B="ssh -o ConnectTimeout=1 -F $PWD/ssh_config b"
HERE=$PWD

# b has process numbers of its own: what ends its first process loses the whole host, and says no goodbye.
start_b() {
    mkdir -p "$HERE"/sessions
    rm -rf "$HERE"/sessions/*.b.*
    unshare --net --uts --mount --pid --fork --kill-child --mount-proc bash -c '
        hostname b
        ip link set lo up
        until ip addr add 10.77.0.2/24 dev eth0 2> /dev/null; do sleep 0.05; done
        ip link set eth0 addrgenmode none up
        exec /usr/sbin/sshd -D -f '"$HERE"'/sshd_config' > /dev/null 2>&1 &
    local outer=$!
    until B=$(pgrep -P $outer); do sleep 0.05; done
    until [ "$(readlink /proc/$B/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
    ip link add eth0 type veth peer name eth0 netns $B
    ip addr add 10.77.0.1/24 dev eth0
    ip link set eth0 addrgenmode none up  # no address by IPv6, which is tentative for a second
    until $ON_B true 2> /dev/null; do sleep 0.1; done
    echo "$(date +%T) b is up"
}

# A command on b with this host's folder and environment, as a user's shell has them there.
on_b() {
    $ON_B "cd $PWD; export PATH=$PATH PYTHONPATH=$PYTHONPATH MINDCV_REPARAM_FAMILIES=$MINDCV_REPARAM_FAMILIES; $*"
}

# A line of msrun on both hosts, on a core each, until both have ended or b is lost. What each says and its status are in
# files a and b of a folder, written there, since the link may be gone by then.
msrun_on_both() {
    on_b "taskset -c $CORE_B ${2/node_rank=0/node_rank=1} > $1/b 2>&1; echo ended with \$? >> $1/b" &
    eval "taskset -c $CORE_A $2" > "$1"/a 2>&1
    echo "ended with $?" >> "$1"/a
    until grep -q '^ended with' "$1"/b || ! kill -0 $B 2> /dev/null; do sleep 0.1; done
}

# All that belongs to a job, on both hosts: b's processes are seen here.
gone_within_a_minute() {
    local running='python|msrun|mpirun|prterun|prted'
    for _ in $(seq 600); do
        ps -e -o comm= | grep -qxE $running || return 0
        sleep 0.1
    done
    ps -e -o comm=,args= | grep -E "^($running) "
    return 1
}

lose_b() {
    echo "$(date +%T) b is lost"
    kill -9 $B
    while ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
}

start_b

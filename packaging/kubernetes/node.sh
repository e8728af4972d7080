#!/bin/sh
# Puts Orlop on a node, or takes it off: `node.sh install|revert [OPTIONS OF orlop install]`. Runs in a container that has the
# node's file system at /host and its processes; what it puts there runs on the node. Each step can be done again.
set -eu
action=$1
shift
host=${ORLOP_HOST:-/host}
on_node() { nsenter --target 1 --mount --uts --ipc --net -- "$@"; }

# A file takes the place of another at once: a running binary cannot be written.
put() { install -D -m "$1" "$2" "$host$3.new" && mv -f "$host$3.new" "$host$3"; }

install_orlop() {
    put 0755 /usr/local/bin/orlop /usr/local/bin/orlop
    for unit in orlop.service orlop.socket orlop-raw.socket; do
        put 0644 /usr/share/orlop/systemd/$unit /etc/systemd/system/$unit
    done
    on_node systemctl daemon-reload
    on_node systemctl enable --now orlop.socket orlop-raw.socket
    on_node systemctl restart orlop.service
    on_node /usr/local/bin/orlop install "$@"
}

# This very container may have its snapshot in Orlop, so that the rest happens without it, as a unit of the node: kubelet stops,
# containers go, the old configuration comes back, kubelet starts.
revert_orlop() {
    put 0755 /usr/share/orlop/node.sh /usr/local/lib/orlop/node.sh
    on_node systemd-run --unit=orlop-revert --collect --setenv=ORLOP_HOST= /usr/local/lib/orlop/node.sh revert-here "$@"
}

# On the node itself.
revert_here() {
    for unit in kubelet k3s k3s-agent rke2-server rke2-agent snap.microk8s.daemon-kubelite; do
        if systemctl is-active --quiet $unit; then
            kubelet=$unit
            break
        fi
    done
    case ${kubelet:-none} in
        none) ;;
        # k3s and rke2 are kubelet and containerd in one: all of it ends, and starts with the old configuration.
        k3s*) k3s-killall.sh ;;
        rke2*) rke2-killall.sh ;;
        snap.*) microk8s stop ;;
        *)
            systemctl stop "$kubelet"
            crictl rmp --all --force
            ;;
    esac
    orlop install --revert "$@"
    case ${kubelet:-none} in
        none) ;;
        snap.*) microk8s start ;;
        *) systemctl start "$kubelet" ;;
    esac
    systemctl disable --now orlop.service orlop.socket orlop-raw.socket
}

case $action in
    install) install_orlop "$@" ;;
    revert) revert_orlop "$@" ;;
    revert-here) revert_here "$@" ;;
    *)
        echo "node.sh: expected install or revert, found $action" >&2
        exit 2
        ;;
esac

#!/bin/sh
# Installs what `alcazar vm onboard` has made, as root, on the machine that it was made for. DESTDIR=DIR puts the files below
# another root and starts nothing.
set -eu
cd "$(dirname "$0")"
destdir="${DESTDIR:-}"
for program in alcazar-node-agent $(test ! -e proxy.yaml || echo alcazar-proxy); do
    if [ ! -x "$destdir/usr/bin/$program" ]; then
        echo "install.sh: $destdir/usr/bin/$program is missing; install it first" >&2
        exit 1
    fi
done
install -d -m 0755 "$destdir/etc/alcazar" "$destdir/etc/systemd/system"
install -m 0644 agent.yaml root-cert.pem "$destdir/etc/alcazar/"
install -m 0600 token "$destdir/etc/alcazar/token"
# Those of a package are updated with it.
unit() {
    test -e "$destdir/usr/lib/systemd/system/$1" || install -m 0644 "$1" "$destdir/etc/systemd/system/"
}
unit alcazar-node-agent.service
unit alcazar-node-agent.socket
units="alcazar-node-agent.socket alcazar-node-agent.service"
if [ -e proxy.yaml ]; then
    install -m 0644 proxy.yaml "$destdir/etc/alcazar/"
    unit alcazar-proxy.service
    units="$units alcazar-proxy.service"
fi
if [ -z "$destdir" ]; then
    systemctl daemon-reload
    # shellcheck disable=SC2086
    systemctl enable $units
    # A socket is not made anew while its service runs.
    systemctl stop alcazar-node-agent.service
    # shellcheck disable=SC2086
    systemctl restart $units
fi
echo "installed; see: systemctl status alcazar-node-agent"

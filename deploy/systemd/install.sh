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
# Those of a package are updated with it, and one of an earlier run would hide them.
unit() {
    own="$destdir/etc/systemd/system/$1"
    for packages in "$destdir/usr/lib/systemd/system" "$destdir/lib/systemd/system"; do
        test -e "$packages/$1" || continue
        # A link is a person's: so a unit is masked.
        if [ -f "$own" ] && [ ! -L "$own" ]; then
            mv "$own" "$own.old"
            echo "install.sh: the unit of the package, $packages/$1, is used from now on; $own is now $own.old"
        fi
        return
    done
    install -m 0644 "$1" "$own"
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
    # What keeps them from being ready is for their status to tell, not for this to wait for.
    # shellcheck disable=SC2086
    systemctl --no-block restart $units
fi
echo "installed; see: systemctl status alcazar-node-agent"

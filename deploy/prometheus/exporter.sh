#!/bin/sh
# Starts redis_exporter with distier.lua for NAMESPACES, separated by blanks. Arguments are passed to redis_exporter.
set -euf

here=${EXPORTER_CONFIG_DIR:-/etc/distier}
script=${EXPORTER_SCRIPT:-/tmp/distier.lua}
list=
for namespace in ${NAMESPACES:-default}; do
    case $namespace in
        *[!a-z0-9._-]*) echo "NAMESPACES: $namespace is not the name of a namespace (a-z 0-9 . _ -)" >&2; exit 2 ;;
    esac
    list="$list'$namespace', "
done
sed "s/^local namespaces = .*/local namespaces = {$list}/" "$here/distier.lua" > "$script"

PATH=$PATH:/ # the image has redis_exporter in the root directory
exec redis_exporter --script "$script" "$@"

#!/bin/sh
# Starts Redis or Valkey with redis.conf and users.acl. The SHA-256 of each password in the environment is written into the ACL:
# AGENT_PASSWORD, WORKER_PASSWORD, OPERATOR_PASSWORD, DEPLOYER_PASSWORD, EXPORTER_PASSWORD, ADMIN_PASSWORD. A role without a
# password keeps the hash of zeros, which no password has, and cannot log in. Arguments are passed to the server.
set -eu
umask 077

here=${REDIS_CONFIG_DIR:-/etc/distier}
acl=${REDIS_ACL_FILE:-/tmp/users.acl}

cp "$here/users.acl" "$acl"
chmod 600 "$acl"
set_password() { # role, password
    [ -n "$2" ] || return 0
    hash=$(printf %s "$2" | sha256sum | cut -d ' ' -f 1)
    # sed reads its script from stdin, so that `ps` shows neither a password nor its hash.
    printf '/^user %s /s/#0\\{64\\}/#%s/\n' "$1" "$hash" | sed -f - "$acl" > "$acl.new"
    mv "$acl.new" "$acl"
}
set_password agent "${AGENT_PASSWORD:-}"
set_password worker "${WORKER_PASSWORD:-}"
set_password operator "${OPERATOR_PASSWORD:-}"
set_password deployer "${DEPLOYER_PASSWORD:-}"
set_password exporter "${EXPORTER_PASSWORD:-}"
set_password admin "${ADMIN_PASSWORD:-}"
unset AGENT_PASSWORD WORKER_PASSWORD OPERATOR_PASSWORD DEPLOYER_PASSWORD EXPORTER_PASSWORD ADMIN_PASSWORD

server=$(command -v valkey-server || command -v redis-server)
exec "$server" "$here/redis.conf" --aclfile "$acl" "$@"

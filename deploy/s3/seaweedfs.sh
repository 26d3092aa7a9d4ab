#!/bin/sh
# Starts SeaweedFS with its S3 gateway for one identity: S3_ACCESS_KEY and S3_SECRET_KEY. Arguments are passed to `weed server`.
set -eu
umask 077

config=${S3_CONFIG_FILE:-/tmp/s3.json}
printf '{"identities":[{"name":"distier","credentials":[{"accessKey":"%s","secretKey":"%s"}],
"actions":["Admin","Read","Write","List","Tagging"]}]}' "${S3_ACCESS_KEY:?}" "${S3_SECRET_KEY:?}" > "$config"
unset S3_ACCESS_KEY S3_SECRET_KEY

exec weed server -dir="${S3_DATA_DIR:-/data}" -s3 -s3.port=8333 -s3.config="$config" \
    -master.volumeSizeLimitMB=1024 -volume.max=0 "$@"

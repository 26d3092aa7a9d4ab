"""Create the bucket of `storage_tiers.cold.url` if it is missing. Waits until the S3 server replies.

This is for the stand-in of docker-compose.yml. With a real S3, its owner creates the bucket.
"""

from __future__ import annotations

import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from distier.config import load_config

WAIT_S = 60.0
EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def main() -> None:
    cold = load_config().storage_tiers.cold
    client = boto3.client(
        "s3",
        endpoint_url=cold.endpoint_url,
        region_name=cold.region or "us-east-1",
        aws_access_key_id=cold.access_key,
        aws_secret_access_key=cold.secret_key.get_secret_value() if cold.secret_key else None,
        config=Config(connect_timeout=2, read_timeout=5, s3={"addressing_style": "path"}),
    )
    end_s = time.monotonic() + WAIT_S
    while True:
        try:
            client.create_bucket(Bucket=cold.bucket or "")
        except ClientError as e:
            code = e.response["Error"]["Code"]
            if code in EXISTS:
                break
            problem: Exception = e
        except BotoCoreError as e:
            problem = e
        else:
            break
        if time.monotonic() > end_s:
            sys.exit(f"no bucket {cold.bucket!r}: {problem}")
        time.sleep(0.5)
    sys.stdout.write(f"bucket {cold.bucket} is there\n")


if __name__ == "__main__":
    main()

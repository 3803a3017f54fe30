"""Temporary uploads: a policy from the native interface, and the object store that takes a form signed with it.

What was uploaded can be named as `oss://…` in calls of the same account and model for 48 hours. Nobody looks into
the files, so a name and a length are all that is kept. Source: Alibaba docs, "Get a temporary URL for a local file".
"""

import base64
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import Any

from ops.sandbox import clock
from ops.sandbox.links import ACCESS_KEY, ACCESS_KEY_ID, Denial
from ops.sandbox.refusals import Refusal

BUCKET = "dashscope-file-mgr"
POLICY_SECONDS = 300
KEPT_SECONDS = 48 * 3600.0
MOST_BYTES = 1_073_741_824
INVALID = "Invalid according to Policy: "
SCHEME = "oss://"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client left with the store."""

    key: str
    owner: str
    model: str  # the only one that may be given it
    bytes: int
    uploaded_at: float

    def row(self) -> dict[str, Any]:
        """Return the upload as the ledger and the journal have it."""
        return asdict(self)


class Uploads:
    """The policies that were handed out, and the files that came with them."""

    def __init__(self) -> None:
        self.by_key: dict[str, Upload] = {}
        self._granted: dict[str, tuple[str, str]] = {}  # a policy's directory → its owner and model

    def grant(self, owner: str, model: str, host: str, request_id: str, now: float) -> dict[str, Any]:
        """Return the `data` of a policy answer, for uploads to `host`."""
        account = hashlib.md5(owner.encode(), usedforsecurity=False).hexdigest()
        day = clock.iso(now)[:10]
        directory = f"dashscope-instant/{account}/{day}/{request_id}"
        self._granted[directory] = (owner, model)
        policy = _policy(directory, now + POLICY_SECONDS)
        return {
            "policy": policy,
            "signature": _sign(policy),
            "upload_dir": directory,
            "upload_host": host,
            "expire_in_seconds": POLICY_SECONDS,
            "max_file_size_mb": MOST_BYTES // 1_048_576,
            "capacity_limit_mb": 999_999_999,
            "oss_access_key_id": ACCESS_KEY_ID,
            "x_oss_object_acl": "private",
            "x_oss_forbid_overwrite": "true",
        }

    def check(self, form: dict[str, str], now: float) -> str:
        """Return the directory that a form may write to, or raise the Denial it earns, its file unseen."""
        policy = form.get("policy", "")
        if form.get("OSSAccessKeyId") != ACCESS_KEY_ID:
            message = "The OSS Access Key Id you provided does not exist in our records."
            raise Denial(403, "InvalidAccessKeyId", message, "0002-00000902")
        if not hmac.compare_digest(_sign(policy), form.get("Signature", "")):
            message = "The request signature we calculated does not match the signature you provided."
            raise Denial(403, "SignatureDoesNotMatch", message, "0002-00000040")
        document = json.loads(base64.b64decode(policy))
        directory = str(document["conditions"][1][2])
        # A policy from before a restart is as good as expired: nobody knows any more whose it was.
        if now > clock.from_iso(document["expiration"]) or directory not in self._granted:
            raise _forbidden("Policy expired.")
        for condition in document["conditions"]:
            _require(condition, form)
        return directory

    def add(self, directory: str, key: str, size: int, now: float) -> Upload:
        """Keep a file under a directory that was granted, or raise the Denial of one too large or there already."""
        if size > MOST_BYTES:
            message = "Your proposed upload exceeds the maximum allowed size."
            raise Denial(400, "EntityTooLarge", message, "0006-00000033")
        if key in self.by_key:
            message = "The object you specified already exists and can not be overwritten."
            raise Denial(409, "FileAlreadyExists", message, "0026-00000046")
        upload = Upload(key, *self._granted[directory], size, now)
        self.by_key[key] = upload
        return upload

    def require(self, link: str, owner: str, model: str, now: float) -> None:
        """Raise the Refusal of an `oss://` link that is not there for this account and model, or no more."""
        upload = self.by_key.get(link.removeprefix(SCHEME))
        is_ours = upload is not None and (upload.owner, upload.model) == (owner, model)
        if upload is None or not is_ours or now > upload.uploaded_at + KEPT_SECONDS:
            message = "Unable to download the media resource during the data inspection process."
            raise Refusal(400, "InvalidParameter.DataInspection", message)

    def recall(self, row: dict[str, Any]) -> None:
        """Keep an upload of before."""
        self.by_key[row["key"]] = Upload(**row)

    def statement(self) -> list[dict[str, Any]]:
        """Return what was uploaded, for the ledger."""
        return [upload.row() for upload in self.by_key.values()]


def _policy(directory: str, expires: float) -> str:
    conditions = [
        ["content-length-range", 0, MOST_BYTES],
        ["starts-with", "$key", directory],
        {"bucket": BUCKET},
        {"x-oss-object-acl": "private"},
        {"x-oss-forbid-overwrite": "true"},
    ]
    document = {"expiration": clock.iso(expires), "conditions": conditions}
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


def _require(condition: Any, form: dict[str, str]) -> None:
    if isinstance(condition, dict):
        [(name, value)] = condition.items()
        is_met = name == "bucket" or form.get(name) == value
    else:
        is_met = condition[0] != "starts-with" or form.get("key", "").startswith(condition[2])
    if not is_met:
        raise _forbidden(f"Policy Condition failed: {json.dumps(condition)}")


def _forbidden(reason: str) -> Denial:
    return Denial(403, "AccessDenied", INVALID + reason, "0003-00000201")


def _sign(policy: str) -> str:
    return base64.b64encode(hmac.digest(ACCESS_KEY, policy.encode(), "sha1")).decode()

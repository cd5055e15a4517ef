"""`planner export-patch`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelArgument
from planner.errors import FileUnreadable, OutputExists, SignatureRefused

if TYPE_CHECKING:
    from planner.plan import Policy

_NAMESPACE = "planner/patch"


def command(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the patch.")] = Path("model.patch"),
    patch: Annotated[
        int | None, typer.Option(min=1, help="Which one, by its number in the log. Default: the last.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign it: an OpenSSH key, or a file with a shared key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a patch in force as one file: the plan, and what turns the bytes of the base into these.

    `planner apply FILE --model BASE` applies it, on another machine as well, without what the plan read.
    """
    import planner.signing
    from planner import fsio
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.dtypes import bytes_needed
    from planner.transaction import export_patch, patch_statement

    screen = Screen(as_json=as_json)
    path = locate(model)
    if (left := _signature_of(out)).exists():
        raise OutputExists(f"{left} exists, the signature of another patch", hint="choose another --out, or remove it")
    with screen.progress("exporting") as bar:
        head = export_patch(path, out, number=patch, progress=bar.step)
    size, changed = out.stat().st_size, sum(bytes_needed(tensor.dtype, tensor.shape) for tensor in head.tensors)
    document = {
        "schema": "planner/exported@1",
        "path": str(out),
        "bytes": size,
        "changed_bytes": changed,
        "fingerprint_before": head.fingerprint_before,
        "fingerprint_after": head.fingerprint_after,
        "tensors": len(head.tensors),
        "signed": sign is not None,
    }
    if sign:
        try:
            signature = planner.signing.sign(patch_statement(out), sign, namespace=_NAMESPACE)
            fsio.replace_file(_signature_of(out), signature.model_dump_json(indent=2).encode() + b"\n")
        except BaseException:  # what was to be signed is not left behind without
            fsio.remove_file(out)
            raise
        document["signer"] = signature.signer
    screen.emit(document)
    screen.show(f"{out}: {len(head.tensors)} tensors, {size:,} bytes, {size / max(changed, 1):.2%} of those it changes")
    screen.show(f"base    {head.fingerprint_before}  ({head.base})")
    screen.show(f"result  {head.fingerprint_after}")
    if sign:
        screen.show(f"signed in {_signature_of(out)}; it has to travel with the patch")
    screen.say(f"apply it: planner apply {shlex.quote(str(out))} --model BASE --out DIR")


def signer_of(patch: Path, policy: Policy, key: Path | None) -> str | None:
    """Who signed a portable patch; None if nobody did. Raises `SignatureRefused` as the policy asks for."""
    from pydantic import ValidationError

    from planner.inputs import read_text
    from planner.signing import Signature, consistent, hmac_key, verify
    from planner.transaction import patch_statement

    path = _signature_of(patch)
    if not path.exists():
        if policy.signed_approval:
            raise SignatureRefused(
                f"the policy asks for a signature, and there is no {path}",
                hint="have it exported with `planner export-patch --sign KEY`, and keep both files together",
            )
        return None
    try:
        signature = Signature.model_validate_json(read_text(path))
    except ValidationError as error:
        raise FileUnreadable(
            f"{path} is no signature: {str(error).splitlines()[0]}", hint="remove it, or have the patch signed again"
        ) from None
    statement = patch_statement(patch)
    if signature.kind == "ssh" and not policy.allowed_signers:
        if policy.signed_approval:
            raise SignatureRefused("the policy names nobody who may sign", hint="add allowed_signers to the policy")
        return consistent(statement, signature, namespace=_NAMESPACE) + " (a key that no policy names)"
    if signature.kind != "ssh" and key is None:
        raise SignatureRefused(
            f"the patch is signed by the shared key {signature.signer}, and no key was given to verify it with",
            hint="give its file: planner apply ... --approval-key FILE",
        )
    return verify(
        statement,
        signature,
        namespace=_NAMESPACE,
        allowed_signers=policy.allowed_signers,
        hmac_key=hmac_key(key) if key else None,
    )


def _signature_of(patch: Path) -> Path:
    return patch.with_name(patch.name + ".sig")

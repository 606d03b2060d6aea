"""Why a connection cannot be made, found with the standard library: gRPC reports only that it failed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from instep.errors import SettingsError
from instep.etcd._endpoints import Endpoint
from instep.etcd._tls import TlsFiles

_LIMIT_S = 1.0
# The start of HTTP/2 with an empty SETTINGS frame: a server that accepts the client answers with its own SETTINGS.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

# OpenSSL's X509_V_ERR_* codes.
_EXPIRED = 10
_NOT_YET_VALID = 9
_NAME_MISMATCH = (62, 64)


async def diagnose(endpoint: Endpoint, files: TlsFiles | None) -> str | None:
    """One sentence with the fix if repeating cannot help, else None. Takes about 3 s at most."""
    if not endpoint.secure:
        if await _answers(endpoint, None) == "silent" and await _speaks_tls(endpoint):
            return f"{endpoint.address} expects TLS but received plain text: use https:// and set the CA."
        return None
    try:
        context = files.context() if files is not None else ssl.create_default_context()
    except SettingsError as error:
        return str(error)
    context.set_alpn_protocols(["h2"])
    try:
        if await _answers(endpoint, context) == "settings":
            return None
    except ssl.SSLCertVerificationError as error:
        return _certificate_reason(endpoint, error)
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _alert_reason(endpoint, error.reason or "", files is not None and files.has_certificate)
    if await _answers(endpoint, None) == "settings":
        return f"{endpoint.address} expects plain text but received TLS: use http://."
    return None


async def _answers(endpoint: Endpoint, context: ssl.SSLContext | None) -> str:
    """`settings` if the server begins HTTP/2, `silent` if it closes or sends nothing, else `unreachable`."""
    name = endpoint.host if context is not None else None
    try:
        async with asyncio.timeout(_LIMIT_S):
            reader, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=context, server_hostname=name
            )
    except ssl.SSLError:
        raise
    except OSError:  # TimeoutError is one
        return "unreachable"
    try:
        async with asyncio.timeout(_LIMIT_S):
            writer.write(_PREFACE)
            head = await reader.readexactly(9)
        return "settings" if head[3] == 4 else "silent"
    except ssl.SSLError:
        raise
    except (OSError, EOFError):
        return "silent"
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _speaks_tls(endpoint: Endpoint) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return await _answers(endpoint, context) != "unreachable"
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")


def _certificate_reason(endpoint: Endpoint, error: ssl.SSLCertVerificationError) -> str:
    place = endpoint.address
    if error.verify_code in _NAME_MISMATCH:
        return f"The certificate of {place} is not for {endpoint.host}: use a name that it holds, or have it reissued."
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return f"The certificate of {place} is not valid now ({error.verify_message}): renew it, or set the clock."
    return f"The certificate of {place} is not signed by a trusted CA ({error.verify_message}): give its CA."


def _alert_reason(endpoint: Endpoint, reason: str, has_certificate: bool) -> str:
    words = reason.split("ALERT_", 1)[-1].replace("_", " ").lower()
    if not has_certificate and "certificate" in words:
        return f"{endpoint.address} demands a client certificate: give one and its key (INSTEP_CERT, INSTEP_KEY)."
    if words == "certificate expired":
        return f"{endpoint.address} says that our client certificate has expired: put a new one in its place."
    # etcd 3.4 calls an expired one bad, too.
    return (
        f"{endpoint.address} does not accept our client certificate ({words}): give one that its CA has signed and "
        "that has not expired."
    )

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use the gateway: API keys and bearer tokens. There is no way around it, and no default secret."""

from __future__ import annotations

import hashlib
import hmac
import typing as t

from shannon.services.common.config import ApiKey, Config
from shannon.services.common.secrets import SecretError, optional

from .errors import ApiError
from .principal import Principal
from .tokens import BadToken, Tokens


class Authenticator:
    """Checks a request's credentials.

    :param keys: the API keys by their hashes.
    :param tokens: checks bearer tokens; None: only keys count.
    """

    def __init__(self, keys: t.Sequence[ApiKey], tokens: Tokens | None) -> None:
        self._tokens = tokens
        self._keys = [(key.sha256.encode(), _principal(key)) for key in keys]

    def authenticate(self, headers: t.Mapping[str, str], query_key: str = "") -> Principal:
        """Who asks: C(X-API-Key), else C(Authorization: Bearer) (a token, else a key), else the query's key.

        :param query_key: the query parameter C(api_key), where it is allowed.
        :raises ApiError: 401.
        """
        if key := headers.get("x-api-key"):
            return self._by_key(key, "the API key is unknown")
        if authorization := headers.get("authorization"):
            scheme, _space, credentials = authorization.partition(" ")
            if scheme.lower() != "bearer" or not credentials.strip():
                raise _refused("expected Authorization: Bearer and a token, or X-API-Key")
            return self._by_bearer(credentials.strip())
        if query_key:
            return self._by_key(query_key, "the API key is unknown")
        raise _refused("this needs an API key (X-API-Key) or a token (Authorization: Bearer)")

    def _by_bearer(self, credentials: str) -> Principal:
        reason = "the API key is unknown"
        if self._tokens is not None and credentials.count(".") == 2:
            try:
                return self._tokens.check(credentials)
            except BadToken as exc:
                reason = str(exc)
        return self._by_key(credentials, reason)

    def _by_key(self, key: str, reason: str) -> Principal:
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest().encode()
        found: Principal | None = None
        for known, principal in self._keys:  # all of them: the time says nothing about which one it is
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise _refused(reason)
        return found


def authenticator(config: Config) -> Authenticator:
    """From the configuration and the secret C(gateway_jwt).

    :raises SecretError: nobody could ever log in, or the secret is no good.
    """
    settings = config.auth.jwt
    secret = optional("gateway_jwt")
    tokens = Tokens(settings, secret) if secret or settings.algorithm == "RS256" else None
    if tokens is None and not config.auth.api_keys:
        raise SecretError(
            "nobody could use the gateway: auth.api_keys is empty, and the secret gateway_jwt is missing. "
            "Give at least one of them; there is no default"
        )
    return Authenticator(config.auth.api_keys, tokens)


def _principal(key: ApiKey) -> Principal:
    return Principal(key.tenant_id, key.user_id, key.tier, f"key:{key.id}")


def _refused(message: str) -> ApiError:
    return ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="shannon"'})

# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bearer tokens: JSON Web Tokens that somebody else issued."""

from __future__ import annotations

import pathlib
import re
import typing as t

import jwt

from shannon.services.common.config import TIERS, Jwt
from shannon.services.common.secrets import SecretError

from .principal import Principal

_TENANT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_USER = re.compile(r"[A-Za-z0-9:_.@-]{1,128}")
#: RFC 7518, 3.2: a key of HS256 has at least as many bytes as its hash.
_LEAST_SECRET = 32


class BadToken(Exception):
    """A token that does not count; the text says why, and never has the token in it."""


class Tokens:
    """Checks tokens.

    Only the configured algorithm is taken, so a token can't choose its own; C(exp), C(sub) and C(tenant_id) must be
    there, and issuer and audience match where they are configured. The claim C(tier) names the rate limits' tier.

    :param secret: of HS256; empty with RS256.
    :raises SecretError: the secret is too short, or the public key can't be read.
    """

    def __init__(self, settings: Jwt, secret: str) -> None:
        self._settings = settings
        if settings.algorithm == "RS256":
            try:
                self._key: t.Any = pathlib.Path(settings.public_key_file).read_text(encoding="utf-8")
                jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).prepare_key(self._key)
            except (OSError, ValueError, jwt.InvalidKeyError) as exc:
                raise SecretError(
                    f"auth.jwt.public_key_file {settings.public_key_file!r} can't be used: {exc}; "
                    "expected an RSA public key in PEM"
                ) from exc
        else:
            if len(secret.encode()) < _LEAST_SECRET:
                raise SecretError(
                    f"the secret gateway_jwt has {len(secret.encode())} bytes, expected at least {_LEAST_SECRET}"
                )
            self._key = secret

    def check(self, token: str) -> Principal:
        """Who a token is for.

        :raises BadToken: it does not count.
        """
        settings = self._settings
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[settings.algorithm],
                issuer=settings.issuer or None,
                audience=settings.audience or None,
                leeway=settings.leeway,
                options={"require": ["exp", "sub", "tenant_id"], "verify_aud": bool(settings.audience)},
            )
        except jwt.ExpiredSignatureError as exc:
            raise BadToken("the token has expired") from exc
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as exc:
            raise BadToken(f"the token is not valid: {type(exc).__name__}") from exc
        tenant, user, tier = claims.get("tenant_id"), claims.get("sub"), claims.get("tier", "free")
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            raise BadToken("the token's tenant_id is no UUID in lower case")
        if not isinstance(user, str) or not _USER.fullmatch(user):
            raise BadToken("the token's sub is no user id of 1 to 128 of A-Z a-z 0-9 : _ . @ -")
        known = tier if isinstance(tier, str) and tier in TIERS else "free"
        return Principal(tenant, user, known, f"user:{tenant}:{user}")

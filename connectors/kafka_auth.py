"""What logs a Kafka client in: the operator's map, its secret files, and tokens for SASL OAUTHBEARER.

It knows where secrets come from and keeps them out of sentences; it opens no connection to a broker.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Protocol

from kafka.net.sasl.oauth import AbstractTokenProvider

from streamlearn.errors import SettingsError, SourceError, unreadable_secret

_TOKEN_TIMEOUT_S = 5.0  # it is waited for in the client's I/O thread, which must send heartbeats
_LEEWAY_S = 60  # a token that ends so soon is replaced


class LoginOptions(Protocol):
    """The settings that log in: a part of the `kafka` section."""

    client: dict[str, Any]
    client_secret_files: dict[str, Path]
    oauth_token_file: Path | None
    oauth_token_url: str | None
    oauth_client_id: str | None
    oauth_client_secret_file: Path | None
    oauth_scope: str | None


def given_options(options: LoginOptions) -> dict[str, Any]:
    """The operator's map with the secrets read in, and a token provider where OAuth is asked for.

    Raises:
        SettingsError: a file cannot be read, or the extra `oauth` is not installed.
    """
    given = dict(options.client)
    for name, path in options.client_secret_files.items():
        given[name] = _secret(path, f"kafka.client_secret_files.{name}")
    provider = _token_provider(options)
    if provider is not None:
        given.setdefault("sasl_mechanism", "OAUTHBEARER")
        given["sasl_oauth_token_provider"] = provider
    return given


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """A token that something else keeps fresh in a file, as an orchestrator does."""

    def __init__(self, path: Path) -> None:
        """Reads nothing yet."""
        self._path = path

    def token(self) -> str:
        """Read at every login, and at every new login that the broker asks for."""
        try:
            return self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(unreadable_secret("kafka.oauth_token_file", self._path, error)) from None


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of an OIDC provider, by the grant for programs (RFC 6749, section 4.4); Authlib does it."""

    def __init__(self, url: str, client_id: str, secret: str, scope: str | None) -> None:
        """Asks for nothing yet.

        Raises:
            SettingsError: the extra `oauth` is not installed.
        """
        try:
            from authlib.integrations.httpx_client import OAuth2Client
        except ImportError as error:
            raise SettingsError("kafka.oauth_token_url: pip install streamlearn[oauth]") from error
        self._url = url
        self._lock = threading.Lock()  # one provider serves the consumer's thread and the admin client's
        self._client = OAuth2Client(
            client_id,
            secret,
            scope=scope,
            token_endpoint=url,
            grant_type="client_credentials",
            leeway=_LEEWAY_S,
            timeout=_TOKEN_TIMEOUT_S,
        )

    def token(self) -> str:
        """The token that there is, or a new one where that ends soon."""
        with self._lock:
            try:
                if self._client.token is None:
                    self._client.fetch_token()
                self._client.ensure_active_token()
                return str(self._client.token["access_token"])
            except Exception as error:  # of the provider, the network, or what it answers
                self._client.token = None
                raise SourceError(
                    f"{self._url} gives no token ({type(error).__name__}: {str(error)[:200]}):"
                    " see kafka.oauth_client_id and kafka.oauth_client_secret_file"
                ) from error


def _token_provider(options: LoginOptions) -> AbstractTokenProvider | None:
    if options.oauth_token_file is not None:
        _secret(options.oauth_token_file, "kafka.oauth_token_file")  # a wrong path is said at once
        return TokenFile(options.oauth_token_file)
    if options.oauth_token_url is None:
        return None
    assert options.oauth_client_id is not None, "the settings ask for it"
    assert options.oauth_client_secret_file is not None, "the settings ask for it"
    secret = _secret(options.oauth_client_secret_file, "kafka.oauth_client_secret_file")
    return ClientCredentials(options.oauth_token_url, options.oauth_client_id, secret, options.oauth_scope)


def _secret(path: Path, name: str) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(unreadable_secret(name, path, error)) from None

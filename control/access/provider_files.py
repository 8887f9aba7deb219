"""The files of an OpenID provider's settings: what its groups may, and the secret of control as its client."""

import logging
from pathlib import Path

from control.access import group_grants
from control.access.group_grants import GrantsError, GroupGrants
from control.reread_files import stamp
from control.settings import ControlSettings

log = logging.getLogger("skerry.control")


class ProviderFiles:
    """Both files, as they were when they could last be used."""

    def __init__(self, settings: ControlSettings) -> None:
        """Read them. Raises: GrantsError, when one isn't what it must be."""
        assert settings.oidc_grants is not None  # noqa: S101
        self.error = ""
        """Why they can't be used as they are now; '' where they can."""
        self._grants: Path = settings.oidc_grants
        self._secret = settings.oidc_client_secret
        self._stamps = self._stamps_now()
        self.granted, self.client_secret = self._read()

    def look(self, *, anew: bool = False) -> bool:
        """Read them again if one has changed or couldn't be used, or `anew`; whether they say something else now."""
        stamps = self._stamps_now()
        if not (anew or self.error or stamps != self._stamps):
            return False
        self._stamps, before = stamps, (self.granted, self.client_secret)
        try:
            made = self._read()
        except GrantsError as error:
            if anew or str(error) != self.error:
                log.error("oidc: %s; what was read before stays in use", error)
            self.error = str(error)
            return False
        self.error = ""
        self.granted, self.client_secret = made
        if made == before:
            return False
        log.info("oidc: %s was read again: from the next sign-in on, people have what it says", self._grants)
        return True

    def _stamps_now(self) -> list[tuple[int, ...]]:
        return [stamp(path) for path in (self._grants, self._secret) if path is not None]

    def _read(self) -> tuple[GroupGrants, str]:
        granted = group_grants.read(self._grants)
        try:
            return granted, "" if self._secret is None else self._secret.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise GrantsError(f"{self._secret} can't be read: {error}") from None

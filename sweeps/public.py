"""Addresses as they may be printed, kept on disk and told MLflow: without what opens the place they name."""

import re

# Of a server any login, since a name alone may be the key; of a database the password, which its client finds elsewhere
# too (PGPASSWORD, ~/.pgpass). A reference to the environment, ${oc.env:NAME}, gives nothing away.
_LOGIN = re.compile(r"(https?://)[^\s/@]*@")
_PASSWORD = re.compile(r"(?<!http)(?<!https)(://(?:\$\{[^}]*\}|[^\s/:@$])*):(?!\$\{)[^\s@]*@")
_OPTION = re.compile(r"([?&](?:\w*password|token)=)(?!\$\{)[^\s&'\"]*")


def public(text: str) -> str:
    """An address, or any text that has some in it, without their secrets."""
    return _OPTION.sub(r"\1", _PASSWORD.sub(r"\1@", _LOGIN.sub(r"\1", text)))

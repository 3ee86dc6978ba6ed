"""What a running session is set to: credential, model, permission mode and rules, the settings layer.

Nothing here talks.  The spawn environment counts, ``update_environment_variables`` carries an OAuth token and nothing
else, and the settings layer (``--settings``, ``apply_flag_settings``) beats both.
Owner: ``simulator.session``.  Callers: ``simulator.controls``, ``simulator.turn``, ``simulator.tools``.
"""

import json
import os
from typing import Any, Final, NamedTuple

from simulator import models
from simulator.flags import Flags, UsageError, flag_settings
from simulator.permissions import Rules
from simulator.transcript import config_dir

OAUTH: Final = "CLAUDE_CODE_OAUTH_TOKEN"
# In the order in which the CLI prefers them.
_KINDS: Final = (("auth_token", "ANTHROPIC_AUTH_TOKEN"), ("api_key", "ANTHROPIC_API_KEY"), ("oauth_token", OAUTH))
_BEHAVIORS: Final = ("allow", "deny", "ask")
_SCRUBBED: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


class Credential(NamedTuple):
    """What the next request would be sent with.  A value that contains ``bad`` is refused with 401."""

    kind: str
    value: str

    @property
    def is_bad(self) -> bool:
        return "bad" in self.value


class SettingsError(ValueError):
    """A settings object that the CLI refuses as a whole."""


class Settings:
    """The settings of one process; raises ``UsageError`` for a bad ``--settings``."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._launch_model = flags.model
        self._oauth = os.environ.get(OAUTH, "")
        self.model = models.resolve(flags.model)
        self.mode = flags.permission_mode
        self.layer: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        """Variables of the settings layer, which once set are changed but never removed."""
        self.max_thinking_tokens: int | None = None
        self._added: dict[str, list[str]] = {behavior: [] for behavior in _BEHAVIORS}
        self._user = _read_user_settings() if "user" in flags.setting_sources else {}
        try:
            self.apply(flag_settings(flags))
        except SettingsError as error:
            raise UsageError(f"Error processing settings: {error}") from error

    def credential(self) -> Credential | None:
        """The credential that wins, or None."""
        for kind, name in _KINDS:
            value = self._oauth if kind == "oauth_token" else self.env.get(name, os.environ.get(name, ""))
            if value and not (self._flags.bare and kind != "api_key"):
                return Credential(kind, value)
        return None

    @property
    def api_key_source(self) -> str:
        """``apiKeySource`` of ``system/init``."""
        found = self.credential()
        return "ANTHROPIC_API_KEY" if found and found.kind == "api_key" else "none"

    @property
    def account(self) -> dict[str, str]:
        """``account`` of the ``initialize`` answer."""
        found = self.credential()
        source = {} if found is None else {"tokenSource": dict(_KINDS)[found.kind]}
        return {**source, "apiProvider": "firstParty"}

    def update_environment(self, variables: Any) -> None:
        """Late environment: the OAuth token takes effect, everything else is ignored."""
        token = variables.get(OAUTH) if isinstance(variables, dict) else None
        if isinstance(token, str):
            self._oauth = token

    def apply(self, patch: Any) -> None:
        """Merge ``patch`` into the settings layer, key by key; null clears a key.  Raises ``SettingsError``."""
        if not isinstance(patch, dict):
            kind = "null" if patch is None else "array" if isinstance(patch, list) else _javascript_type(patch)
            raise SettingsError(f"apply_flag_settings requires `settings` to be an object, got {kind}")
        env, permissions = patch.get("env") or {}, patch.get("permissions") or {}
        if not isinstance(env, dict) or not all(isinstance(value, (str, int, float)) for value in env.values()):
            raise SettingsError("env: expected an object of strings")
        if not isinstance(permissions, dict) or not all(_is_rule_list(permissions.get(key)) for key in _BEHAVIORS):
            raise SettingsError("permissions: expected lists of rules")
        self.env.update({name: str(value) for name, value in env.items()})
        merged = {**self.layer, **patch}
        self.layer = {key: value for key, value in merged.items() if value is not None}
        if isinstance(patch.get("model"), str):
            self.model = models.resolve(patch["model"])

    def set_model(self, name: str | None) -> None:
        """Another model; None is the one of the launch."""
        self.model = models.resolve(self._launch_model if name is None or name == "default" else name)

    def add_rules(self, behavior: str, rules: list[str], destination: str) -> None:
        """Rules from a permission answer.  They hold at once; ``userSettings`` also writes ``settings.json``."""
        self._added[behavior] += rules
        if destination == "userSettings":
            permissions = self._user.setdefault("permissions", {})
            permissions[behavior] = [*permissions.get(behavior, []), *rules]
            os.makedirs(config_dir(), mode=0o700, exist_ok=True)
            with open(_user_settings_path(), "w", encoding="utf-8") as file:
                json.dump(self._user, file, indent=2)

    def rules(self) -> Rules:
        """All rules that hold now, of every source."""
        lists = {behavior: list(self._added[behavior]) for behavior in _BEHAVIORS}
        for layer in (self.layer, self._user):
            for behavior in _BEHAVIORS:
                lists[behavior] += (layer.get("permissions") or {}).get(behavior) or []
        lists["allow"] += self._flags.allowed
        lists["deny"] += self._flags.disallowed
        return Rules(tuple(lists["allow"]), tuple(lists["deny"]), tuple(lists["ask"]))

    def tool_environment(self) -> dict[str, str]:
        """What a tool's child sees: settings variables, the API key among them, but never the OAuth token."""
        merged = {**os.environ, **self.env}
        hidden = {OAUTH, *(_SCRUBBED if os.environ.get("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB") else ())}
        shown = (name for name in merged if name not in hidden and not name.startswith("SIMULATOR_"))
        return {name: merged[name] for name in shown}


def _is_rule_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(rule, str) for rule in value))


def _javascript_type(value: Any) -> str:
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _user_settings_path() -> str:
    return os.path.join(config_dir(), "settings.json")


def _read_user_settings() -> dict[str, Any]:
    try:
        with open(_user_settings_path(), encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    permissions = value.get("permissions") if isinstance(value, dict) else None
    sound = isinstance(permissions, dict) and all(_is_rule_list(permissions.get(key)) for key in _BEHAVIORS)
    return value if isinstance(value, dict) and (permissions is None or sound) else {}

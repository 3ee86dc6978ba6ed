"""What a running session is set to: credential, model, permission mode and rules, the settings layer.

Nothing here talks.  The spawn environment counts, ``update_environment_variables`` carries an OAuth token and nothing
else, and the settings layer (``--settings``, ``apply_flag_settings``) beats both.  Which layers are sound stands in
``simulator.settings_layer``.
Owner: ``simulator.session``.  Callers: ``simulator.controls``, ``simulator.turn``, ``simulator.tools``.
"""

import json
import os
from typing import Any, Final, NamedTuple

from simulator import flag_values, models, settings_layer, structured
from simulator.credentials import is_bad
from simulator.flags import Flags, flag_settings
from simulator.permissions import Rules
from simulator.settings_layer import BEHAVIORS, SettingsError
from simulator.transcript import config_dir

OAUTH: Final = "CLAUDE_CODE_OAUTH_TOKEN"
# In the order in which the CLI prefers them.
_KINDS: Final = (("auth_token", "ANTHROPIC_AUTH_TOKEN"), ("api_key", "ANTHROPIC_API_KEY"), ("oauth_token", OAUTH))
EFFORTS: Final = ("low", "medium", "high", "xhigh", "max", "ultracode")
DEFAULT_EFFORT: Final = "medium"
_SCRUBBED: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


class Credential(NamedTuple):
    """What the next request would be sent with.  With ``bad`` as a word in its value it is refused with 401."""

    kind: str
    value: str

    @property
    def is_bad(self) -> bool:
        return is_bad(self.value)


class Settings:
    """The settings of one process; raises ``UsageError`` for a bad ``--settings`` or ``--json-schema``."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._launch_model = flags.model
        self._oauth = os.environ.get(OAUTH, "")
        self.model = models.resolve(flags.model)
        self.mode = flags.permission_mode
        self._told_mode = self.mode
        self.layer: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        """Variables of the settings layer, which once set are changed but never removed."""
        self.max_thinking_tokens: int | None = None
        self.schema = flag_values.schema(flags.schema)
        """What answers must fit, if anything."""
        self.effort: str | None = flags.effort if flags.effort in EFFORTS else DEFAULT_EFFORT
        self._added: dict[str, list[str]] = {behavior: [] for behavior in BEHAVIORS}
        self._user = settings_layer.read(_user_settings_path()) if "user" in flags.setting_sources else {}
        local = os.path.join(os.getcwd(), ".claude", "settings.local.json")
        # Rules of the project itself are not honoured: nobody has said that its directory is trusted.
        self._local = settings_layer.read(local) if "local" in flags.setting_sources else {}
        self.apply(settings_layer.sound(flag_settings(flags)))

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
        if wrong := settings_layer.problems(patch):
            raise SettingsError(
                "apply_flag_settings: nothing in this request was applied and earlier settings stay in force. "
                f"Fix or remove these invalid settings and send it again: {', '.join(wrong)}"
            )
        for name, value in (patch.get("env") or {}).items():
            # A variable is set to an empty text, never removed; null becomes a text, too.
            self.env[name] = "null" if value is None else str(value)
        merged = {**self.layer, **patch}
        if "effortLevel" in patch:
            self._set_effort(patch["effortLevel"])
            if patch["effortLevel"] not in EFFORTS[:-1]:
                del merged["effortLevel"]
        self.layer = {key: value for key, value in merged.items() if value is not None}
        if isinstance(patch.get("model"), str):
            self.model = models.resolve(patch["model"])

    def use_schema(self, schema: Any) -> bool:
        """``jsonSchema`` of ``initialize``; False for what the real program does not survive.

        A bad one is forgotten.
        """
        if schema is not None and not isinstance(schema, (dict, list)):
            return False
        if isinstance(schema, dict) and structured.problem(schema) is None:
            self.schema = schema
        return True

    @property
    def directories(self) -> list[str]:
        """Directories in which tools may read as in the working directory; of the launch's, those that exist."""
        late = (self.layer.get("permissions") or {}).get("additionalDirectories") or []
        early = [path for path in self._flags.directories if os.path.isdir(path)]
        return list(dict.fromkeys(os.path.normpath(os.path.join(os.getcwd(), path)) for path in (*early, *late)))

    @property
    def output_style(self) -> str:
        return str(self.layer.get("outputStyle") or "default")

    def is_mode_news(self) -> bool:
        """Whether the mode is another one than when this was last asked: only that is told."""
        is_news = self.mode != self._told_mode
        self._told_mode = self.mode
        return is_news

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
        lists = {behavior: list(self._added[behavior]) for behavior in BEHAVIORS}
        for layer in (self.layer, self._user, self._local):
            for behavior in BEHAVIORS:
                lists[behavior] += (layer.get("permissions") or {}).get(behavior) or []
        lists["allow"] += self._flags.allowed
        lists["deny"] += self._flags.disallowed
        return Rules(tuple(lists["allow"]), tuple(lists["deny"]), tuple(lists["ask"]), tuple(self.directories))

    def tool_environment(self) -> dict[str, str]:
        """What a tool's child sees: settings variables, the API key among them, but never the OAuth token."""
        merged = {**os.environ, **self.env}
        hidden = {OAUTH, *(_SCRUBBED if os.environ.get("CLAUDE_CODE_SUBPROCESS_ENV_SCRUB") else ())}
        shown = (name for name in merged if name not in hidden and not name.startswith("SIMULATOR_"))
        return {name: merged[name] for name in shown}

    def _set_effort(self, value: Any) -> None:
        """An unknown word changes nothing; null is the model's own default, not that of the launch."""
        if value is None:
            self.effort = DEFAULT_EFFORT
        elif value in EFFORTS:
            self.effort = "xhigh" if value == "ultracode" else value
        elif not isinstance(value, str):
            self.effort = None


def _javascript_type(value: Any) -> str:
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _user_settings_path() -> str:
    return os.path.join(config_dir(), "settings.json")

"""The configuration: every key, every source, every contradiction."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import sources
from broker.config import tree as configuration
from broker.config.launch_profile import LaunchProfile, SpawnOptions
from broker.config.tree import Config, endpoint, is_loopback, load, schema
from broker.errors import ConfigError

# -- the tree, read from the structs themselves ----------------------------------------------------------------------


def leaves(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable key with its type; a dict of structs is entered under the name ``default``."""
    for field in msgspec.structs.fields(kind):
        dotted = f"{path}.{field.name}" if path else field.name
        bare = sources._bare(field.type)
        if sources._is_struct(bare):
            yield from leaves(bare, dotted)
        elif get_origin(bare) is dict and sources._is_struct(sources._bare(get_args(bare)[1])):
            yield from leaves(sources._bare(get_args(bare)[1]), f"{dotted}.default")
        else:
            yield dotted, field.type


def tables(kind: Any, path: str = "") -> Iterator[str]:
    """Every table of the tree, the root as an empty name."""
    yield path
    for field in msgspec.structs.fields(kind):
        if sources._is_struct(sources._bare(field.type)):
            yield from tables(sources._bare(field.type), f"{path}.{field.name}" if path else field.name)


LEAVES = dict(leaves(Config))
TABLES = [*tables(Config), "pool.profiles.default"]


def in_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(text)
    return path


def error_of(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(in_file(tmp_path, text), {}, {})
    return caught.value


def wrong_types(kind: Any) -> Iterator[str]:
    """TOML values of types that ``kind`` must refuse."""
    words = sources.allowed(kind)
    yield "1979-05-27"
    if not words.startswith("a table"):
        yield "{a = 1}"
    if not words.startswith("a list"):
        yield "[[1]]"
    if not words.startswith("true"):
        yield "true"
    if not words.startswith(("a whole number", "a number")):
        yield "7"
    else:
        yield '"7"'
        yield "nan"


def out_of_range(kind: Any) -> Iterator[str]:
    """TOML values of the right type, just outside what ``kind`` accepts."""
    shape = msgspec.json.schema(kind)
    for option in [shape, *shape.get("anyOf", [])]:
        if "minimum" in option:
            yield str(option["minimum"] - 1)
        if "exclusiveMinimum" in option:
            yield str(option["exclusiveMinimum"])
        if "maximum" in option:
            yield str(option["maximum"] + 1)
        if "enum" in option or "pattern" in option:
            yield '"\\u0000"'
        if "maxLength" in option:
            yield '"' + "a" * (option["maxLength"] + 1) + '"'
        if option.get("type") == "array":
            yield '["\\u0000"]'
        if option.get("type") == "object":
            yield '{"not a name" = "1"}'


WRONG = [(path, value) for path, kind in LEAVES.items() for value in wrong_types(kind)]
OUTSIDE = [(path, value) for path, kind in LEAVES.items() for value in out_of_range(kind)]


def test_the_tree_is_the_documented_one() -> None:
    """The defaults are those of the documented sample, key by key."""
    plain = msgspec.to_builtins(Config())
    assert plain["server"]["listen"] == "127.0.0.1:8765"
    assert plain["pool"]["max_processes"] == 32
    assert plain["pool"]["profiles"] == {
        "default": {
            "warm": 4, "reserve": 0, "max": None, "max_age_s": 3600, "max_rss_mb": 1024, "model": "sonnet",
            "tools": None, "fallback_model": None, "plugin_dirs": [], "setting_sources": [], "max_turns": None,
            "max_budget_usd": None, "debug": None, "verbose": False, "ide": False, "bypass": False,
        }
    }  # fmt: skip
    assert plain["turn"] == {
        "first_token_timeout_s": 120,
        "idle_timeout_s": 600,
        "timeout_s": 3600,
        "permission_timeout_s": 300,
        "queue": 16,
    }
    assert plain["replay"] == {"frames": 10000, "bytes": 8388608, "seconds": 120, "total_bytes": 536870912}
    assert {key: value for key, value in plain["limits"].items() if value is not None} == {
        "messages_per_second": 20, "messages_burst": 40, "refused_messages": 1000,
    }  # fmt: skip
    assert plain["policy"]["permission_modes"] == ["default", "plan", "acceptEdits"]
    assert len(LEAVES) >= 50


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_type_names_the_key(tmp_path: Path, path: str, value: str) -> None:
    """A value of a wrong type at any key is refused, and the error names that key or the entry in it."""
    error = error_of(tmp_path, f"{path} = {value}\n")
    assert error.path == path or error.path.startswith((f"{path}.", f"{path}["))
    assert error.allowed


@pytest.mark.parametrize(("path", "value"), OUTSIDE, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_names_the_key(tmp_path: Path, path: str, value: str) -> None:
    """A value outside the bounds of any key is refused, and the error says what is allowed."""
    error = error_of(tmp_path, f"{path} = {value}\n")
    assert error.path == path or error.path.startswith((f"{path}.", f"{path}["))
    assert error.allowed


@pytest.mark.parametrize("path", [path for path, kind in LEAVES.items() if not list(out_of_range(kind))])
def test_only_switches_have_no_range(path: str) -> None:
    """Every key except true/false switches has bounds, a pattern or a list of choices."""
    assert sources.allowed(LEAVES[path]) == "true or false"


@pytest.mark.parametrize("table", TABLES)
def test_an_unknown_sibling_is_named(tmp_path: Path, table: str) -> None:
    """A key that does not exist is refused in every table, with the known ones listed."""
    path = f"{table}.nonsense" if table else "nonsense"
    error = error_of(tmp_path, f"{path} = 1\n")
    assert error.path == path
    assert "unknown key" in error.message
    assert error.allowed


@pytest.mark.parametrize("table", [table for table in TABLES if table])
def test_a_table_must_be_a_table(tmp_path: Path, table: str) -> None:
    """A plain value where a table belongs is refused by the table's name."""
    error = error_of(tmp_path, f"{table} = 3\n")
    assert (error.path, error.allowed) == (table, "a table")


@pytest.mark.parametrize("path", LEAVES)
def test_every_key_is_described(path: str) -> None:
    """Each key carries a description into the JSON Schema."""
    kind = LEAVES[path]
    assert any(isinstance(note, msgspec.Meta) and note.description for note in get_args(kind)), path


TEXT_OR_UNSET = ("pool.profiles.default.fallback_model", "pool.profiles.default.debug")  # "null" is a text there


@pytest.mark.parametrize("path", [p for p in LEAVES if p not in ("auth.mode", "pool.isolation", *TEXT_OR_UNSET)])
def test_every_default_may_be_written(path: str) -> None:
    """The default of any key, given as a variable's text, is accepted and changes nothing."""
    value: Any = Config()
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    config = load(None, {"BROKER__" + path.upper().replace(".", "__"): text}, {})
    assert config == load(None, {}, {})


# -- sources ---------------------------------------------------------------------------------------------------------


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    """Sources rank defaults < file < environment < flags."""
    path = in_file(tmp_path, "[turn]\nqueue = 1\ntimeout_s = 10\nidle_timeout_s = 5\n")
    config = load(path, {"BROKER__TURN__QUEUE": "2", "BROKER__TURN__TIMEOUT_S": "20"}, {"turn.queue": 3})
    assert (config.turn.queue, config.turn.timeout_s, config.turn.idle_timeout_s) == (3, 20, 5)
    assert config.turn.permission_timeout_s == 300


def test_a_variable_reads_lists_and_tables_as_json() -> None:
    """Lists and tables of plain values are written as JSON in a variable."""
    config = load(None, {"BROKER__MODELS": '["a", "b"]', "BROKER__CLI__ENV": '{"PATH": "/bin"}'}, {})
    assert (config.models, config.cli.env) == (["a", "b"], {"PATH": "/bin"})


def test_a_variable_of_a_plain_entry_keeps_its_case() -> None:
    """``BROKER__CLI__ENV__Name`` sets ``Name``; profile names are lower case."""
    config = load(None, {"BROKER__CLI__ENV__Https_Proxy": "x", "BROKER__POOL__PROFILES__BIG__WARM": "1"}, {})
    assert config.cli.env == {"Https_Proxy": "x"}
    assert config.pool.profiles["big"].warm == 1


def test_a_switch_in_a_variable() -> None:
    """True and false are read from text."""
    assert load(None, {"BROKER__POLICY__SLASH_COMMANDS": "true"}, {}).policy.slash_commands is True
    with pytest.raises(ConfigError, match=r"policy\.slash_commands.*BROKER__POLICY__SLASH_COMMANDS"):
        load(None, {"BROKER__POLICY__SLASH_COMMANDS": "perhaps"}, {})


@pytest.mark.parametrize("name", ["BROKER__", "BROKER____", "BROKER__POOL", "BROKER__POOL__", "BROKER__POOL__MAX__X"])
def test_a_variable_that_means_nothing_is_refused(name: str) -> None:
    """A misspelt variable is a mistake, not noise."""
    with pytest.raises(ConfigError):
        load(None, {name: "1"}, {})


def test_other_variables_are_left_alone() -> None:
    """Only the ``BROKER__`` prefix is ours."""
    assert load(None, {"BROKER_TOKEN": "x", "POOL__MAX_PROCESSES": "x"}, {}) == load(None, {}, {})


def test_a_key_given_whole_and_in_parts_is_refused() -> None:
    """Two variables that contradict each other are named."""
    with pytest.raises(ConfigError, match=r"cli\.env"):
        load(None, {"BROKER__CLI__ENV": "{}", "BROKER__CLI__ENV__A": "1"}, {})


def test_a_flag_that_was_not_given_is_none() -> None:
    """None in the overrides leaves the key alone."""
    assert load(None, {}, {"server.listen": None}).server.listen == "127.0.0.1:8765"


def test_relative_paths_belong_to_the_file(tmp_path: Path) -> None:
    """Paths of the file, and default paths beside it, lie in its folder; a flag's in the working directory."""
    path = in_file(tmp_path, '[auth]\nfile = "sub/../t.toml"\n[cli]\ncommand = "bin/claude"\n')
    config = load(path, {}, {})
    assert config.auth.file == str(tmp_path / "t.toml")
    assert config.state.dir == str(tmp_path / "var")
    assert config.cli.command == str(tmp_path / "bin/claude")
    assert load(path, {}, {"cli.command": "./claude"}).cli.command == str(Path.cwd() / "claude")
    assert load(path, {"BROKER__STATE__DIR": "v"}, {}).state.dir == str(Path.cwd() / "v")


def test_relative_paths_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file everything lies in the working directory, and a bare command name stays a name."""
    monkeypatch.chdir(tmp_path)
    config = load(None, {}, {"cli.command": "claude"})
    assert (config.state.dir, config.auth.file) == (str(tmp_path / "var"), str(tmp_path / "tenants.toml"))
    assert config.cli.command == "claude"


# -- files that are no configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[pool", "not TOML"),
        (b"\xff = 1", "not UTF-8"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"x = " + b"[" * 100_000, "not TOML"),
    ],
    ids=["torn", "bytes", "twice", "deep"],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    """What is not TOML is a configuration error naming the file."""
    path = tmp_path / "broker.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert caught.value.path == str(path)
    assert says in caught.value.message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    """A file that cannot be read is a configuration error, never a traceback."""
    for path in (tmp_path / "nothing.toml", tmp_path, tmp_path / "nul\0.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path, {}, {})


def test_an_endless_file_is_refused() -> None:
    """The file's size is bounded."""
    with pytest.raises(ConfigError, match="too large"):
        load(Path("/dev/zero"), {}, {})


def outcome(read: Callable[[], Config]) -> Config | str:
    """A Config, or the text of the ConfigError; any other exception fails the test."""
    try:
        return read()
    except ConfigError as error:
        return str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["pool", "server", "profiles", "default", "warm", "models", "env", "x", "\n"]),
                        inner, max_size=4), max_leaves=12))  # fmt: skip
def test_no_tree_of_values_raises_anything_else(raw: object) -> None:
    """Whatever is in the layers, the walk returns a Config or raises a ConfigError of one line."""
    result = outcome(lambda: sources.build(Config, raw))
    assert isinstance(result, Config) or "\n" not in result


@given(st.text(max_size=40))
def test_no_text_in_a_variable_raises_anything_else(text: str) -> None:
    """Any text in a number's, a list's and a switch's variable is read or refused."""
    for name in ("BROKER__POOL__MAX_PROCESSES", "BROKER__MODELS", "BROKER__POLICY__SLASH_COMMANDS", "BROKER__POOL"):
        result = outcome(partial(load, None, {name: text}, {}))
        assert isinstance(result, Config) or "\n" not in result


# -- secrets ---------------------------------------------------------------------------------------------------------

CANARY = "sk-canary-000000000000"


@pytest.mark.parametrize(
    "environ",
    [
        {"BROKER__CLI__ENV__ANTHROPIC_API_KEY": CANARY},
        {"BROKER__CLI__ENV__ANTHROPIC_API_KEY": CANARY + "\0"},
        {"BROKER__CLI__ENV": '{"A": ["' + CANARY + '"]}'},
        {"BROKER__CLI__ENV": CANARY},
        {"BROKER__API_KEY": CANARY},
        {"BROKER__AUTH__MODE": CANARY * 2},
    ],
)
def test_an_error_never_shows_a_secret(environ: dict[str, str]) -> None:
    """A credential at any key, right or wrong, does not appear in the error."""
    with pytest.raises(ConfigError) as caught:
        load(None, environ, {})
    assert CANARY not in str(caught.value)


def test_the_text_form_of_a_config_hides_the_environment() -> None:
    """Whoever logs a Config shows the names of the CLI's variables, not their values."""
    config = load(None, {"BROKER__CLI__ENV__SOME_KEY": CANARY}, {})
    assert CANARY not in repr(config)
    assert "SOME_KEY" in repr(config)


# -- contradictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('server.listen = "0.0.0.0:8765"', "auth.mode"),
        ('server.listen = "broker.example.com:8765"', "auth.mode"),
        ('server.listen = "[::]:8765"', "auth.mode"),
        ('server.listen = "127.0.0.1:70000"', "server.listen"),
        ('admin.listen = "127.0.0.1:8765"', "admin.listen"),
        ('auth.mode = "tokens"', "pool.isolation"),
        ('pool.isolation = "uid"\npool.uid_range = [20000, 30030]', "pool.uid_range"),
        ('pool.isolation = "uid"\nsession.max_sessions = 20000', "pool.uid_range"),
        ('pool.isolation = "uid"\npool.uid_range = [30000, 20000]', "pool.uid_range"),
        ('cli.env.CLAUDE_CODE_SUBPROCESS_ENV_SCRUB = "0"', "cli.env.CLAUDE_CODE_SUBPROCESS_ENV_SCRUB"),
        ('cli.env.CLAUDE_CODE_OAUTH_TOKEN = "x"', "cli.env.CLAUDE_CODE_OAUTH_TOKEN"),
        ('cli.env.ANTHROPIC_AUTH_TOKEN = "x"', "cli.env.ANTHROPIC_AUTH_TOKEN"),
        ("pool.profiles.default.warm = 33", "pool.profiles.*.warm"),
        ('pool.profiles.a.warm = 20\npool.profiles.b = {warm = 20, model = "opus"}', "pool.profiles.*.warm"),
        ("pool.profiles.a.reserve = 40", "pool.profiles.*.reserve"),
        ("pool.profiles.a.max = 2", "pool.profiles.a.warm"),
        ("pool.profiles.other.warm = 1", "pool.profiles.other"),
        ("pool.profiles.a.warm = 1\npool.profiles.b.warm = 2", "pool.profiles.b"),
        ('pool.profiles.a.tools = ["Bash", "Read"]\npool.profiles.b.tools = ["Read", "Bash"]', "pool.profiles.b"),
        ('pool.profiles.a.plugin_dirs = ["/nowhere"]', "pool.profiles.a.plugin_dirs[0]"),
        ('pool.profiles.a.plugin_dirs = [".", "broker.toml"]', "pool.profiles.a.plugin_dirs[1]"),
        ("pool.profiles.default.warm = 4\npool.memory_budget_mb = 1200", "pool.profiles.*.warm"),
        ("turn.timeout_s = 10\nturn.idle_timeout_s = 11", "turn.idle_timeout_s"),
        ("turn.timeout_s = 10\nturn.first_token_timeout_s = 11", "turn.first_token_timeout_s"),
        ("replay.bytes = 4096\nreplay.total_bytes = 2048", "replay.bytes"),
        ("server.hello_max_bytes = 4096\nserver.max_message_bytes = 2048", "server.hello_max_bytes"),
        ("server.max_message_bytes = 4096\nserver.max_inbound_bytes = 2048", "server.max_inbound_bytes"),
        ("server.max_inbound_bytes = 1000000", "server.max_inbound_bytes"),
    ],
)
def test_a_contradiction_is_refused_and_named(tmp_path: Path, text: str, path: str) -> None:
    """Values that are fine alone and not together are refused by the key that is to be changed."""
    error = error_of(tmp_path, text + "\n")
    assert error.path == path
    assert error.allowed


@pytest.mark.parametrize(
    "text",
    [
        'server.listen = "[::1]:0"\nadmin.listen = "localhost:0"',
        'server.listen = "0.0.0.0:8765"\nauth.mode = "tokens"\npool.isolation = "none"',
        'auth.mode = "tokens"\npool.isolation = "userns"',
        'pool.isolation = "uid"\npool.uid_range = [20000, 30031]',
        'pool.isolation = "uid"\npool.uid_range = [20000, 20041]\nsession.max_sessions = 10',
        'pool.isolation = "uid"\npool.max_processes = 10000',
        'policy.credentials = "server"\ncli.env.ANTHROPIC_API_KEY = "x"',
        "turn.timeout_s = 10",
        "session.retain_days = 3",
        "session.hibernate_after_s = 3",
        "pool.max_processes = 1",
        "[pool.profiles]",
    ],
)
def test_what_does_not_contradict_is_accepted(tmp_path: Path, text: str) -> None:
    """A single written value quarrels with no default, where the default would not make it useless."""
    load(in_file(tmp_path, text + "\n"), {}, {})


def test_a_profile_takes_what_its_processes_are_started_with(tmp_path: Path) -> None:
    """The options of hello, under their names; its directories are taken from the file's folder and resolved."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = """
    [pool.profiles.acme]
    model = "opus"
    tools = ["Read", "Bash"]
    fallback_model = "haiku"
    plugin_dirs = ["link"]
    setting_sources = ["project", "user"]
    max_turns = 7
    max_budget_usd = 2
    debug = "mcp,api"
    verbose = true
    ide = true
    """
    launch = load(in_file(tmp_path, text), {}, {}).pool.profiles["acme"].launch
    assert launch == LaunchProfile(
        "opus",
        SpawnOptions(
            tools=("Bash", "Read"), fallback_model="haiku", plugin_dirs=(str(tmp_path / "real"),),
            setting_sources=("user", "project"), max_turns=7, max_budget_usd=2.0, debug="api,mcp", verbose=True,
            ide=True,
        ),
    )  # fmt: skip
    variable = {"BROKER__POOL__PROFILES__ACME__PLUGIN_DIRS": f'["{tmp_path}/real"]'}
    assert load(in_file(tmp_path, text), variable, {}).pool.profiles["acme"].launch == launch


@pytest.mark.parametrize(("user", "sandbox", "is_fine"), [(0, "", False), (0, "1", True), (1000, "", True)])
def test_root_may_bypass_in_a_sandbox_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, sandbox: str, is_fine: bool
) -> None:
    """The CLI would refuse to start: it is said before, with what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    text = f'cli.env.IS_SANDBOX = "{sandbox}"\npool.profiles.free.bypass = true\n'
    if is_fine:
        assert load(in_file(tmp_path, text), {}, {}).pool.profiles["free"].launch.options.bypass
    else:
        error = error_of(tmp_path, text)
        assert error.path == "pool.profiles.free.bypass"
        assert "cli.env.IS_SANDBOX" in error.allowed


def test_the_unwritten_default_profile_fits_the_limit() -> None:
    """Without any profile there is one named default, with no more spares than may run."""
    assert load(None, {}, {}).pool.profiles["default"].warm == 4
    assert load(None, {}, {"pool.max_processes": 2}).pool.profiles["default"].warm == 2
    assert load(None, {}, {"pool.memory_budget_mb": 1200}).pool.profiles["default"].warm == 3


def test_the_memory_budget_bounds_the_processes() -> None:
    """At most one process per 400 MB of the budget, and never more than max_processes."""
    assert load(None, {}, {"pool.memory_budget_mb": 4000}).pool.process_limit == 10
    assert load(None, {}, {"pool.memory_budget_mb": 400_000}).pool.process_limit == 32
    assert load(None, {}, {}).pool.process_limit == 32


# -- the small functions ---------------------------------------------------------------------------------------------


def test_the_schema_is_json_and_names_every_key() -> None:
    """``config-schema`` prints a JSON Schema with the descriptions."""
    text = schema().decode()
    assert msgspec.json.decode(text)["$ref"] == "#/$defs/Config"
    assert all(f'"{path.rpartition(".")[2]}"' in text for path in LEAVES)


@pytest.mark.parametrize(
    ("listen", "host", "port", "loopback"),
    [("127.0.0.1:80", "127.0.0.1", 80, True), ("[::1]:0", "::1", 0, True), ("localhost:9", "localhost", 9, True),
     ("127.8.8.8:1", "127.8.8.8", 1, True), ("0.0.0.0:1", "0.0.0.0", 1, False), ("[::]:1", "::", 1, False),
     ("[::ffff:127.0.0.1]:1", "::ffff:127.0.0.1", 1, False), ("localhost.example:1", "localhost.example", 1, False)],
)  # fmt: skip
def test_addresses(listen: str, host: str, port: int, loopback: bool) -> None:
    """An address is split at its last colon, and only what certainly is loopback counts as such."""
    assert endpoint(listen) == (host, port)
    assert is_loopback(host) is loopback


def test_the_sample_of_the_documentation_loads(tmp_path: Path) -> None:
    """Every default, written out as TOML, is accepted: a sample file can be made from the tree."""
    lines = []
    for path in LEAVES:
        value: Any = Config()
        for name in path.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        if value is not None and value != {}:
            lines.append(f"{path} = {msgspec.json.encode(value).decode()}")
    config = load(in_file(tmp_path, "\n".join(lines)), {}, {})
    assert msgspec.structs.replace(config, auth=Config().auth, state=Config().state) == Config()
    assert os.path.isabs(config.state.dir)
    assert configuration.Auth().file == "tenants.toml"

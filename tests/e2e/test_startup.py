"""How a broker starts, or does not: exit codes, what stderr says, what is opened, where settings come from."""

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.broker import running_broker
from tests.kit.client import connected
from tests.kit.serving import ENDS_WITHIN_S, ended, program, serving
from tests.waiting import eventually

PORTS = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


BAD_CONFIGURATIONS = {
    "unknown-table": ("[servers]\n", "servers"),
    "unknown-key": ("[server]\nlisten_on = 1\n", "listen_on"),
    "wrong-type": ('[pool]\nmax_processes = "many"\n', "pool.max_processes"),
    "out-of-range": ("[turn]\nidle_timeout_s = -1\n", "turn.idle_timeout_s"),
    "not-an-address": ('[server]\nlisten = "everywhere"\n', "server.listen"),
    "port-too-high": ('[server]\nlisten = "127.0.0.1:65536"\n', "server.listen"),
    "open-to-all-without-tokens": ('[server]\nlisten = "0.0.0.0:8765"\n', "auth.mode"),
    "no-tenants": ('[auth]\nmode = "tokens"\n[pool]\nisolation = "none"\n', "tenants.toml"),
    "isolation-not-written": ('[auth]\nmode = "tokens"\n', "pool.isolation"),
    "too-few-users": ('[pool]\nisolation = "uid"\nuid_range = [20000, 20001]\n', "pool.uid_range"),
    "scrub-by-hand": ('[cli.env]\nCLAUDE_CODE_SUBPROCESS_ENV_SCRUB = "0"\n', "cli.scrub"),
    "credential-of-the-operator": ('[cli.env]\nANTHROPIC_API_KEY = "a"\n', "cli.env.ANTHROPIC_API_KEY"),
    "too-many-spares": ("[pool]\nmax_processes = 2\n[pool.profiles.default]\nwarm = 3\n", "pool.profiles.*.warm"),
    "a-mode-that-is-none": ('[policy]\npermission_modes = ["always"]\n', "policy.permission_modes"),
    "a-plugin-that-is-not-there": ('[pool.profiles.a]\nplugin_dirs = ["no"]\n', "pool.profiles.a.plugin_dirs[0]"),
    "less-memory-than-a-cli": ("[pool]\nprocess_memory_mb = 255\n", "pool.process_memory_mb"),
    "origin-with-a-path": ('[server]\nallowed_origins = ["https://x.org/a"]\n', "server.allowed_origins"),
    "not-toml": ("[server\n", "broker.toml"),
    "twice": ("[server]\n[server]\n", "broker.toml"),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
async def test_a_bad_configuration_is_78(tmp_path: Path, name: str) -> None:
    """One line on stderr that names the key; nothing is started, no port and no file is made."""
    text, key = BAD_CONFIGURATIONS[name]
    file, ports = tmp_path / "broker.toml", tmp_path / "ports.json"
    file.write_text(text)
    mark = program(tmp_path / "claude", f"touch {tmp_path}/started; echo 1.0")
    end = await ended(tmp_path, "--config", str(file), "--cli", mark, "--port-file", str(ports))
    assert (end.code, end.out) == (78, "")
    assert key in end.err
    assert end.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broker.toml", "claude"]


async def test_a_missing_file_and_a_bad_variable_are_78(tmp_path: Path) -> None:
    """The file and the variable are named as the operator wrote them."""
    end = await ended(tmp_path, "--config", str(tmp_path / "nowhere.toml"), "--cli", "simulated")
    assert (end.code, "nowhere.toml" in end.err) == (78, True)
    end = await ended(tmp_path, "--cli", "simulated", BROKER__SERVER__LISTEN="nowhere")
    assert (end.code, "BROKER__SERVER__LISTEN" in end.err) == (78, True)
    end = await ended(tmp_path, "--cli", "simulated", "--listen", "nowhere")
    assert (end.code, "server.listen" in end.err) == (78, True)


async def test_no_cli_is_69_with_what_to_do(tmp_path: Path) -> None:
    """Nothing on PATH: exit 69, the three ways out on stderr, no port."""
    (tmp_path / "bin").mkdir()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    (tmp_path / "bin" / "setpriv").symlink_to(setpriv)
    ports = tmp_path / "ports.json"
    end = await ended(tmp_path, *PORTS, "--port-file", str(ports), PATH=str(tmp_path / "bin"))
    assert end.code == 69
    for way in ("`claude` is on PATH", "--cli PATH", "--cli simulated"):
        assert way in end.err
    assert not ports.exists()


@pytest.mark.parametrize("text", ["exit 3", "true", "kill -9 $$", "echo broken >&2; exit 1"])
async def test_a_cli_without_a_version_is_69(tmp_path: Path, text: str) -> None:
    """A CLI whose --version fails, dies or prints nothing is named, and no port is opened."""
    ports = tmp_path / "ports.json"
    end = await ended(tmp_path, *PORTS, "--cli", program(tmp_path / "claude", text), "--port-file", str(ports))
    assert end.code == 69
    assert f"{tmp_path}/claude --version" in end.err
    assert end.err.count("\n") == 1
    assert not ports.exists()


async def test_a_file_that_is_no_program_is_69(tmp_path: Path) -> None:
    """Not there, not executable, or a folder: 69, and the path is named."""
    (tmp_path / "text").write_text("no program")
    for name in ("nothing", "text", "."):
        end = await ended(tmp_path, *PORTS, "--cli", str(tmp_path / name))
        assert (end.code, str(tmp_path) in end.err) == (69, True)


@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_taken_port_is_1(tmp_path: Path, which: str) -> None:
    """One line that names the address; the other port is closed again and no port file is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address, other = f"127.0.0.1:{taken.getsockname()[1]}", free_port()
        arguments = {"listen": f"127.0.0.1:{other}", "admin": f"127.0.0.1:{other}", which: address}
        ports = tmp_path / "ports.json"
        end = await ended(tmp_path, "--cli", "simulated", "--listen", arguments["listen"], "--admin",
                          arguments["admin"], "--port-file", str(ports))  # fmt: skip
    assert end.code == 1
    assert "address already in use" in end.err
    assert address.rpartition(":")[2] in end.err
    assert "Traceback" not in end.err
    assert not ports.exists()
    assert not is_open(other)


async def test_a_second_broker_leaves_the_first_its_conversations(tmp_path: Path) -> None:
    """The same state directory is refused (78), and what the first one keeps there is untouched."""
    async with running_broker(tmp_path) as first, connected(first.url, hello={}) as client:
        await client.turn("remember me")
        before = sorted(str(path) for path in first.state.rglob("*.jsonl"))
        end = await ended(tmp_path, *PORTS, "--cli", "simulated", BROKER__STATE__DIR=str(first.state))
        assert (end.code, "state.dir" in end.err) == (78, True)
        assert before
        assert sorted(str(path) for path in first.state.rglob("*.jsonl")) == before
        assert (await client.turn("still here"))["is_error"] is False


STATE_DIRS: dict[str, Callable[[Path], Path]] = {
    "a file": lambda folder: _file(folder / "file"),
    "below a file": lambda folder: _file(folder / "file") / "state",
    "a dangling link": lambda folder: _link(folder / "link", folder / "nowhere"),
    "its sessions are a file": lambda folder: _file(_folder(folder / "state") / "sessions").parent,
    "its index is a folder": lambda folder: _folder(folder / "state" / "index.db").parent,
    "where none can be made": lambda folder: Path("/proc/nope"),
}


def _file(path: Path) -> Path:
    path.write_text("")
    return path


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("name", STATE_DIRS)
async def test_a_state_dir_that_cannot_be_used_is_78(tmp_path: Path, name: str) -> None:
    """One line that names the key and what is wrong with it."""
    state = STATE_DIRS[name](tmp_path)
    end = await ended(tmp_path, *PORTS, "--cli", "simulated", BROKER__STATE__DIR=str(state))
    assert (end.code, end.out, end.err.count("\n")) == (78, "", 1), end
    assert end.err.startswith(f"broker: state.dir: {state}" if "index" not in name else "broker: state.dir: the index")


async def test_a_port_file_that_cannot_be_written_is_78(tmp_path: Path) -> None:
    """The flag is named, and the broker does not stay."""
    for file in (tmp_path / "no" / "ports.json", _folder(tmp_path / "folder")):
        end = await ended(tmp_path, *PORTS, "--cli", "simulated", "--port-file", str(file))
        assert (end.code, "Traceback" in end.err) == (78, False), end
        assert "broker: --port-file: " in end.err


async def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    """--listen and --admin beat BROKER__..., which beats the file; --port-file tells what was really opened."""
    from_file, from_variable, from_flag = free_port(), free_port(), free_port()
    file, ports = tmp_path / "broker.toml", tmp_path / "ports.json"
    file.write_text(
        f'[server]\nlisten = "127.0.0.1:{from_file}"\n[admin]\nlisten = "127.0.0.1:{from_file}"\n'
        f'[cli]\ncommand = "/nonexistent"\n[pool.profiles.default]\nwarm = 1\n'
    )
    variables = {"BROKER__SERVER__LISTEN": f"127.0.0.1:{from_variable}", "BROKER__ADMIN__LISTEN": "127.0.0.1:1"}
    arguments = ("--config", str(file), "--cli", "simulated", "--port-file", str(ports))
    flags = ("--admin", f"127.0.0.1:{from_flag}")
    async with serving(tmp_path, *arguments, *flags, **variables) as process:
        await eventually(ports.exists, ENDS_WITHIN_S)
        assert json.loads(ports.read_text()) == {"listen": from_variable, "admin": from_flag}
        assert is_open(from_variable)
        assert is_open(from_flag)
        assert not is_open(from_file)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(ENDS_WITHIN_S):
            assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_spares_start_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    """Ports are open and no spare is ready yet: exit 0, quickly, and the half-started processes are gone."""
    ports = tmp_path / "ports.json"
    faults = {"BROKER__CLI__ENV": json.dumps({"SIMULATOR_FAULTS": "never_ready ignore_term ignore_eof"}),
              "BROKER__STOP__EOF_GRACE_S": "0.2", "BROKER__STOP__TERM_GRACE_S": "0.2"}  # fmt: skip
    arguments = (*PORTS, "--cli", "simulated", "--port-file", str(ports))
    async with serving(tmp_path, *arguments, **faults) as process:
        await eventually(ports.exists, ENDS_WITHIN_S)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        await eventually(lambda: children.read_text().split(), ENDS_WITHIN_S)
        started = [int(pid) for pid in children.read_text().split()]
        process.send_signal(number)
        async with asyncio.timeout(ENDS_WITHIN_S):
            assert await process.wait() == 0
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


async def test_sigterm_while_the_version_is_awaited(tmp_path: Path) -> None:
    """A CLI that hangs at --version does not hold the broker, and does not outlive it."""
    slow = program(tmp_path / "claude", f"echo $$ > {tmp_path}/pid; exec sleep 4321")
    async with serving(tmp_path, *PORTS, "--cli", slow) as process:
        note = tmp_path / "pid"
        await eventually(lambda: note.exists() and note.read_text().strip(), ENDS_WITHIN_S)
        child = int(note.read_text())
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
        await eventually(lambda: not Path(f"/proc/{child}").exists())
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()

"""The guest agent itself, compiled and driven over a socketpair as a container's and the baseline's is."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.channel import Channel
from runtime.errors import TareError
from runtime.frames import Decoder, encode, encode_exec
from runtime.identity import Identity
from runtime.instance import Timeline
from tests.agent import Agent, build, gone


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def agent(program: Path) -> Iterator[Agent]:
    with Agent(program) as agent:
        yield agent


@pytest.fixture
def channel(agent: Agent) -> Channel:
    return agent.talk()


def frames(sock: socket.socket, count: int) -> list[tuple[str, int, bytes]]:
    """The next `count` frames, straight from the socket."""
    sock.settimeout(20)
    decoder, found = Decoder(), list[tuple[str, int, bytes]]()
    while len(found) < count:
        found += decoder.feed(sock.recv(1 << 16) or pytest.fail("the agent closed the channel"))
    return found


@pytest.fixture
def sock(agent: Agent) -> socket.socket:
    """The raw socket of an agent that has said all it says by itself."""
    assert [kind for kind, _, _ in frames(agent.sock, 2)] == ["U", "R"]
    return agent.sock


def pidfd_from(fifo: Path) -> int:
    """A handle on the process that writes its number into `fifo`."""
    return os.pidfd_open(int(fifo.read_text()))


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pid")
    return tmp_path / "pid"


def test_userland_is_told_first_then_the_service(agent: Agent) -> None:
    (first, second) = frames(agent.sock, 2)
    assert first == ("U", 0, b"")
    assert second[0] == "R"


def test_service_answers_over_http(channel: Channel) -> None:
    assert channel.service_port is not None
    client = http.client.HTTPConnection("127.0.0.1", channel.service_port, timeout=20)
    client.request("POST", "/any/where", body=b"x" * 100_000)
    reply = client.getresponse()
    assert (reply.status, reply.read()) == (200, b"tare\n")
    client.close()


def test_service_survives_more_silent_clients_than_it_holds(channel: Channel) -> None:
    assert channel.service_port is not None
    silent = [socket.create_connection(("127.0.0.1", channel.service_port), 20) for _ in range(40)]
    client = http.client.HTTPConnection("127.0.0.1", channel.service_port, timeout=20)
    client.request("GET", "/")
    assert client.getresponse().read() == b"tare\n"
    client.close()
    for connection in silent:
        connection.close()


def test_service_that_cannot_start_is_reported_and_commands_still_run(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Agent(program, "--listen", address) as agent:
            with pytest.raises(TareError, match="bind: Address already in use"):
                agent.talk()
            assert agent.channel is not None
            assert agent.channel.exec(["echo", "hi"], 20).stdout == b"hi\n"


def test_service_is_out_of_reach_but_for_the_loopback_address(channel: Channel) -> None:
    assert channel.service_port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", channel.service_port), 20)


def test_service_listens_where_it_is_told(program: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    with Agent(program, "--listen", f"127.0.0.2:{port}") as agent:
        assert agent.talk().service_port == port


@pytest.mark.parametrize(
    ("argv", "code", "stdout", "stderr"),
    [
        (["echo", "a b", ""], 0, b"a b \n", b""),
        (["sh", "-c", "echo out; echo err >&2; exit 3"], 3, b"out\n", b"err\n"),
        (["sh", "-c", "kill -9 $$"], 137, b"", b""),
        (["sh", "-c", "kill -TERM $$"], 143, b"", b""),
        (["no-such-program"], 127, b"", b"tare-agent: no-such-program: No such file or directory\n"),
        (["/etc/passwd"], 126, b"", b"tare-agent: /etc/passwd: Permission denied\n"),
        ([""], 127, b"", b"tare-agent: : No such file or directory\n"),
        (["cat"], 0, b"", b""),
        (["sh", "-c", "exec >&- 2>&-; exit 4"], 4, b"", b""),
    ],
)
def test_command_gives_its_output_and_code(
    channel: Channel, argv: list[str], code: int, stdout: bytes, stderr: bytes
) -> None:
    result = channel.exec(argv, 20)
    assert (result.exit_code, result.stdout, result.stderr) == (code, stdout, stderr)


def test_environment_is_exactly_what_is_given_and_finds_the_program(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "my-tool").symlink_to("/usr/bin/env")
    given_env = {"PATH": str(tmp_path), "A": "1=2", "B": ""}
    lines = channel.exec(["my-tool"], 20, env=given_env).stdout.decode().splitlines()
    assert sorted(lines) == sorted(f"{name}={value}" for name, value in given_env.items())
    assert channel.exec(["my-tool"], 20).exit_code == 127


def test_environment_defaults_to_the_agents_own_with_a_path(program: Path) -> None:
    with Agent(program, env={"FROM": "image"}) as agent:
        lines = agent.talk().exec(["env"], 20).stdout.decode().splitlines()
    assert lines[0] == "FROM=image"
    assert lines[1].startswith("PATH=/usr/local/sbin:")


def test_command_starts_clean(channel: Channel) -> None:
    """No foreign descriptors, default signals, a session of its own; subprocess ignores SIGPIPE, so that is a test."""
    status = channel.exec(["sh", "-c", "cat /proc/self/status; ls /proc/$$/fd; cat /proc/$$/stat"], 20).stdout.decode()
    lines = status.splitlines()
    assert "SigBlk:\t0000000000000000" in lines
    assert "SigIgn:\t0000000000000000" in lines
    stat = lines[-1].split()
    assert stat[0] == stat[4] == stat[5]
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2"]


def test_large_output_arrives_intact_on_both_streams(channel: Channel) -> None:
    program = "seq 1 1500000 & seq 2000000 3300000 >&2; wait"
    result = channel.exec(["sh", "-c", program], 120)
    for stream, low, high in ((result.stdout, 1, 1500000), (result.stderr, 2000000, 3300000)):
        want = b"".join(b"%d\n" % number for number in range(low, high + 1))
        assert len(stream) == len(want) > 10_000_000
        assert hashlib.sha256(stream).digest() == hashlib.sha256(want).digest()


def test_commands_run_at_the_same_time(channel: Channel, fifo: Path) -> None:
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(channel.exec, ["cat", str(fifo)], 20)
        assert channel.exec(["sh", "-c", f"echo through > {fifo}"], 20).exit_code == 0
        assert reader.result().stdout == b"through\n"
        many = [pool.submit(channel.exec, ["sh", "-c", f"seq 1 20000; exit {code}"], 60) for code in range(30)]
        assert [run.result().exit_code for run in many] == list(range(30))
        assert len({run.result().stdout for run in many}) == 1


def test_more_commands_than_slots_are_refused_not_lost(sock: socket.socket) -> None:
    started = 300
    for number in range(1, started + 1):
        sock.sendall(encode("X", number, encode_exec(["sleep", "1000"], {})))
    found = frames(sock, 2 * (started - 256))
    assert [number for kind, number, _ in found if kind == "X"] == list(range(257, started + 1))
    assert all(b"temporarily unavailable" in payload for kind, _, payload in found if kind == "E")


def test_timeout_kills_the_whole_group(channel: Channel, fifo: Path) -> None:
    with ThreadPoolExecutor() as pool:
        program = f"sh -c 'echo $$ > {fifo}; exec sleep 1000' & wait"
        command = pool.submit(channel.exec, ["sh", "-c", program], 1)
        grandchild = pidfd_from(fifo)
        with pytest.raises(TareError, match=r"not done after 1 s; killed$"):
            command.result(20)
    assert gone(grandchild)
    os.close(grandchild)


def test_command_ends_with_its_first_process_and_its_group_dies(channel: Channel, fifo: Path) -> None:
    with ThreadPoolExecutor() as pool:
        program = f"sh -c 'echo $$ > {fifo}; exec sleep 1000' & until test -e {fifo}.on; do :; done; echo done"
        command = pool.submit(channel.exec, ["sh", "-c", program], 20)
        pidfd = pidfd_from(fifo)
        Path(f"{fifo}.on").touch()
        assert command.result().stdout == b"done\n"
        assert gone(pidfd)
        os.close(pidfd)


@pytest.mark.parametrize("writer", ["sleep 1000", "yes"])
def test_process_with_its_own_session_neither_blocks_the_command_nor_outlives_the_agent(
    agent: Agent, fifo: Path, writer: str
) -> None:
    channel = agent.talk()
    with ThreadPoolExecutor() as pool:
        start = f"setsid sh -c 'echo $$ > {fifo}; exec {writer}' & until test -e {fifo}.on; do :; done; exit 5"
        command = pool.submit(channel.exec, ["sh", "-c", start], 20)
        pidfd = pidfd_from(fifo)
        Path(f"{fifo}.on").touch()
        assert command.result().exit_code == 5
        assert not gone(pidfd, 0) or writer == "yes"  # writing on, yes finds the pipe closed
        channel.stop()
        assert gone(pidfd)
        os.close(pidfd)


@pytest.mark.parametrize("way", ["close", "stop", "term"])
def test_agent_takes_its_commands_along(agent: Agent, fifo: Path, way: str) -> None:
    channel = agent.talk()
    with ThreadPoolExecutor() as pool:
        command = pool.submit(channel.exec, ["sh", "-c", f"echo $$ > {fifo}; sleep 1000"], 60)
        pidfd = pidfd_from(fifo)
        if way == "term":
            agent.process.send_signal(signal.SIGTERM)
        else:
            getattr(channel, way)()
        assert gone(pidfd)
        os.close(pidfd)
        with pytest.raises(TareError, match="connection lost"):
            command.result(20)
    assert agent.end() == (0, "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "malformed frame"),
        (b"z" + bytes(8), "malformed frame: type 122"),
        (struct.pack("<BII", ord("P"), 1, (1 << 20) + 1), "malformed frame: 1048577 bytes"),
        (encode("X", 7), "malformed frame: execute 7"),
        (encode("X", 7, struct.pack("<I", 0) + b"env=1\0"), "malformed frame: execute 7"),
        (encode("X", 7, struct.pack("<I", 2) + b"one\0"), "malformed frame: execute 7"),
        (encode("X", 7, struct.pack("<I", 1) + b"one\0two"), "malformed frame: execute 7"),
        (encode("X", 7, encode_exec(["sleep", "9"], {})) * 2, "malformed frame: execute 7"),
    ],
)
def test_malformed_frame_ends_the_agent_with_a_message(
    agent: Agent, sock: socket.socket, data: bytes, message: str
) -> None:
    sock.sendall(data)
    code, stderr = agent.end()
    assert code == 1
    assert stderr.startswith(f"tare-agent: {message}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(payloads=st.lists(st.binary(max_size=100), min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400)))
def test_agent_reads_frames_however_they_are_split(sock: socket.socket, payloads: list[bytes], cuts: list[int]) -> None:
    pings = [("P", number, payload) for number, payload in enumerate(payloads)]
    stream = b"".join(encode(*ping) for ping in pings)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for low, high in itertools.pairwise(edges):
        sock.sendall(stream[low:high])
    assert frames(sock, len(pings)) == pings


def test_kill_for_an_unknown_command_is_ignored(sock: socket.socket) -> None:
    sock.sendall(encode("K", 99) + encode("P", 5, b"still here"))
    assert frames(sock, 1) == [("P", 5, b"still here")]


def cpu_ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def outputs(sock: socket.socket, commands: int, limit: int, pause_s: float = 0) -> dict[int, int]:
    """Read until `commands` commands have ended well; bytes of output by command, none above `limit`."""
    decoder, sizes, ended = Decoder(), dict[int, int](), 0
    while ended < commands:
        for kind, number, payload in decoder.feed(sock.recv(1 << 16) or pytest.fail("the agent closed the channel")):
            if kind == "X":
                assert payload == bytes(4)
                ended += 1
            else:
                sizes[number] = sizes.get(number, 0) + len(payload)
                assert sizes[number] <= limit
        time.sleep(pause_s)
    return sizes


@pytest.mark.parametrize(("commands", "size"), [(1, 50_000_000), (100, 300_000)])
def test_host_that_does_not_read_costs_neither_memory_nor_cpu_nor_output(
    agent: Agent, sock: socket.socket, commands: int, size: int
) -> None:
    for number in range(commands):
        sock.sendall(encode("X", number, encode_exec(["head", "-c", str(size), "/dev/zero"], {})))
    deadline, busy_s = time.monotonic() + 30, 1.0
    while busy_s > 0.05:  # until it has started all of them and taken what it takes
        assert time.monotonic() < deadline, "it does not come to rest"
        before = cpu_ticks(agent.process.pid)
        time.sleep(0.5)
        busy_s = (cpu_ticks(agent.process.pid) - before) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 4096
    assert outputs(sock, commands, size) == dict.fromkeys(range(commands), size)


def test_output_of_a_command_is_what_its_pipe_held_when_it_ended(sock: socket.socket, fifo: Path) -> None:
    """Another session writes on into the same pipe for ever, and the host is too slow to ever empty it."""
    program = f"setsid yes & echo $$ > {fifo}; sleep 0.2; exit 0"
    sock.sendall(encode("X", 1, encode_exec(["sh", "-c", program], {})))
    pidfd = pidfd_from(fifo)
    assert gone(pidfd)
    os.close(pidfd)
    assert outputs(sock, 1, 2 << 20, pause_s=0.002)[1] > 0


def test_answers_wait_for_room_and_none_is_lost(sock: socket.socket) -> None:
    pings = [(number, bytes([number]) * ((1 << 20) - number)) for number in range(12)]
    with ThreadPoolExecutor() as pool:
        pool.submit(sock.sendall, b"".join(encode("P", *ping) for ping in pings))
        time.sleep(0.2)
        assert frames(sock, len(pings)) == [("P", *ping) for ping in pings]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--port"],
        ["--init"],
        ["--connect"],
        ["--init", "--port", "x"],
        ["--port", "x", "--listen", "nonsense"],
        ["--port", "x", "--listen", "127.0.0.1:99999"],
        ["--first", "x", "/sbin/init"],
        ["--what"],
    ],
    ids=" ".join,
)
def test_wrong_options_and_init_without_being_pid_1_are_refused(program: Path, options: list[str]) -> None:
    # Root's capabilities are dropped first: an agent that took itself for init would mount and power off.
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*powerless, program, *options], stderr=subprocess.PIPE, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: agent")


def test_connecting_to_a_socket_is_as_good_as_an_inherited_one(program: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "channel"))
        listener.listen()
        process = subprocess.Popen([program, "--connect", tmp_path / "channel"], stderr=subprocess.PIPE)
        listener.settimeout(20)
        channel = Channel(listener.accept()[0], Timeline())
    try:
        channel.wait("ready", 20)
        assert channel.exec(["echo", "here"], 20).stdout == b"here\n"
    finally:
        channel.close()
        process.communicate(timeout=20)


def test_where_nobody_listens_the_agent_says_so(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([program, "--connect", tmp_path / "nobody"], stderr=subprocess.PIPE, timeout=20, check=False)
    assert done.returncode == 1
    assert b"nobody: No such file or directory" in done.stderr


def test_only_a_virtual_machine_is_configured_from_inside(channel: Channel) -> None:
    with pytest.raises(TareError, match="only a virtual machine is configured from inside"):
        channel.configure(Identity(hostname="x"), 20)
    assert channel.exec(["true"], 20).exit_code == 0
